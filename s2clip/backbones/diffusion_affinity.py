"""Stable Diffusion's self-attention as an affinity that smooths class scores (CLIPer, arXiv:2411.13836).

    R = A_1 A_2 ... A_10 X,   X [N,K] the scores of K classes on Stable Diffusion's grid, N = 64·64 tokens

A_1..A_5 are the heads of the second, A_6..A_10 those of the first transformer of the UNet's last block (CLIPer's layers
-4 and -6), each with columns divided by their maximum, entries under a threshold removed and rows divided by their sum.
The product runs from the right, A_10 X first: ten times 4096·4096·K multiplications, where that of the matrices would
take nine times 4096³; and of the ten matrices, 64 MiB each, one is in memory at a time. Queries and keys come from one
pass of the UNet, which stops at the second transformer's self-attention, on the picture's latent with a little noise
and the empty prompt.

Needs the extra `diffusion`, imported when a model is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2clip.backbones.precision import check_images, resolve_device, resolve_dtype
from s2clip.backbones.stable_diffusion import MODEL_ID, StableDiffusion, load_stable_diffusion
from s2clip.errors import WeightsError, reject
from s2clip.shelter import sheltered

LAYERS = tuple(f"up_blocks.3.attentions.{index}.transformer_blocks.0.attn1" for index in (1, 0))
STEPS, STEP = 50, 45
"""CLIPer's noise: entry 45 of the scheduler's 50-step list, t = 101 of 1000 and ᾱ = 0.893 with the model's PNDM, whose
list repeats its second entry. DDIM's has t = 81 there: PNDM is taken whatever scheduler a mirror names."""
EPSILON = 1e-5


class SelfAttention(NamedTuple):
    """One layer's half-made attention: softmax(scale·Q Kᵀ) per head is made when it is needed."""

    query: Tensor  # [heads,N,d]
    key: Tensor  # [heads,N,d]
    scale: float


class DiffusionAffinity:
    """A frozen Stable Diffusion, as far as its last block's self-attention.

    The same picture gives the same result in every call: the noise is drawn from a generator of its own, seeded by the
    picture (CLIPer draws anew each time). Pictures go one by one, so none depends on its neighbours.
    """

    def __init__(
        self,
        model: StableDiffusion,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        threshold: float = 0.1,
    ) -> None:
        """model: its unet and vae are taken over, without the vae's decoder.

        dtype: default fp16 on CUDA (2 GB), fp32 on the CPU; the affinity itself is fp32 (CLIPer's: fp16).
        threshold [attention_thr] 0..1: entries below this share of their column's maximum are removed; CLIPer's 0.1.
        """
        if not 0 <= threshold <= 1:
            reject("threshold", "0 to 1", threshold)
        modules = dict(model.unet.named_modules())
        if missing := [layer for layer in LAYERS if layer not in modules]:
            raise WeightsError(f"{model.name}: expected a UNet with Stable Diffusion's blocks, found no {missing[0]}")
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        model.vae.decoder = model.vae.post_quant_conv = None
        self.unet, self.vae = (part.eval().requires_grad_(False) for part in (model.unet, model.vae))
        for part in (self.unet, self.vae):  # diffusers' own `to` warns of modules to keep in fp32: these have none
            nn.Module.to(part, self.device, self.dtype)
        self.prompt = model.prompt.to(self.device, self.dtype)
        self.threshold, self.name, self.fingerprint = threshold, model.name, model.fingerprint
        model.scheduler.set_timesteps(STEPS)
        self.timestep = int(model.scheduler.timesteps[STEP])
        self.signal = float(model.scheduler.alphas_cumprod[self.timestep])  # ᾱ
        self.grid = (self.unet.config.sample_size,) * 2
        self.frame = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @classmethod
    def load(
        cls,
        model_id: str = MODEL_ID,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        threshold: float = 0.1,
        **options: Any,
    ) -> DiffusionAffinity:
        """The affinity of `load_stable_diffusion(model_id, **options)`.

        options: weights, cache_dir, local_files_only, revision, as there. Raises MissingExtraError, WeightsError.
        """
        return cls(load_stable_diffusion(model_id, **options), device=device, dtype=dtype, threshold=threshold)

    @property
    def described(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "diffusion": self.name,
            "diffusion_sha256": self.fingerprint.sha256,
            "diffusion_timestep": self.timestep,
            "attention_threshold": self.threshold,
        }

    @sheltered()
    def attention(self, image: Tensor) -> list[SelfAttention]:
        """Image [3,H,W] in [0,1] of any size → the layers -4 and -6, by one pass of the UNet up to the former.

        Their tokens are rows of the square frame to which the picture is resized (nearest, as published).
        """
        check_images(image[None])
        frame = F.interpolate(image[None].to(self.device, torch.float32), (self.frame, self.frame), mode="nearest")
        latent = self.vae.encode((2 * frame - 1).to(self.dtype)).latent_dist.mean.float()
        latent = latent * self.vae.config.scaling_factor
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(content_seed(image)))
        noisy = self.signal**0.5 * latent + (1 - self.signal) ** 0.5 * noise.to(self.device)
        with _recorded(self.unet) as layers:
            self.unet(noisy.to(self.dtype), self.timestep, encoder_hidden_states=self.prompt)
        return [layers[name] for name in LAYERS]

    @sheltered()
    def refine(self, image: Tensor, scores: Tensor, *, threshold: float | None = None) -> Tensor:
        """Scores [K,h,w] of the whole picture → R [K,g,g] fp32 on Stable Diffusion's grid (g = 64).

        threshold: in place of the affinity's own. Raises ValueError for scores that are not finite, or no [K,h,w].
        """
        if scores.ndim != 3 or 0 in scores.shape or not scores.is_floating_point() or not scores.isfinite().all():
            reject("scores", "finite floats [K,h,w], none of them 0", f"{scores.dtype} {list(scores.shape)}")
        scores = scores.to(self.device, torch.float32)
        columns = F.interpolate(scores[None], self.grid, mode="bilinear", align_corners=False)[0].flatten(1).T
        for matrix in matrices_from_the_right(self.attention(image)):
            columns = normalise_(matrix, self.threshold if threshold is None else threshold) @ columns
        return columns.T.unflatten(1, self.grid).contiguous()


def content_seed(image: Tensor) -> int:
    """63 bits from size and 8-bit values of image [3,H,W]: the same on every device and for every float type."""
    pixels = (image.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()
    digest = hashlib.sha256(f"{list(pixels.shape)}".encode() + pixels.numpy().tobytes()).digest()
    return int.from_bytes(digest[:8]) >> 1


def matrices_from_the_right(layers: Sequence[SelfAttention]) -> Iterator[Tensor]:
    """A_10, A_9, ..., A_1: softmax(scale·Q Kᵀ) [N,N] fp32, last layer and last head first; one in memory at a time."""
    for query, key, scale in reversed(layers):
        for head in reversed(range(len(query))):
            yield ((query[head].float() * scale) @ key[head].float().T).softmax(1)


def normalise_(matrix: Tensor, threshold: float) -> Tensor:
    """In place: columns / (maximum + ε), entries < threshold to 0, rows / (sum + ε); rows are queries, ε = 1e-5."""
    matrix /= matrix.amax(0) + EPSILON
    matrix.masked_fill_(matrix < threshold, 0)
    matrix /= matrix.sum(1, keepdim=True) + EPSILON
    return matrix


class _AllRecorded(Exception):
    """What comes after the last wanted layer is not computed."""


class _Recorder:
    """Attention processor that keeps a layer's queries and keys, then does what the original one does."""

    def __init__(self, original: Any, name: str, layers: dict[str, SelfAttention]) -> None:
        self.original, self.name, self.layers = original, name, layers

    def __call__(self, attention: nn.Module, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        query, key = attention.to_q(hidden_states), attention.to_k(hidden_states)
        query, key = attention.head_to_batch_dim(query), attention.head_to_batch_dim(key)
        self.layers[self.name] = SelfAttention(query, key, attention.scale)
        if len(self.layers) == len(LAYERS):
            raise _AllRecorded
        return self.original(attention, hidden_states, *arguments, **keywords)


@contextmanager
def _recorded(unet: nn.Module) -> Iterator[dict[str, SelfAttention]]:
    """Self-attention by layer name, filled by the pass inside the block; the processors are put back in any case."""
    layers: dict[str, SelfAttention] = {}
    originals = {name: unet.get_submodule(name).processor for name in LAYERS}
    try:
        for name, original in originals.items():
            unet.get_submodule(name).set_processor(_Recorder(original, name, layers))
        yield layers
    except _AllRecorded:
        pass
    finally:
        for name, original in originals.items():
            unet.get_submodule(name).set_processor(original)
