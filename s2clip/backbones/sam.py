"""SAM: loading, its preprocessing, and its image encoder as a feature extractor.

The model classes are segment_anything's. Of its helpers none is used: `ResizeLongestSide.apply_image_torch` in the
released wheel takes height and width from the wrong axes, and `build_sam` loads pickles unchecked.

A picture H×W enters the square frame S×S (S = 1024) with its long side scaled to S, and zeros right and below. The
encoder gives one vector per 16×16 pixels of the frame.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from s2clip.backbones import weights as weight_files
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.precision import at_least_float32, check_images, freeze, resolve_device, resolve_dtype
from s2clip.backbones.sam2 import NAMES as SAM2_NAMES
from s2clip.backbones.sam2 import Sam2, load_sam2
from s2clip.backbones.vision_features import VisionFeatures
from s2clip.backbones.weights import Fingerprint
from s2clip.names import match_name
from s2clip.shelter import sheltered

ARCHITECTURES = {name: row.architecture for name, row in MODELS["masks"].items() if row.family == "sam"}
SAM_NAMES = ("sam-tiny", *ARCHITECTURES, *SAM2_NAMES)
ALIASES = {"sam-b": "sam-vit-b", "sam-l": "sam-vit-l", "sam-h": "sam-vit-h"}
ALIASES |= {f"sam2-{size}": f"sam2.1-{size}" for size in ("t", "s", "b+", "l")}


AnySam = Sam | Sam2
"""What answers prompts."""


class Embedding(NamedTuple):
    """SAM's view of one picture."""

    features: Tensor  # [1,C,g,g]
    input_size: tuple[int, int]  # (H',W') of the picture in the frame
    made_from: tuple[int, int] | None = None  # (H,W) it was resized to before, by a method that rounds its sides


@sheltered()
def load_sam(
    name: str = "sam-tiny",
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> AnySam:
    """A frozen SAM by name, one of `SAM_NAMES`; its attribute `fingerprint` tells the weights' sha256.

    dtype is the image encoder's, default fp16 on CUDA and fp32 on the CPU; prompt encoder and mask decoder, 1 % of the
    work, stay in fp32.
    weights: "pretrained"; "random" (the same ones in every call; output without meaning); or a checkpoint file.
    Raises ValueError for unknown names, WeightsError for missing or wrong weights.
    """
    name = match_name("sam", name, SAM_NAMES, ALIASES)
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    where = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    if name in SAM2_NAMES:
        return load_sam2(name, weights=weights, device=device, dtype=dtype, **where)
    if name == "sam-tiny":
        from s2clip.backbones import tiny_sam

        sam, fingerprint = weight_files.load_tiny(name, "sam", weights, tiny_sam.load_sam_model)
    else:
        sam, fingerprint = weight_files.load(name, sam_model_registry[ARCHITECTURES[name]], weights, **where)
    sam.fingerprint = fingerprint
    return freeze_sam(sam, device, dtype)


def freeze_sam(sam: Sam, device: torch.device, dtype: torch.dtype) -> Sam:
    """Move `sam` to device, its image encoder to dtype, with norms in fp32: eval, no gradients."""
    encoder = sam.image_encoder
    if dtype == torch.float64:
        encoder.double()
    elif dtype != torch.float32:
        for index, layer in enumerate(encoder.neck):
            if isinstance(layer, LayerNorm2d):
                encoder.neck[index] = _LayerNorm2dFloat32(layer)
        freeze(encoder, device, dtype, keep=(LayerNorm2d,))
        if encoder.pos_embed is not None:  # added inside segment_anything's own forward, which must stay in dtype
            encoder.pos_embed.data = encoder.pos_embed.data.to(dtype)
    return sam.eval().requires_grad_(False).to(device)


class _LayerNorm2dFloat32(nn.Module):
    """SAM's channel norm squares its input before averaging: 256 overflows fp16."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


def input_size(size: tuple[int, int], frame: int) -> tuple[int, int]:
    """(H,W) -> (H',W') in SAM's frame: long side to `frame`, sides rounded half up, at least one pixel."""
    scale = frame / max(size)
    return (max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1))


def preprocess(sam: Sam, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """images [B,3,H,W] in [0,1] -> (normalised frames [B,3,S,S] fp32, (H',W') of the picture inside them).

    Bilinear with antialias, as SAM's reference does by Pillow on uint8, without its rounding to 1/255.
    """
    check_images(images)
    frame = sam.image_encoder.img_size
    size = input_size(tuple(images.shape[-2:]), frame)
    images = at_least_float32(images)
    if size != tuple(images.shape[-2:]):
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    frames = (images * 255 - sam.pixel_mean) / sam.pixel_std
    return F.pad(frames, (0, frame - size[1], 0, frame - size[0])), size


def fitted_size(sam: AnySam, size: tuple[int, int], side: int) -> tuple[int, int]:
    """(h,w) that a picture of (H,W) takes of a square of `side`: SAM keeps its ratio, SAM 2 stretches it."""
    return (side, side) if isinstance(sam, Sam2) else input_size(size, side)


def frame_of(sam: AnySam) -> int:
    """S, pixels of a side of the frame."""
    return sam.frame if isinstance(sam, Sam2) else sam.image_encoder.img_size


def mask_side(sam: AnySam) -> int:
    """m, of mask prompts and low-resolution masks."""
    return sam.mask_side if isinstance(sam, Sam2) else sam.prompt_encoder.mask_input_size[0]


def encode_images(sam: AnySam, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """images [B,3,H,W] in [0,1] -> (embeddings [B,C,S/16,S/16] fp32, padding included; (H',W') as `preprocess`).

    One picture at a time: ViT-B's global attention holds 12 heads of 4096² scores, 0.8 GB in fp32, several times over.
    """
    seen = getattr(sam, "seen", None)
    encode: Callable[[Tensor], Tensor]
    if isinstance(sam, Sam2):
        check_images(images)
        frames, size, encode = sam.preprocess(at_least_float32(images)), (sam.frame, sam.frame), sam.encode
        channels, grid = 4 * sam.channels, (sam.grid, sam.grid)
    else:
        frames, size = preprocess(sam, images)
        dtype = sam.image_encoder.patch_embed.proj.weight.dtype
        channels, grid = sam.prompt_encoder.embed_dim, sam.prompt_encoder.image_embedding_size

        def encode(frame: Tensor) -> Tensor:
            return sam.image_encoder(frame.to(dtype)).float()

    embeddings = [_encode_unseen(encode, seen, frame[None]) for frame in frames]
    return torch.cat(embeddings) if embeddings else frames.new_empty(0, channels, *grid), size


def share_embeddings(sam: AnySam, pictures: int = 4) -> None:
    """Let `encode_images` remember the last few frames: who asks for the same pixels again gets the same embedding.

    For a SAM that serves as feature extractor and refines, too. A frame and its embedding take 16 MB in fp32. They meet
    where the extractor sees the whole picture at its own size (`crop=0, short_side=0`).
    """
    sam.seen = collections.deque(maxlen=pictures)


def _encode_unseen(encode: Callable[[Tensor], Tensor], seen: collections.deque | None, frame: Tensor) -> Tensor:
    if seen is None:
        return encode(frame)
    for known, embedding in seen:
        if torch.equal(known, frame):
            return embedding
    seen.append((frame, encode(frame)))
    return seen[-1][1]


class SamFeatures(VisionFeatures):
    """SAM's neck output over the picture without the padding: [B,h,w,C], the long side 64 cells in the released models.

    patch_size counts pixels of SAM's frame, not of the picture.
    The picture ends inside a cell unless its scaled sides are multiples of 16. Then the cells are resampled (bilinear)
    so that h = round(H'/16) rows cover H' pixels evenly, as every other backbone's grid covers its picture.
    """

    def __init__(self, sam: Sam, *, name: str, fingerprint: Fingerprint | None = None) -> None:
        super().__init__(sam, name, fingerprint or getattr(sam, "fingerprint", None))
        self.patch_size = sam.image_encoder.img_size // sam.prompt_encoder.image_embedding_size[0]
        self.width = sam.prompt_encoder.embed_dim
        self.eval().requires_grad_(False)

    def compile_blocks(self, **options: Any) -> None:
        self.model.image_encoder.compile(**options)

    def features(self, images: Tensor) -> Tensor:
        embeddings, size = encode_images(self.model, images)
        return cut_valid(embeddings, size, self.patch_size).to(self.dtype)

    @property
    def _projection(self) -> Tensor:
        return self.model.image_encoder.patch_embed.proj.weight


def cut_valid(embeddings: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """The cells of a picture of H'×W' frame pixels: embeddings [B,C,g,g] -> [B,h,w,C], h = max(round(H'/patch), 1)."""
    cells = [side / patch for side in size]
    height, width = (max(round(count), 1) for count in cells)
    if (height, width) != tuple(cells):
        grid = embeddings.shape[-2:]
        ratio_y, ratio_x = (count / side for count, side in zip(cells, grid, strict=True))
        # corners -1 and 1 of the output are the picture's; in the frame the far ones lie at 2·ratio − 1
        affine = embeddings.new_tensor([[ratio_x, 0, ratio_x - 1], [0, ratio_y, ratio_y - 1]])
        affine = affine.expand(len(embeddings), 2, 3)
        where = F.affine_grid(affine, [len(embeddings), 1, height, width], align_corners=False)
        embeddings = F.grid_sample(embeddings, where, mode="bilinear", padding_mode="border", align_corners=False)
    return embeddings[..., :height, :width].permute(0, 2, 3, 1)
