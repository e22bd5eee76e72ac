"""The embedded CLIP: an `open_clip.model.CLIP` of other sizes, trained by `tools/train_clip.py` on scenes and captions.

Its activation is plain GELU. `tiny_dino` and `tiny_sam` hold the other two embedded models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from s2clip.backbones.tiny_file import load_model
from s2clip.backbones.tiny_tokenizer import WordTokenizer, read_vocabulary

# The released CLIP's normalisation, so that the embedded one is prepared by the same code.
IMAGE_MEAN = OPENAI_DATASET_MEAN
IMAGE_STD = OPENAI_DATASET_STD


def build_clip(config: dict[str, Any]) -> CLIP:
    """`config` as in open_clip's model files: embed_dim, vision_cfg, text_cfg."""
    model = CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=CLIPTextCfg(**config["text_cfg"]),
    )
    model.visual.image_mean, model.visual.image_std = IMAGE_MEAN, IMAGE_STD
    return model


def load_clip_model(random: bool = False, path: Path | None = None) -> tuple[CLIP, WordTokenizer]:
    """The tiny CLIP and its tokenizer; eval, frozen, fp32.

    random: the same architecture with random weights, the same ones in every call.
    path: another file written by `tools/train_clip.py`.
    """
    model = load_model(path, "clip", build_clip, random=random)
    return model, WordTokenizer(read_vocabulary(), model.context_length)
