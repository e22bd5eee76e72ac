"""Pictures in: `read_image` turns a path, a PIL image, an array or a tensor into uint8 [3,H,W], RGB, upright.

What a picture means is decided once, here:

* EXIF orientation is applied, as every viewer does.
* Transparency is laid on white: the colour under a transparent pixel is arbitrary, and viewers show white.
* b bits are scaled by 255/(2^b - 1) and rounded, alpha of 16 bits before that. Integer pictures beyond 16 bits, signed
  ones and float pictures have no defined white and are refused.
* Palette, 1-bit, grey, CMYK and YCbCr are converted to RGB; of an animation the first frame is taken.
* More pixels than `max_pixels` are refused after the header is read and before a pixel is decoded; what could take
  longer than its pixels do is decoded in a process that is ended after `max_seconds`.
"""

import os
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2clip.errors import ImageError, shown
from s2clip.pictures import bounded, decoding
from s2clip.pictures.bounded import MAX_SECONDS
from s2clip.pictures.decoding import FORMATS, MAX_PIXELS
from s2clip.pictures.samples import turned
from s2clip.pictures.structure import Unusable
from s2clip.pictures.suffixes import SUFFIXES

__all__ = ["FORMATS", "MAX_PIXELS", "MAX_SECONDS", "SUFFIXES", "Source", "read_image"]

ROUNDING = 1e-3
"""By how much floats may leave [0,1], a quarter of a grey level: sums of weights miss 1 by 1e-6, of halves by 5e-4."""
LINE = 200
"""Characters of an error's line, as far as the file's name leaves some."""

Source = str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray | Tensor


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS, max_seconds: float = MAX_SECONDS) -> Tensor:
    """One picture as uint8 tensor [3,H,W] on the CPU, RGB, EXIF orientation applied.

    Args:
        source: path of a file in one of `FORMATS`; its bytes, or a binary file, which is read from its start; PIL image
            of any mode; uint8 array [H,W,3] in **RGB** order (OpenCV reads BGR: reverse the last axis), [H,W,4] with
            alpha, or [H,W] grey; tensor [3,H,W], [4,H,W], [1,H,W] or [H,W], uint8 or float in [0,1],
            which may miss that by 1e-3.
        max_pixels: refuse files and PIL images with more pixels than this, before decoding.
        max_seconds: refuse files whose decoding takes longer; ordinary ones take less than a second.

    Raises:
        ImageError: the picture cannot be used; one line with its name and the reason.
    """
    if isinstance(source, Tensor):
        if source.layout != torch.strided or source.is_meta or source.is_quantized:
            raise ImageError(
                "image tensor: expected a dense tensor with values, received a sparse, meta or quantized one"
            )
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _from_pil(source, max_pixels)
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        if name.startswith(("http://", "https://")):
            raise _error(name, "addresses are not fetched; download the picture and give its path")
        content: str | bytes = name
    elif isinstance(source, bytes) or hasattr(source, "read"):
        name, content = _content(source)
    else:
        accepted = "a path, bytes, a binary file, a PIL image, a uint8 array [H,W,3] or a tensor [3,H,W]"
        raise ImageError(f"image: expected {accepted}, received {type(source).__name__}")
    try:
        pixels = bounded.decode(decoding.PIXELS, content, max_pixels=max_pixels, max_seconds=max_seconds)
    except Unusable as error:
        raise _error(name, str(error)) from None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _error(name: str, reason: str) -> ImageError:
    """One line, whatever a file is called."""
    name = shown(name)
    return ImageError(f"{name}: {decoding.shortened(reason, max(LINE - 2 - len(name), 80))}")


def _content(source: bytes | BinaryIO) -> tuple[str, bytes]:
    """(name, content) of a file that is open already; from the start, wherever a writer left the position."""
    name = getattr(source, "name", None)
    name = name if isinstance(name, str) else type(source).__name__
    try:
        if not isinstance(source, bytes) and source.seekable():
            source.seek(0)
        content = source if isinstance(source, bytes) else source.read()
    except Exception as error:  # closed, not readable, or whatever a caller's own kind of file raises
        raise _error(name, f"cannot be read: {decoding.reason_of(error)}") from None
    if not isinstance(content, bytes):
        raise _error(name, 'expected a file opened with "rb", received text')
    if not content:
        raise _error(name, "empty (0 bytes)")
    return name, content


def _from_pil(image: Image.Image, max_pixels: int) -> Tensor:
    """A picture that the caller opened: what it holds, decoded where it is not yet, in this process."""
    name = str(getattr(image, "filename", "") or "PIL image")
    try:
        decoding.check_size(*image.size, max_pixels)
        image.load()
        pixels = turned(decoding.rgb(image), decoding.orientation_of(image.getexif))
    except Unusable as error:
        raise _error(name, str(error)) from None
    except MemoryError:
        raise _error(name, f"{image.width}x{image.height} does not fit into memory") from None
    except Exception as error:
        raise _error(name, f"truncated or damaged: {decoding.reason_of(error)}") from None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


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
        opaque = decoding.rgb(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(), "RGBA"))
        return torch.from_numpy(opaque.transpose(2, 0, 1).copy())
    return image.expand(3, -1, -1).clone(memory_format=torch.contiguous_format)
