"""Stable Diffusion of a few thousand weights, saved in the released model's layout."""

import json

import diffusers
import transformers
from small_models import fill

from s2clip.backbones import stable_diffusion
from s2clip.backbones.weights import private_random_state


def save_model(folder, grid=8):
    """Stable Diffusion's files with 2 heads per layer and pictures of 2·grid pixels."""
    with private_random_state():
        unet = diffusers.UNet2DConditionModel(
            sample_size=grid,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            cross_attention_dim=12,
            attention_head_dim=(2, 2, 2, 2),
            use_linear_projection=True,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        text = transformers.CLIPTextConfig(
            hidden_size=12,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            vocab_size=4,
            max_position_embeddings=7,
            bos_token_id=2,
            eos_token_id=3,
        )
        encoder = transformers.CLIPTextModel(text)
    for seed, (part, model) in enumerate({"unet": unet, "vae": vae, "text_encoder": encoder}.items()):
        fill(model, seed, scale=0.6).save_pretrained(folder / part)
    diffusers.PNDMScheduler(**stable_diffusion.SCHEDULE, **stable_diffusion.PNDM).save_pretrained(folder / "scheduler")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "!"
    (folder / "tokenizer").mkdir()
    for name, content in (
        ("vocab.json", {"!": 0, "a": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}),
        ("tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 7, **special}),
        ("special_tokens_map.json", special),
    ):
        (folder / "tokenizer" / name).write_text(json.dumps(content))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return folder
