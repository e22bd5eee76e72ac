"""Backbones of a few thousand parameters with fixed random weights, in the real classes."""

import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from s2clip.backbones.clip import CLIPBackbone
from s2clip.backbones.tiny_sam import build_sam
from s2clip.backbones.vfm import ViTFeatures
from s2clip.backbones.weights import Fingerprint
from s2clip.testing import normal

WIDTH, HEADS, LAYERS, PATCH = 48, 3, 6, 8


def fill(model, seed, scale=0.15):
    """Weights large enough for attention that is far from uniform; small biases, so that patches are not all alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in name or "ln_" in name
            parameter.copy_(
                noise * (scale / 5 if name.endswith("bias") else scale) + (norm and name.endswith("weight"))
            )
    return model


class HashTokenizer:
    """One id per word, from its letters; 0 pads, 1 starts, 62 is unknown, 63 ends."""

    def __call__(self, texts):
        tokens = torch.zeros(len(texts), 16, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids = self.ids(text)
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    def ids(self, text):
        return 1, *[2 + sum(map(ord, word)) * 7 % 60 for word in text.lower().replace(".", "").split()][:14], 63

    def unknown_words(self, texts):
        return [word for text in texts for word in text.split() if word.startswith("zyx")]


def small_clip(seed=0, patch=PATCH, layers=LAYERS):
    generator_state = torch.random.get_rng_state()
    model = CLIP(
        embed_dim=32,
        vision_cfg=CLIPVisionCfg(
            layers=layers, width=WIDTH, head_width=WIDTH // HEADS, patch_size=patch, image_size=32
        ),
        text_cfg=CLIPTextCfg(context_length=16, vocab_size=64, width=32, heads=2, layers=2),
    )
    torch.random.set_rng_state(generator_state)
    return CLIPBackbone(fill(model, seed).eval(), HashTokenizer(), name="small")


def small_vfm(seed=1, patch=4):
    generator_state = torch.random.get_rng_state()
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=patch, embed_dim=24, depth=2, num_heads=2, num_classes=0
    )
    torch.random.set_rng_state(generator_state)
    return ViTFeatures(fill(model, seed).eval(), name="small-dino")


def picture(height, width, seed=0):
    """uint8 [3,H,W]: coloured blocks with noise, so that windows and patches differ."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(1, 3, 5, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(blocks, (height, width), mode="nearest")[0]
    return ((smooth * 0.7 + torch.rand(3, height, width, generator=generator) * 0.3) * 255).to(torch.uint8)


def coarse_map(size, seed, classes=6):
    """(labels [H,W], probabilities [K,H,W]) of blobs: what SAM is given to refine."""
    logits = 3 * torch.nn.functional.interpolate(normal(1, classes, 6, 7, seed=seed), size, mode="bilinear")[0]
    probability = logits.softmax(0)
    return probability.argmax(0), probability


def small_sam(seed=2, frame=64, patch=8):
    """SAM of the released structure on a frame of 64 pixels: low-resolution masks of 32x32, IoUs around 0.5."""
    generator_state = torch.random.get_rng_state()
    sam = build_sam(
        {
            "image_encoder": {
                "img_size": frame,
                "patch_size": patch,
                "embed_dim": 24,
                "depth": 1,
                "num_heads": 2,
                "out_chans": 16,
                "use_rel_pos": True,
                "window_size": 0,
                "global_attn_indexes": [0],
            },
            "mask_in_chans": 8,
            "decoder": {"depth": 2, "mlp_dim": 32, "num_heads": 2, "iou_head_hidden_dim": 16},
        }
    )
    torch.random.set_rng_state(generator_state)
    fill(sam, seed, scale=0.5)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        positions = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        positions.copy_(torch.randn(positions.shape, generator=generator))
    sam.fingerprint = Fingerprint("random")
    return sam.eval().requires_grad_(False)


def exact_sam(seed=2, **options):
    """`small_sam` with a decoder in fp64 for prompts of any dtype: two ways to its masks differ by their formula alone.

    In fp32 the order of a sum, which is the processor's, moves its logits (up to 9) by as much as 5e-4 from fp64's.
    """
    sam = small_sam(seed, **options).double()
    places = sam.prompt_encoder.pe_layer
    encode = places._pe_encoding
    places._pe_encoding = lambda coordinates: encode(coordinates.double())  # segment_anything rounds them to fp32
    sam.prompt_encoder.mask_downscaling.register_forward_pre_hook(lambda _, masks: (masks[0].double(),))
    return sam
