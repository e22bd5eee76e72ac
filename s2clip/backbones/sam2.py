"""SAM 2.1 (Ravi et al. 2024, arXiv:2408.00714) by transformers, as the refinement and the automatic masks ask a SAM.

A picture is stretched to the square frame, 1024 pixels, whatever its ratio: that is what SAM 2 was trained on. The
decoder reads three maps, of 64, 128 and 256 cells a side; `encode` folds the finer ones into the cells of the first, so
that an embedding is one tensor [B,4C,g,g], C = 256, and `unfold` parts them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2clip.backbones.model_table import MODELS
from s2clip.backbones.precision import at_least_float32, freeze, normalise
from s2clip.errors import MissingExtraError

if TYPE_CHECKING:
    from s2clip.backbones.weights import Fingerprint

SIZES: dict[str, dict[str, Any]] = {
    "hiera_tiny": {},
    "hiera_small": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "hiera_base_plus": {
        "hidden_size": 112,
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "hiera_large": {
        "hidden_size": 144,
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "blocks_per_stage": [2, 6, 36, 4],
        "global_attention_blocks": [23, 33, 43],
        "window_size_per_stage": [8, 4, 16, 8],
    },
}
"""Architecture in the table → what differs from transformers' own default, the tiny one."""
NAMES = tuple(name for name, row in MODELS["masks"].items() if row.family == "sam2")
OF_VIDEO = ("memory_", "mask_downsample.", "object_pointer_proj.", "temporal_positional_encoding_projection_layer.")
OF_VIDEO_ALONE = ("no_memory_positional_encoding", "no_object_pointer", "occlusion_spatial_embedding_parameter")
PLACES = "shared_image_embedding.positional_embedding"


class Sam2(nn.Module):
    """A frozen SAM 2.1. fingerprint: tells the weights' sha256."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, name: str, fingerprint: Fingerprint) -> None:
        super().__init__()
        self.model, self.name, self.fingerprint = model, name, fingerprint
        prompts = model.prompt_encoder
        self.frame: int = prompts.input_image_size
        self.grid: int = prompts.image_embedding_size[0]
        self.channels: int = prompts.hidden_size
        self.mask_side: int = prompts.mask_input_size[0]
        self.first_width: int = model.config.vision_config.backbone_config.hidden_size
        row = MODELS["masks"].get(name, MODELS["masks"][NAMES[0]])
        self.register_buffer("mean", torch.tensor(row.mean), persistent=False)
        self.register_buffer("std", torch.tensor(row.std), persistent=False)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def encoder(self) -> nn.Module:
        """What sees the picture."""
        return self.model.vision_encoder

    def preprocess(self, images: Tensor) -> Tensor:
        """images [B,3,H,W] in [0,1] → normalised frames [B,3,S,S], bilinear with antialias."""
        frames = F.interpolate(images, (self.frame, self.frame), mode="bilinear", align_corners=False, antialias=True)
        return normalise(frames, self.mean, self.std)

    def encode(self, frame: Tensor) -> Tensor:
        """A normalised frame [1,3,S,S] → [1,4C,g,g] fp32: what the decoder reads, the finer maps folded into cells."""
        decoder, grid = self.model.mask_decoder, self.grid
        dtype = self.encoder.backbone.patch_embed.projection.weight.dtype
        fine, middle, coarse = (at_least_float32(map_) for map_ in self.encoder(frame.to(dtype)).fpn_hidden_states)
        coarse = coarse + self.model.no_memory_embedding.view(1, -1, 1, 1)
        parts = [coarse, *(F.pixel_unshuffle(one, one.shape[-1] // grid) for one in
                           (decoder.conv_s1(middle), decoder.conv_s0(fine)))]  # fmt: skip
        return torch.cat(parts, 1)

    def unfold(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[R,4C,g,g] → the maps [R,C,g,g], [R,C/4,2g,2g] and [R,C/8,4g,4g]."""
        coarse, middle, fine = embeddings.split([self.channels, self.channels, 2 * self.channels], 1)
        return coarse, F.pixel_shuffle(middle, 2), F.pixel_shuffle(fine, 4)


def build_sam2(name: str) -> nn.Module:
    """The architecture of a row; `MissingExtraError` without transformers."""
    try:
        from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig
    except ImportError as error:
        raise MissingExtraError(f"{name}: needs transformers: pip install 's2clip[sam2]'") from error
    sizes = SIZES[MODELS["masks"][name].architecture]
    widths = [sizes.get("hidden_size", 96) * 2**stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(**sizes, embed_dim_per_stage=widths)
    return Sam2Model(
        Sam2Config(vision_config=Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=widths[::-1]))
    )


def load_sam2(
    name: str,
    *,
    weights: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Sam2:
    """A frozen SAM 2.1 by name, one of `NAMES`; arguments as `s2clip.backbones.sam.load_sam`'s, resolved."""
    where = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    from s2clip.backbones import weights as weight_files  # the Hub's client: not for whoever names the class

    model, fingerprint = weight_files.load(name, lambda: build_sam2(name), weights, adapt=_adapt, **where)
    return freeze_sam2(Sam2(model, name=name, fingerprint=fingerprint), device, dtype)


def freeze_sam2(sam: Sam2, device: torch.device, dtype: torch.dtype) -> Sam2:
    """Move to device, the image encoder to dtype with norms in fp32; what answers prompts stays in fp32."""
    if dtype == torch.float64:
        sam.double()
    elif dtype != torch.float32:
        freeze(sam.encoder, device, dtype)
        table = sam.encoder.backbone.pos_embed  # added inside transformers' own forward, which must stay in dtype
        table.data = table.data.to(dtype)
    return sam.to(device)


def _adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published files hold the tracker of films besides; the places of prompts and of cells are one table."""
    kept = {
        name: tensor for name, tensor in tensors.items() if not name.startswith(OF_VIDEO) and name not in OF_VIDEO_ALONE
    }
    own = kept.get("prompt_encoder.shared_embedding.positional_embedding")
    return kept if own is None else {PLACES: own, **kept}
