"""C-RADIO with its language head: patches and words in one space, without CLIP's tower.

    X_0 … X_{L−1} as CLIP's, with 8 tokens before the patches; z = head(X_L), the MLP that NVIDIA trained to give the
    summary of SigLIP 2; words by SigLIP 2's text tower (giant, 1,536 dimensions)

The head is in NVIDIA's own checkpoint alone (`c-radio_v3-b_half.pth.tar`): timm's and transformers' files drop it. Its
sizes are read from that file. The text tower is open_clip's, in a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_text_tower
from torch import Tensor, nn

from s2clip.backbones import weights as weight_files
from s2clip.backbones.model_table import MODELS, ModelRow
from s2clip.backbones.positions import PosEmbedInterp
from s2clip.backbones.precision import check_images, freeze, resolve_device, resolve_dtype
from s2clip.backbones.radio_checkpoint import HEAD, LanguageHead, head_of, read_radio
from s2clip.backbones.tokenizers import Tokenizer, load_tokenizer
from s2clip.backbones.vfm import ViTFeatures, _adapt_radio, _build_radio
from s2clip.backbones.weights import Fingerprint

TEXT = "siglip2-g"
"""Row of the text tower."""
PROMPTS_PER_BATCH = 128
"""Of 64 tokens, in a tower of 1,152 channels and 27 blocks."""


class LanguageRadio(nn.Module):
    """What `s2clip.backbones.clip.CLIPBackbone` is to a method, with `prefix_tokens` before the patches."""

    def __init__(
        self,
        vision: ViTFeatures,
        language: LanguageHead,
        text: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        fingerprint: Any,
    ) -> None:
        super().__init__()
        model = vision.model
        self.vision, self.language, self.text, self.tokenizer, self.name = vision, language, text, tokenizer, name
        self.blocks: nn.ModuleList = model.blocks
        self.patch_size: int = vision.patch_size
        self.native_size: int = vision.native_grid[0] * vision.patch_size
        self.layers, self.width = len(model.blocks), model.embed_dim
        self.heads: int = model.blocks[0].attn.num_heads
        self.prefix_tokens: int = model.num_prefix_tokens
        self.embed_dim = language.outputs
        self.logit_scale = 100.0
        self.register_buffer("mean", vision.mean.clone(), persistent=False)
        self.register_buffer("std", vision.std.clone(), persistent=False)
        self._fingerprint = fingerprint
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.dtype

    @property
    def device(self) -> torch.device:
        return self.vision.device

    @property
    def weights_sha256(self) -> str:
        return self._fingerprint.sha256

    def hidden_states(self, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """images [B,3,H,W] in [0,1] → ([X_0, …, X_{L−1}], each [B,P+N,D], prefix first), (rows, columns).

        H and W must be multiples of the patch size (ValueError).
        """
        check_images(images)
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images: expected height and width to be multiples of {self.patch_size} for {self.name}, "
                f"received {height}×{width}"
            )
        tokens, grid = self.vision._embed(images)
        return self._run_blocks(tokens), grid

    def _run_blocks(self, x: Tensor) -> list[Tensor]:
        states = [x]
        for block in self.blocks[:-1]:
            states.append(block(states[-1]))
        return states

    def compile_blocks(self, **options: Any) -> None:
        self._run_blocks = torch.compile(self._run_blocks, **options)

    def project_qkv(self, x: Tensor, index: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of LN1(x) in block `index`: x [B,T,D] → three times [B,heads,T,D/heads], not scaled."""
        block = self.blocks[index]
        batch, tokens, _ = x.shape
        qkv = block.attn.qkv(block.norm1(x))
        return qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def project_attention(self, heads_out: Tensor, index: int = -1) -> Tensor:
        """W_o·heads + b_o in block `index`, without the block's factor on it, [B,heads,T,d] → [B,T,D]."""
        return self.blocks[index].attn.proj(heads_out.transpose(1, 2).flatten(2).to(self.dtype))

    def scaled(self, x: Tensor, index: int = -1) -> Tensor:
        """What block `index` adds of an attention's output: timm's LayerScale."""
        return self.blocks[index].ls1(x)

    def feed_forward(self, x: Tensor, index: int = -1) -> Tensor:
        """FFN(LN2 x) in block `index`: x [B,T,D] → [B,T,D], without the residual."""
        block = self.blocks[index]
        return block.ls2(block.mlp(block.norm2(x)))

    def head(self, x: Tensor) -> Tensor:
        """head(x): x [...,D] → [...,C], not normalised."""
        return self.language(self.vision.model.norm(x.to(self.dtype)))

    def encode_text(self, texts: list[str]) -> Tensor:
        """Text features, not normalised: n strings → [n,C]. Cut after 64 tokens."""
        features = [
            self.text(self.tokenizer(texts[start : start + PROMPTS_PER_BATCH]).to(self.device))
            for start in range(0, len(texts), PROMPTS_PER_BATCH)
        ]
        return torch.cat(features) if features else torch.empty(0, self.embed_dim, dtype=self.dtype, device=self.device)

    def unknown_words(self, texts: list[str]) -> list[str]:
        """SigLIP's pieces of words know them all."""
        return []


class _Both:
    """One name for two files."""

    def __init__(self, *parts: Fingerprint) -> None:
        self._parts = parts

    @property
    def sha256(self) -> str:
        return "+".join(dict.fromkeys(part.sha256 for part in self._parts))


def load_language_radio(
    name: str,
    *,
    weights: str | Path = "pretrained",
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> LanguageRadio:
    """A frozen C-RADIO with language by name, a row of family "language-radio"; as `load_clip`.

    weights: a file is NVIDIA's; the text tower is looked for under its own name. `WeightsError` for missing or foreign
    files, among them those without the language head; `MissingExtraError` without transformers, whose tokenizer
    SigLIP 2 needs.
    """
    row = MODELS["clip"][name]
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    options = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    architecture = MODELS["words"][TEXT].architecture
    tokenizer = load_tokenizer(architecture, name=name, extra="radseg", random=weights == "random", **options)
    text, text_print = _load_text(weights, options)
    if weights == "random":
        weight_files.warn_random(name)
        with weight_files.private_random_state():
            model, language = _build_radio(row.architecture), LanguageHead(_width(row), text_width())
        fingerprint = Fingerprint("random")
    else:
        tensors, fingerprint, path = read_radio(name, weights, **options)
        language = head_of(tensors, name, path)
        with weight_files.private_random_state():
            model = _build_radio(row.architecture)
        tower = {key: value for key, value in tensors.items() if not key.startswith(HEAD)}
        weight_files.fill(model, _adapt_radio(tower), name, path)
    if language.outputs != text_width():
        language_is = f"language head of {language.outputs} dimensions"
        raise weight_files.WeightsError(
            f"{name}: expected a head of {text_width()} dimensions, received a {language_is}"
        )
    positions: PosEmbedInterp = row.positions or "radio"
    vision = ViTFeatures(freeze(model, device, dtype), name=name, pos_embed_interp=positions, fingerprint=fingerprint)
    parts = [freeze(part, device, dtype) for part in (language, text)]
    both = _Both(fingerprint, text_print)
    return LanguageRadio(vision.to(device), *parts, tokenizer, name=name, fingerprint=both).to(device)


def text_config() -> dict[str, Any]:
    """open_clip's configuration that holds the text tower."""
    return open_clip.get_model_config(MODELS["words"][TEXT].architecture)


def text_width() -> int:
    """C, the size of the joint space."""
    return text_config()["embed_dim"]


def _width(row: ModelRow) -> int:
    with torch.device("meta"):
        return _build_radio(row.architecture).embed_dim


def _load_text(weights: str | Path, options: dict[str, Any]) -> tuple[nn.Module, Fingerprint]:
    config = text_config()
    chosen = "random" if weights == "random" else "pretrained"

    def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The words' half of SigLIP 2; of any other file nothing, so that the comparison of names says so."""
        return {key.removeprefix("text."): value for key, value in tensors.items() if key.startswith("text.")}

    return weight_files.load(
        TEXT, lambda: _build_text_tower(config["embed_dim"], config["text_cfg"]), chosen, adapt=adapt, **options
    )
