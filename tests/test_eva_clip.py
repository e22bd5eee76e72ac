"""EVA02-CLIP and MetaCLIP 2: open_clip's own forward on small instances of its classes, and what is said on failure."""

import sys

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from small_models import HashTokenizer, fill, picture, small_sam, small_vfm
from timm.models.eva import Eva

from s2clip import Segmenter
from s2clip.backbones import clip, tokenizers, weights
from s2clip.backbones.eva_clip import EvaClip
from s2clip.backbones.positions import resample_positions
from s2clip.errors import MissingExtraError, WeightsError
from s2clip.methods import METHODS, get_method

TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
TRUNK = {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 32, "global_pool": "token"}
TRUNK |= {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "mlp_ratio": 8 / 3}
TRUNK |= {"use_rot_pos_emb": True, "ref_feat_shape": (16, 16)}


def small_model(img_size=32, **options):
    """open_clip's class around the trunk of its rows, small."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}
    with weights.private_random_state():
        model = CustomTextCLIP(embed_dim=32, vision_cfg=vision, text_cfg=TEXT)
        model.visual.trunk = Eva(**TRUNK, img_size=img_size, **options)
    return fill(model, 5).eval()


@pytest.fixture
def backbone():
    return EvaClip(small_model(), HashTokenizer(), name="small")


def normalised(backbone, images):
    return (images - backbone.mean[:, None, None]) / backbone.std[:, None, None]


def dense(backbone, images):
    """Embeddings of all tokens after all blocks."""
    states, _ = backbone.hidden_states(images)
    return backbone.head(backbone.block(states[-1], backbone.layers - 1))


def pixels(*size):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


def test_every_token_is_that_of_the_librarys_own_forward(backbone):
    trunk, images = backbone.model.visual.trunk, pixels(32, 32)
    ours = dense(backbone, images)
    expected = trunk.head(trunk.forward_features(normalised(backbone, images)))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[:, 0], backbone.model.encode_image(normalised(backbone, images)))
    assert (backbone.patch_size, backbone.native_size, backbone.layers, backbone.heads) == (8, 32, 4, 3)
    assert (backbone.width, backbone.embed_dim) == (48, 32)


@pytest.mark.parametrize("size", [(40, 72), (72, 40)])
def test_another_grid_is_the_same_model_built_for_it(backbone, size):
    larger = small_model(img_size=size)
    state, grid = backbone.model.state_dict(), (size[0] // 8, size[1] // 8)
    table = state["visual.trunk.pos_embed"][0]
    resampled = torch.cat([table[:1], resample_positions(table[1:], (4, 4), grid, "meta")])[None]
    larger.load_state_dict({**state, "visual.trunk.pos_embed": resampled})
    expected = larger.visual.trunk.forward_features(normalised(backbone, pixels(*size)))
    expected = larger.visual.trunk.head(expected)
    torch.testing.assert_close(dense(backbone, pixels(*size)), expected, rtol=1e-5, atol=1e-5)


def test_the_parts_of_a_block_make_the_block(backbone):
    states, grid = backbone.hidden_states(pixels(24, 40))
    x, index = states[2], 2
    query, key, value = backbone.project_qkv(x, index)
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    own = x + backbone.project_attention(mixed, index)
    own = own + backbone.feed_forward(own, index)
    torch.testing.assert_close(own, backbone.block(x, index), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(value, backbone.project_value(x, index))
    alone = backbone.project_qkv(x[:, 1:], index)  # without CLS the same patches are turned alike
    torch.testing.assert_close(alone[0], query[:, :, 1:], rtol=1e-5, atol=1e-5)
    extended = backbone.project_qkv(torch.cat([x, x[:, :1]], 1), index)[1]  # and a token behind them is not turned
    torch.testing.assert_close(extended[:, :, -1], key[:, :, 0], rtol=1e-5, atol=1e-5)
    assert grid == (3, 5)
    with pytest.raises(RuntimeError, match="7 tokens of a grid of 15 patches"):
        backbone.project_qkv(x[:, :7])


def test_compiled_blocks_are_given_the_turns_of_their_grid(backbone):
    expected = [dense(backbone, pixels(*size)) for size in ((32, 40), (40, 32))]  # grids of as many patches
    backbone.compile_blocks(backend="eager")
    for size, own in zip(((32, 40), (40, 32)), expected, strict=True):
        torch.testing.assert_close(dense(backbone, pixels(*size)), own, rtol=1e-5, atol=1e-5)


def test_words_are_those_of_the_librarys_text_tower(backbone):
    texts = ["a photo of a cat.", "sky", "a house by the lake"]
    expected = backbone.model.encode_text(backbone.tokenizer(texts))
    torch.testing.assert_close(backbone.encode_text(texts), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_it(name, backbone):
    image, ids = picture(40, 61), torch.arange(40 * 61).view(40, 61) // 700
    geometry = {"short_side": 32, "crop": None if METHODS[name].crop is None else 32}
    geometry |= {} if METHODS[name].crop is None else {"stride": 16}
    others = {"regions": lambda *_: ids, "vfm": small_vfm(), "sam": small_sam() if METHODS[name].uses_sam else None}
    segmenter = Segmenter(backbone, method=get_method(name, **geometry), **others)
    result = segmenter.set_classes("sky, house; hut, tree")(image)
    assert result.segmentation.shape == (40, 61)
    assert result.confidence.isfinite().all()


def test_half_precision_stays_close():
    full = EvaClip(small_model(), HashTokenizer(), name="small")
    half = EvaClip(clip.freeze(small_model(), torch.device("cpu"), torch.float16), HashTokenizer(), name="small")
    expected, received = dense(full, pixels(40, 24)), dense(half, pixels(40, 24))
    assert received.dtype == torch.float16
    assert (received.float() - expected).norm() < 5e-3 * expected.norm()


def test_a_published_layout_loads_and_another_models_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "build_clip", lambda _name: small_model())
    options = {"cache_dir": tmp_path, "device": "cpu", "local_files_only": True}
    save_file(small_model().state_dict(), tmp_path / "EVA02-B-16.safetensors")
    loaded = clip.load_clip("EVA02-B-16", **options)
    expected = EvaClip(small_model(), None, name="small")
    assert torch.equal(dense(loaded, pixels(32, 40)), dense(expected, pixels(32, 40)))
    save_file({"visual.conv1.weight": torch.zeros(3)}, tmp_path / "EVA02-B-16.safetensors")
    with pytest.raises(WeightsError, match=r"EVA02-B-16: .* holds another model's weights\n  missing: "):
        clip.load_clip("EVA02-B-16", **options)


def test_a_text_ends_at_the_end_token_of_metaclip_2():
    text = {**TEXT, "pool_type": "eos", "eos_id": 2}
    vision = {"layers": 2, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32}
    with weights.private_random_state():
        model = fill(CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text), 6).eval()
    tokenizer = tokenizers.HashTokenizer(16, 64, end=2)
    backbone = clip.CLIPBackbone(model, tokenizer, name="small")
    texts = ["sky", "a photo of a house by the lake", "word " * 30]
    tokens = tokenizer(texts)
    assert (tokens == 2).sum(1).tolist() == [1, 1, 1]
    assert int(tokens.max()) < 64
    torch.testing.assert_close(backbone.encode_text(texts), model.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_what_metaclip_2_needs_besides_is_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=r"MetaCLIP2-H-14: its tokenizer is not on this machine: hf download faceb"):
        clip.load_clip("MetaCLIP2-H-14", cache_dir=tmp_path, local_files_only=True, device="cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        MissingExtraError, match=r"^MetaCLIP2-H-14: its words need transformers: pip install 's2clip\[metaclip2\]'$"
    ):
        clip.load_clip("MetaCLIP2-H-14", cache_dir=tmp_path, device="cpu")
