"""The embedded DINO: a timm `VisionTransformer`, trained by `tools/train_dino.py` on scenes without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from s2clip.backbones.tiny_file import load_model

# The released DINO models' normalisation, so that the embedded one is prepared by the same code.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build_dino(config: dict[str, Any]) -> VisionTransformer:
    """A VisionTransformer with class token and no classifier; `config` holds timm's size arguments."""
    model = VisionTransformer(num_classes=0, global_pool="token", class_token=True, dynamic_img_size=True, **config)
    size = config["img_size"]
    model.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, size, size)}  # where timm.create_model puts it
    return model


def load_dino_model(random: bool = False, path: Path | None = None) -> VisionTransformer:
    """The tiny DINO: x [B,3,H,W], normalised by `pretrained_cfg`'s mean and std -> `forward_features(x)` [B,1+h·w,D].

    eval, frozen, fp32. H and W: any multiples of the patch size; position embeddings are resampled by timm.
    random: the same architecture with random weights, the same ones in every call.
    path: another file written by `tools/train_dino.py`.
    """
    return load_model(path, "dino", build_dino, random=random)
