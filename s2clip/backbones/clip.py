"""CLIPs by name: which there are, built with the activation of their weights, and loaded."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from s2clip.backbones import weights as weight_files
from s2clip.backbones.clip_tower import CLIPBackbone
from s2clip.backbones.eva_clip import EvaClip
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.positions import PosEmbedInterp, check_pos_embed_interp
from s2clip.backbones.precision import freeze, resolve_device, resolve_dtype
from s2clip.backbones.tokenizers import load_tokenizer
from s2clip.errors import WeightsError
from s2clip.names import match_name
from s2clip.shelter import sheltered

__all__ = ["ARCHITECTURES", "CLIP_NAMES", "CLIPBackbone", "build_clip", "check_activation", "load_clip"]

FAMILIES: dict[str, type[CLIPBackbone]] = {"clip": CLIPBackbone, "eva": EvaClip}
"""Family in the table → what opens its tower."""
# Our name -> open_clip's architecture. OpenAI, MetaCLIP and DFN trained with QuickGELU; its plain "ViT-B-16" has GELU.
ARCHITECTURES = {name: row.architecture for name, row in MODELS["clip"].items() if row.family in FAMILIES}
CLIP_NAMES = ("tiny", *ARCHITECTURES)


def check_activation(model: nn.Module, *, quick: bool, name: str) -> None:
    """Raise WeightsError unless every block of open_clip's towers has the activation its weights were trained with.

    QuickGELU and GELU have no parameters, so the wrong one loads without complaint and costs accuracy in every layer.
    """
    expected = QuickGELU if quick else nn.GELU
    towers = [module for module in model.modules() if isinstance(module, Transformer)]
    for tower in towers:
        for block in tower.resblocks:
            if type(block.mlp.gelu) is not expected:
                raise WeightsError(
                    f"{name}: its weights were trained with {expected.__name__}, "
                    f"the model was built with {type(block.mlp.gelu).__name__}"
                )


def build_clip(name: str) -> CLIP | CustomTextCLIP:
    """The architecture of a released model with initial weights drawn from the global random state."""
    config = open_clip.get_model_config(ARCHITECTURES[name])
    model = CustomTextCLIP(**config) if config.pop("custom_text", False) else CLIP(**config)
    check_activation(model, quick=MODELS["clip"][name].activation == "quickgelu", name=name)
    return model


@sheltered()
def load_clip(
    name: str = "tiny",
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    pos_embed_interp: PosEmbedInterp = "meta",
) -> CLIPBackbone:
    """A frozen CLIP by name, one of `CLIP_NAMES`.

    weights: "pretrained"; "random" (the same ones in every call; output without meaning); or a checkpoint file.
    device, dtype: default CUDA with fp16, or the CPU with fp32.  cache_dir, local_files_only: see `weights`.
    Raises ValueError for unknown names, WeightsError for missing or wrong weights.
    """
    check_pos_embed_interp(pos_embed_interp)
    name = match_name("model", name, CLIP_NAMES)
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    kind: type[CLIPBackbone] = CLIPBackbone
    if name == "tiny":
        from s2clip.backbones import tiny

        (model, tokenizer), fingerprint = weight_files.load_tiny(name, "clip", weights, tiny.load_clip_model)
    else:
        kind = FAMILIES[MODELS["clip"][name].family]
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        tokenizer = load_tokenizer(
            ARCHITECTURES[name], name=name, extra="metaclip2", random=weights == "random", **options
        )
        model, fingerprint = weight_files.load(name, lambda: build_clip(name), weights, adapt=_adapt_openai, **options)
    model = freeze(model, device, dtype)
    backbone = kind(model, tokenizer, name=name, pos_embed_interp=pos_embed_interp, fingerprint=fingerprint)
    return backbone.to(device)


def _adapt_openai(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's archives hold three sizes beside the weights, which open_clip knows from its configuration."""
    sizes = {"input_resolution", "context_length", "vocab_size"}
    return {key: tensor for key, tensor in tensors.items() if key not in sizes}
