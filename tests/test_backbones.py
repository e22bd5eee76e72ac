"""CLIP, DINO and SAM adapters, on small random instances of the libraries' own classes."""

import copy

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from segment_anything.modeling import Sam
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from s2clip.backbones import clip, clip_tower, sam, tiny_sam, vfm
from s2clip.backbones.clip import CLIPBackbone
from s2clip.backbones.positions import resample_positions
from s2clip.backbones.precision import freeze, resolve_dtype
from s2clip.backbones.weights import private_random_state
from s2clip.errors import WeightsError

CPU = torch.device("cpu")
TOLERANCE = {"rtol": 0, "atol": 5e-6}
"""The models below run in fp64, where no processor's order of sums shows; means, deviations and positional tables are
fp32, so that values up to 5 may differ by a few of its roundings (6e-7 each)."""


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def small_clip(*, quick_gelu: bool = True, head_width: int = 16, image_size: int = 48) -> CLIP:
    """Three blocks of width 32, patch 8, native grid 6×6, every parameter drawn: zero biases hide wrong order."""
    with private_random_state():
        model = CLIP(
            embed_dim=24,
            vision_cfg={"image_size": image_size, "layers": 3, "width": 32, "head_width": head_width, "patch_size": 8},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
            quick_gelu=quick_gelu,
        )
        randomise(model)
    return freeze(model, CPU, torch.float32).double()


def small_vit(**config) -> VisionTransformer:
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    with private_random_state():
        model = VisionTransformer(**(sizes | config))
        randomise(model)
    return freeze(model, CPU, torch.float32).double()


def small_sam() -> Sam:
    """Frame 64, cells of 8 pixels, two blocks: one with windows, one global with relative positions."""
    encoder = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "out_chans": 16}
    encoder |= {"qkv_bias": True, "use_rel_pos": True, "window_size": 3, "global_attn_indexes": (1,)}
    decoder = {"depth": 1, "mlp_dim": 16, "num_heads": 2, "iou_head_hidden_dim": 16}
    with private_random_state():
        model = tiny_sam.build_sam({"image_encoder": encoder, "mask_in_chans": 8, "decoder": decoder})
        randomise(model)
    return sam.freeze_sam(model, CPU, torch.float32).double()


def randomise(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)


def images(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(7)).double()


def run_clip(backbone: CLIPBackbone, pictures: torch.Tensor) -> torch.Tensor:
    """Embeddings of all tokens: every block as trained, then the head."""
    states, _ = backbone.hidden_states(pictures)
    return backbone.head(backbone.block(states[-1], backbone.layers - 1))


# --- CLIP ---


@pytest.mark.parametrize("head_width", [16, 8])
def test_blocks_and_head_reproduce_open_clip(head_width):
    backbone = CLIPBackbone(small_clip(head_width=head_width), open_clip.get_tokenizer("ViT-B-16"), name="small")
    pictures = images(48, 48)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    expected = backbone.model.encode_image((pictures - mean) / std)
    torch.testing.assert_close(run_clip(backbone, pictures)[:, 0], expected, **TOLERANCE)


def test_block_is_open_clips_block():
    backbone = CLIPBackbone(small_clip(), None, name="small")
    x = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(1)).double()
    for index in range(backbone.layers):
        torch.testing.assert_close(backbone.block(x, index), backbone.blocks[index](x), **TOLERANCE)


def test_clip_attributes_and_shapes():
    backbone = CLIPBackbone(small_clip(), None, name="small")
    assert (backbone.patch_size, backbone.layers, backbone.width, backbone.heads) == (8, 3, 32, 2)
    assert (backbone.embed_dim, backbone.native_size) == (24, 48)
    assert backbone.logit_scale == pytest.approx(float(backbone.model.logit_scale.exp()))
    states, grid = backbone.hidden_states(images(32, 80))
    assert grid == (4, 10)
    assert [tuple(state.shape) for state in states] == [(2, 41, 32)] * 3
    query, key, value = backbone.project_qkv(states[-1])
    assert query.shape == key.shape == value.shape == (2, 2, 41, 16)
    assert backbone.project_attention(value).shape == backbone.feed_forward(states[-1]).shape == (2, 41, 32)


def test_each_picture_of_a_batch_is_alone():
    backbone = CLIPBackbone(small_clip(), None, name="small")
    pictures = images(32, 80)
    torch.testing.assert_close(run_clip(backbone, pictures)[1:], run_clip(backbone, pictures[1:]), **TOLERANCE)


def test_patches_are_in_row_major_order():
    backbone = CLIPBackbone(small_clip(), None, name="small")
    backbone.model.visual.positional_embedding.data.zero_()
    picture = torch.full((1, 3, 24, 40), 0.5)
    picture[:, :, 8:16, 24:32] = 1.0  # the patch in row 1, column 3
    (embedded, *_), grid = backbone.hidden_states(picture)
    differs = (embedded[0, 1:] - embedded[0, 1]).abs().amax(-1) > 1e-3
    assert grid == (3, 5)
    assert differs.nonzero().flatten().tolist() == [1 * 5 + 3]


def test_sizes_that_are_no_multiples_of_the_patch_are_refused():
    backbone = CLIPBackbone(small_clip(), None, name="small")
    with pytest.raises(ValueError, match=r"images: .*multiples of 8.*50×48"):
        backbone.hidden_states(images(50, 48))
    with pytest.raises(ValueError, match=r"images: expected \[B,3,H,W\], received \[3, 48, 48\]"):
        backbone.hidden_states(images(48, 48)[0])
    with pytest.raises(ValueError, match=r"images: expected float"):
        backbone.hidden_states((images(48, 48) * 255).to(torch.uint8))


def test_text_is_that_of_open_clip_and_may_be_empty(monkeypatch):
    backbone = CLIPBackbone(small_clip(), open_clip.get_tokenizer("ViT-B-16"), name="small")
    texts = ["a photo of a cat.", "sky", "a house by the lake", "tree", "road"]
    expected = backbone.model.encode_text(backbone.tokenizer(texts))
    monkeypatch.setattr(clip_tower, "PROMPTS_PER_BATCH", 2)
    torch.testing.assert_close(backbone.encode_text(texts), expected, **TOLERANCE)
    assert backbone.encode_text([]).shape == (0, 24)
    assert backbone.unknown_words(["sky zzyzx"]) == []


@pytest.mark.parametrize("name", list(clip.ARCHITECTURES))
def test_configurations_have_the_activation_of_their_weights(name):
    config = open_clip.get_model_config(clip.ARCHITECTURES[name])
    # LAION's and EVA's have GELU
    assert config.get("quick_gelu", False) == (name not in ("ViT-H-14", "EVA02-B-16", "EVA02-L-14"))


def test_wrong_activation_is_an_error():
    clip.check_activation(small_clip(quick_gelu=True), quick=True, name="ViT-B-16")
    clip.check_activation(small_clip(quick_gelu=False), quick=False, name="ViT-H-14")
    with pytest.raises(WeightsError, match=r"ViT-B-16: .*trained with QuickGELU.*built with GELU"):
        clip.check_activation(small_clip(quick_gelu=False), quick=True, name="ViT-B-16")
    with pytest.raises(WeightsError, match=r"ViT-H-14: .*trained with GELU.*built with QuickGELU"):
        clip.check_activation(small_clip(quick_gelu=True), quick=False, name="ViT-H-14")


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_stays_close_and_keeps_norms_and_positions_in_float32(dtype, error):
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    full = CLIPBackbone(small_clip(), tokenizer, name="small")
    half = CLIPBackbone(freeze(small_clip().float(), CPU, dtype), tokenizer, name="small")
    visual = half.model.visual
    assert half.dtype == visual.proj.dtype == visual.transformer.resblocks[0].attn.in_proj_weight.dtype == dtype
    assert visual.ln_pre.weight.dtype == visual.positional_embedding.dtype == torch.float32
    for run in (lambda b: run_clip(b, images(40, 56)), lambda b: b.encode_text(["a cat", "sky"])):
        expected, received = run(full), run(half)
        assert received.dtype == dtype
        assert (received.float() - expected).norm() < error * expected.norm()


def test_backbones_are_frozen():
    backbone = CLIPBackbone(small_clip().train(), None, name="small")
    features = vfm.ViTFeatures(small_vit().train(), name="small")
    for module in (backbone, features, vfm.VisionFeatures(small_sam(), "small", None)):
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(module.training for root in (backbone, features) for module in root.modules())


# --- positions ---


def test_clip_resamples_its_positions_by_the_chosen_way():
    model = small_clip()
    table = model.visual.positional_embedding
    for interp in ("meta", "timm", "bilinear"):
        backbone = CLIPBackbone(copy.deepcopy(model), None, name="small", pos_embed_interp=interp)
        resized = CLIP(
            embed_dim=24,
            vision_cfg={"image_size": (72, 32), "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
            quick_gelu=True,
        )
        state = model.state_dict()
        patches = resample_positions(table[1:], (6, 6), (9, 4), interp)
        state["visual.positional_embedding"] = torch.cat([table[:1], patches])
        resized.double().load_state_dict(state)
        pictures = images(72, 32)
        normalised = (pictures - backbone.mean[:, None, None]) / backbone.std[:, None, None]
        expected = resized.eval().encode_image(normalised)
        torch.testing.assert_close(run_clip(backbone, pictures)[:, 0], expected, **TOLERANCE)


# --- DINO ---

VITS = {
    "dino": {},
    "dinov2": {"init_values": 1e-1},
    "dinov2-reg4": {"init_values": 1e-1, "reg_tokens": 4, "no_embed_class": True},
    "embedded": {"dynamic_img_size": True, "global_pool": "token"},
}


def timm_patches(model: VisionTransformer, pictures: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return model.forward_features((pictures - mean) / std)[:, model.num_prefix_tokens :]


@pytest.mark.parametrize("kind", list(VITS))
def test_dino_equals_timm_at_native_size(kind):
    model = small_vit(**VITS[kind])
    received = vfm.ViTFeatures(model, name=kind).features(images(48, 48))
    assert received.shape == (2, 6, 6, 32)
    torch.testing.assert_close(received.flatten(1, 2), timm_patches(model, images(48, 48)), **TOLERANCE)


@pytest.mark.parametrize("kind", list(VITS))
@pytest.mark.parametrize("size", [(32, 72), (24, 96), (80, 64)])
def test_dino_equals_timm_at_other_sizes_when_asked(kind, size):
    model = small_vit(**(VITS[kind] | {"dynamic_img_size": True}))
    received = vfm.ViTFeatures(model, name=kind, pos_embed_interp="timm").features(images(*size))
    assert received.shape[1:3] == (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(received.flatten(1, 2), timm_patches(model, images(*size)), **TOLERANCE)


def test_meta_positions_are_the_default_except_for_register_models():
    for kind, differs in (("dino", True), ("dinov2", True), ("dinov2-reg4", False)):
        model = small_vit(**VITS[kind])
        default = vfm.ViTFeatures(model, name=kind).features(images(64, 32))
        timm_way = vfm.ViTFeatures(model, name=kind, pos_embed_interp="timm").features(images(64, 32))
        assert torch.equal(default, timm_way) != differs


def test_dino_meta_at_another_size_equals_timm_with_a_resampled_table():
    model = small_vit()
    resized = small_vit(img_size=(72, 32))
    state = model.state_dict()
    patches = resample_positions(state["pos_embed"][0, 1:], (6, 6), (9, 4), "meta")
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], patches[None]], dim=1)
    resized.load_state_dict(state)
    received = vfm.ViTFeatures(model, name="dino").features(images(72, 32))
    torch.testing.assert_close(received.flatten(1, 2), timm_patches(resized, images(72, 32)), **TOLERANCE)


def test_dino_enlarges_odd_sizes_to_cover_the_whole_picture():
    features = vfm.ViTFeatures(small_vit().float(), name="dino")
    odd = images(50, 31).float()
    enlarged = F.interpolate(odd, size=(56, 32), mode="bilinear", align_corners=False)
    assert features.features(odd).shape == (2, 7, 4, 32)
    assert torch.equal(features.features(odd), features.features(enlarged))
    assert features.features(images(1, 1)).shape == (2, 1, 1, 32)


@pytest.mark.parametrize("kind", list(VITS))
def test_dino_in_half_precision(kind):
    expected = vfm.ViTFeatures(small_vit(**VITS[kind]), name=kind).features(images(64, 32))
    half = freeze(small_vit(**VITS[kind]).float(), CPU, torch.float16)
    assert half.norm.weight.dtype == half.pos_embed.dtype == torch.float32
    received = vfm.ViTFeatures(half, name=kind).features(images(64, 32))
    assert received.dtype == torch.float16
    assert (received.float() - expected).norm() < 3e-3 * expected.norm()


# --- SAM ---


def test_sam_frame_of_released_models():
    assert sam.input_size((480, 640), 1024) == (768, 1024)  # the wheel's own helper says 341×1024
    assert sam.input_size((640, 480), 1024) == (1024, 768)
    assert sam.input_size((1, 5000), 1024) == (1, 1024)


def test_sam_preprocess_is_resize_normalise_pad():
    model = small_sam()
    frames, size = sam.preprocess(model, images(32, 16))
    assert size == (64, 32)
    assert frames.shape == (2, 3, 64, 64)
    assert frames[:, :, :, 32:].abs().max() == 0
    resized = F.interpolate(images(32, 16), size=(64, 32), mode="bilinear", antialias=True)
    expected = model.preprocess(resized * 255)
    torch.testing.assert_close(frames, expected, **TOLERANCE)


def test_sam_features_of_a_full_frame_are_the_neck():
    model = small_sam()
    pictures = images(64, 64)
    received = sam.SamFeatures(model, name="sam").features(pictures)
    expected = model.image_encoder(model.preprocess(pictures * 255)).permute(0, 2, 3, 1)
    torch.testing.assert_close(received, expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("size", "grid"), [((64, 128), (4, 8)), ((128, 64), (8, 4)), ((100, 77), (8, 6)), ((3, 200), (1, 8))]
)
def test_sam_features_leave_out_the_padding(size, grid):
    received = sam.SamFeatures(small_sam(), name="sam").features(images(*size))
    assert received.shape == (2, *grid, 16)
    assert received.isfinite().all()


def test_valid_cells_are_cut_exactly_or_resampled_to_cover_the_picture():
    rows = torch.arange(8.0)[None, None, :, None].expand(1, 1, 8, 8)
    assert torch.equal(sam.cut_valid(rows, (40, 64), 8)[0, :, 0, 0], torch.arange(5.0))
    # 44 pixels are 5.5 cells: 6 rows (round half to even) of 5.5/6 cells each, centres at (i + ½)·5.5/6 − ½
    received = sam.cut_valid(rows, (44, 64), 8)
    expected = ((torch.arange(6) + 0.5) * 5.5 / 6 - 0.5).clamp(min=0)
    assert received.shape == (1, 6, 8, 1)
    torch.testing.assert_close(received[0, :, 3, 0], expected, **TOLERANCE)
    columns = rows.transpose(2, 3)
    torch.testing.assert_close(sam.cut_valid(columns, (64, 44), 8)[0, 3, :, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sam_encoder_in_half_precision(dtype):
    expected = sam.SamFeatures(small_sam(), name="sam").features(images(64, 48))
    half = sam.freeze_sam(small_sam().float(), CPU, dtype)
    received = sam.SamFeatures(half, name="sam").features(images(64, 48))
    assert received.dtype == dtype
    assert half.mask_decoder.iou_token.weight.dtype == torch.float32
    assert (received.float() - expected).norm() < (3e-3 if dtype == torch.float16 else 3e-2) * expected.norm()


# --- names and random weights ---


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"model: expected one of tiny, ViT-B-16, .*, received 'ViT-Z'"):
        clip.load_clip("ViT-Z")
    with pytest.raises(ValueError, match=r"vfm: expected one of tiny-dino, dino-s16, .*, received 'dino'"):
        vfm.load_vfm("dino")
    with pytest.raises(ValueError, match=r"sam: expected one of sam-tiny, sam-vit-b, .*, received 'sam'"):
        sam.load_sam("sam")
    with pytest.raises(ValueError, match=r"dtype: expected float32, .*, or float64 on the CPU, received torch.float8"):
        clip.load_clip("ViT-B-16", weights="random", dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"dtype: expected float32, .*, or float64 on the CPU, received torch.float64"):
        resolve_dtype(torch.float64, torch.device("cuda"))


def test_random_weights_are_loud_repeatable_and_leave_the_random_state_alone(caplog):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = vfm.load_vfm("dino-s16", weights="random", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert "dino-s16: RANDOM WEIGHTS, the output means nothing" in caplog.text
    second = vfm.load_vfm("dino-s16", weights="random", device="cpu")
    pictures = images(32, 64)
    assert torch.equal(first.features(pictures), second.features(pictures))
    assert first.weights_sha256 == "random"
    assert (first.patch_size, first.width, first.dtype, first.device) == (16, 384, torch.float32, CPU)


# --- the released architectures, whole, on random weights ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("ViT-B-16", (12, 768, 12, 512, 16)),
        ("ViT-L-14", (24, 1024, 16, 768, 14)),
        ("ViT-H-14", (32, 1280, 16, 1024, 14)),
        ("MetaCLIP-B-16", (12, 768, 12, 512, 16)),
    ],
)
def test_released_clip_runs_on_random_weights(name, sizes):
    backbone = clip.load_clip(name, weights="random", device="cpu")
    attributes = (backbone.layers, backbone.width, backbone.heads, backbone.embed_dim, backbone.patch_size)
    assert attributes == sizes
    assert backbone.native_size == 224
    pictures = images(224, 112, batch=1)
    tokens = run_clip(backbone, pictures)
    assert tokens.shape == (1, 1 + (224 // sizes[4]) * (112 // sizes[4]), sizes[3])
    texts = backbone.encode_text(["a photo of a cat.", "a photo of the sky."])
    assert texts.shape == (2, sizes[3])
    assert tokens.isfinite().all()
    assert texts.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in vfm.ARCHITECTURES if name.startswith(("dino-", "dinov2-"))])
def test_released_dino_runs_on_random_weights(name):
    features = vfm.load_vfm(name, weights="random", device="cpu")
    tokens = features.features(images(224, 112, batch=1))
    assert tokens.shape == (1, 224 // features.patch_size, 112 // features.patch_size, features.width)
    assert features.native_grid == ((37, 37) if "v2" in name else (224 // features.patch_size,) * 2)
    assert tokens.isfinite().all()


@pytest.mark.slow
def test_released_sam_encoder_runs_on_random_weights():
    features = vfm.load_vfm("sam-b", weights="random", device="cpu")
    assert features.features(images(224, 112, batch=1)).shape == (1, 64, 32, 256)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("sam-vit-b", 12), ("sam-vit-l", 24), ("sam-vit-h", 32)])
def test_released_sam_is_built_on_random_weights(name, layers):
    model = sam.load_sam(name, weights="random", device="cpu", dtype=torch.bfloat16)
    assert len(model.image_encoder.blocks) == layers
    assert model.fingerprint.sha256 == "random"
