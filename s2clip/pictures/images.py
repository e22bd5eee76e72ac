"""Pictures in: `read_image` turns a path, a PIL image, an array or a tensor into uint8 [3,H,W], RGB, upright.

What a picture means is decided once, here:

* EXIF orientation is applied, as every viewer does.
* Transparency is laid on white: the colour under a transparent pixel is arbitrary, and viewers show white.
* 16 bits are scaled by 255/65535 (Pillow's own conversion clips at 255). Integer pictures beyond 16 bits and float
  pictures have no defined white and are refused.
* Palette, 1-bit, grey, CMYK and YCbCr are converted to RGB; of an animation the first frame is taken.
* More pixels than `max_pixels` are refused after the header is read and before a pixel is decoded.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from s2clip.errors import DAMAGE, ImageError

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SUFFIXES = (  # what is taken for a picture when a folder is listed
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".tif", ".tiff"),
    *(".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
)
ROUNDING = 1e-3
"""By how much floats may leave [0,1], a quarter of a grey level: sums of weights miss 1 by 1e-6, of halves by 5e-4."""
SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")

Source = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | Tensor


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """One picture as uint8 tensor [3,H,W] on the CPU, RGB, EXIF orientation applied.

    Args:
        source: path of a file in one of `FORMATS`; its bytes, or a binary file, which is read from its start; PIL image
            of any mode; uint8 array [H,W,3] in **RGB** order (OpenCV reads BGR: reverse the last axis), [H,W,4] with
            alpha, or [H,W] grey; tensor [3,H,W], [4,H,W], [1,H,W] or [H,W], uint8 or float in [0,1],
            which may miss that by 1e-3.
        max_pixels: refuse files and PIL images with more pixels than this, before decoding.

    Raises:
        ImageError: the picture cannot be used; one line with its name and the reason.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, getattr(source, "filename", "") or "PIL image", max_pixels)
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source), max_pixels)
    if isinstance(source, bytes) or hasattr(source, "read"):
        return _from_bytes(source, max_pixels)
    accepted = "a path, bytes, a binary file, a PIL image, a uint8 array [H,W,3] or a tensor [3,H,W]"
    raise ImageError(f"image: expected {accepted}, received {type(source).__name__}")


def _from_file(name: str, max_pixels: int) -> Tensor:
    path = Path(name)
    if name.startswith(("http://", "https://")):
        raise ImageError(f"{name}: addresses are not fetched; download the picture and give its path")
    try:
        if path.is_dir():
            raise ImageError(f"{name}: is a folder, not a picture")
        if not path.exists():
            raise ImageError(f"{name}: no such file")
        if path.is_file() and path.stat().st_size == 0:
            raise ImageError(f"{name}: empty file (0 bytes)")
        with path.open("rb") as handle, _open(handle, name) as image:
            return _from_pil(image, name, max_pixels)
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # unreadable, or a path that cannot exist (a null byte, too long)
        raise ImageError(f"{name}: cannot be read: {_reason(error)}") from None


def _from_bytes(source: bytes | BinaryIO, max_pixels: int) -> Tensor:
    """A file that is open already, or its content; from the start, wherever a writer left the position."""
    name = getattr(source, "name", None)
    name = name if isinstance(name, str) else type(source).__name__
    try:
        if not isinstance(source, bytes) and source.seekable():
            source.seek(0)
        content = source if isinstance(source, bytes) else source.read()
    except (OSError, ValueError) as error:  # closed, or not readable
        raise ImageError(f"{name}: cannot be read: {_reason(error)}") from None
    if not isinstance(content, bytes):
        raise ImageError(f'{name}: expected a file opened with "rb", received text')
    if not content:
        raise ImageError(f"{name}: empty (0 bytes)")
    with BytesIO(content) as handle, _open(handle, name) as image:
        return _from_pil(image, name, max_pixels)


def _open(handle: BinaryIO, name: str) -> Image.Image:
    """Read the header by the reader whose signature fits the first bytes.

    Not `Image.open`: that enforces Pillow's process-wide pixel limit, which a library may neither raise nor silence
    for others; ours is an argument.
    """
    Image.init()
    prefix = handle.read(16)
    for factory, accept in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        if accept is None or accept(prefix) is not True:  # a reader that is not built in answers with a sentence
            continue
        handle.seek(0)
        try:
            return factory(handle, name)
        except (*DAMAGE, MemoryError) as error:
            raise ImageError(f"{name}: damaged header: {_reason(error)}") from None
    raise ImageError(f"{name}: not a picture that can be read ({', '.join(FORMATS)})")


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> Tensor:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height / 1e6:.1f} megapixels, "
            f"over the limit of {max_pixels / 1e6:g} (max_pixels, --max-megapixels)"
        )
    if width * height == 0:
        raise ImageError(f"{name}: has no pixels ({width}x{height})")
    try:
        image.load()
        pixels = np.asarray(_to_rgb(_upright(image)))
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except MemoryError:
        raise ImageError(f"{name}: {width}x{height} does not fit into memory") from None
    except DAMAGE as error:
        raise ImageError(f"{name}: truncated or damaged: {_reason(error)}") from None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE:  # broken metadata do not make a good picture bad
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT or image.mode == "I":
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise ImageError("float pixels have no defined white: save it with 8 or 16 bits")
    if image.has_transparency_data or image.mode in ("La", "RGBa"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("integer pixels beyond 16 bits have no defined white: save it with 8 or 16 bits")
    grey = np.round(values.astype(np.float32) * (255 / 65535)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8:
        hint = (
            "; scale it to 0..255 and convert: (image * 255).round().astype('uint8')" if array.dtype.kind == "f" else ""
        )
        raise ImageError(f"image array: expected dtype uint8, received {array.dtype}{hint}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        channels_first = array.ndim == 3 and array.shape[0] == 3
        hint = "; move the channels last: image.transpose(1, 2, 0)" if channels_first else ""
        expected = "[H,W,3] in RGB order, [H,W,4] with alpha or [H,W]"
        raise ImageError(f"image array: expected {expected}, received {list(array.shape)}{hint}")
    # A copy: torch warns of arrays that it may not write to, and nothing here shares memory with the caller.
    return _with_three_channels(torch.from_numpy(array.transpose(2, 0, 1).copy()), "image array")


def _from_tensor(image: Tensor) -> Tensor:
    if image.ndim == 2:
        image = image[None]
    channels_last = image.ndim == 3 and image.shape[2] == 3
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or (image.shape[0] == 4 and channels_last):
        hint = "; move the channels first: image.permute(2, 0, 1)" if channels_last else ""
        hint = "; give a batch as a list of images" if image.ndim == 4 else hint
        expected = "[3,H,W], [4,H,W] with alpha, [1,H,W] or [H,W]"
        raise ImageError(f"image tensor: expected {expected}, received {list(image.shape)}{hint}")
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()
        if image.numel() and not bool(((image >= -ROUNDING) & (image <= 1 + ROUNDING)).all()):
            low, high = image.min().item(), image.max().item()
            hint = "; image.clamp(0, 1) cuts what a bicubic resize overshoots" if low > -1 and high < 2 else ""
            hint = "; divide by 255" if 2 <= high <= 255 and low >= 0 else hint
            raise ImageError(
                f"image tensor: expected finite floats in [0,1], received values from {low} to {high}{hint}"
            )
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    elif image.dtype != torch.uint8:
        raise ImageError(f"image tensor: expected uint8 or floats in [0,1], received {image.dtype}")
    return _with_three_channels(image, "image tensor")


def _with_three_channels(image: Tensor, name: str) -> Tensor:
    if image.numel() == 0:
        raise ImageError(f"{name}: has no pixels ({list(image.shape)})")
    if len(image) == 4:
        opaque = _to_rgb(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(), "RGBA"))
        return torch.from_numpy(np.asarray(opaque).transpose(2, 0, 1).copy())
    return image.expand(3, -1, -1).clone(memory_format=torch.contiguous_format)


def _reason(error: BaseException) -> str:
    """The first line of what a reader said, without addresses of Python objects."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text or type(error).__name__
