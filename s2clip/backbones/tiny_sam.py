"""The embedded SAM: segment_anything's own classes in small, trained by `tools/train_sam.py` on the masks of scenes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from s2clip.backbones.tiny_file import load_model


def build_sam(config: dict[str, Any]) -> Sam:
    """A Sam; `config` holds `image_encoder` (ImageEncoderViT's arguments), `mask_in_chans` and `decoder` sizes.

    With S = img_size and p = patch_size the embedding is (S/p)² and the low-resolution mask logits are (4·S/p)².
    """
    encoder = dict(config["image_encoder"])
    decoder = config["decoder"]
    channels = encoder["out_chans"]
    grid = encoder["img_size"] // encoder["patch_size"]
    return Sam(
        image_encoder=ImageEncoderViT(norm_layer=partial(nn.LayerNorm, eps=1e-6), **encoder),
        prompt_encoder=PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(encoder["img_size"], encoder["img_size"]),
            mask_in_chans=config["mask_in_chans"],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=decoder["depth"],
                embedding_dim=channels,
                mlp_dim=decoder["mlp_dim"],
                num_heads=decoder["num_heads"],
            ),
            transformer_dim=channels,
            iou_head_depth=3,
            iou_head_hidden_dim=decoder["iou_head_hidden_dim"],
        ),
    )


def load_sam_model(random: bool = False, path: Path | None = None) -> Sam:
    """The tiny promptable SAM, used like the released ones: long side to `img_size`, zeros right and bottom.

    eval, frozen, fp32. Mask prompts are trained at 0.005·P, P the class's probability, zero where P is small.
    random: the same architecture with random weights, the same ones in every call.
    path: another file written by `tools/train_sam.py`.
    """
    return load_model(path, "sam", build_sam, random=random)
