"""RADSeg: held to a dense re-statement, its checkpoint in NVIDIA's layout, and what it refuses."""

import argparse
import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from open_clip.model import _build_text_tower
from PIL import Image
from safetensors.torch import save_file
from small_models import fill, picture, small_clip
from timm.models.vision_transformer import VisionTransformer

from s2clip import Segmenter
from s2clip.backbones import language_radio, weights
from s2clip.backbones.language_radio import LanguageRadio
from s2clip.backbones.radio_checkpoint import LanguageHead, multiplied_out
from s2clip.backbones.tokenizers import HashTokenizer
from s2clip.backbones.vfm import ViTFeatures
from s2clip.backbones.weights import Fingerprint
from s2clip.cli import main
from s2clip.encoding.encoded import Encoded
from s2clip.errors import MissingExtraError, WeightsError
from s2clip.methods import get_method
from s2clip.pictures.windows import Box
from s2clip.published.catalogue import METHODS, default_methods, methods_for
from s2clip.published.radseg import RadSeg, whole_strides

PATCH, WIDTH, HEADS, LAYERS, OUTPUTS = 8, 24, 2, 3, 16
TEXT = {
    "embed_dim": OUTPUTS,
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 50,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}
WINDOWS = {"short_side": 40, "crop": 32, "stride": 16}


def tower(*_):
    options = {"img_size": 64, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
    with weights.private_random_state():
        model = VisionTransformer(
            **options, init_values=1e-5, num_classes=0, reg_tokens=7, no_embed_class=True, final_norm=False
        )
    fill(model, 5, scale=0.3)
    model.patch_embed.proj.bias.data.zero_()
    return model.eval().requires_grad_(False)


def language_head():
    with weights.private_random_state():
        return fill(LanguageHead(WIDTH, OUTPUTS, 20, inner=2), 6, scale=0.4)


def text_tower():
    with weights.private_random_state():
        return fill(_build_text_tower(OUTPUTS, TEXT["text_cfg"]), 7, scale=0.3)


def small_radio(dtype=torch.float32):
    vision = ViTFeatures(tower().to(dtype), name="small", pos_embed_interp="radio")
    parts = (vision, language_head().to(dtype), text_tower())
    return LanguageRadio(*parts, HashTokenizer(8, 50), name="small", fingerprint=Fingerprint("random"))


def dense_window(model, image):
    """[3,H,W] normalised → [N,D] of the last block, from the weights: heads and tokens one by one."""
    tokens, grid = ViTFeatures(model, name="small", pos_embed_interp="radio")._embed(image[None])
    x = tokens[0].double()
    for block in model.blocks[:-1]:
        x = block(x[None])[0]
    last, size = model.blocks[-1], WIDTH // HEADS
    q, k, v = last.attn.qkv(last.norm1(x)).chunk(3, -1)
    heads = [slice(size * head, size * (head + 1)) for head in range(HEADS)]
    first = [torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(size), -1) @ v[:, own] for own in heads]
    output = last.attn.proj(torch.cat(first, 1))
    again = []
    for own in heads:
        unit = output[:, own] / output[:, own].norm(dim=1, keepdim=True)
        scores = 10 * unit @ unit.T
        again.append(torch.softmax(scores.masked_fill(scores < 0, -math.inf), -1) @ v[:, own])
    x = x + last.ls1.gamma * last.attn.proj(torch.cat(again, 1))
    x = x + last.ls2.gamma * last.mlp(last.norm2(x))
    return x[8:], grid


def dense_picture(segmenter, image):
    """uint8 [3,H,W] → unit vectors [h,w,C] of the whole picture."""
    model, head = segmenter.clip.vision.model, segmenter.clip.language
    method = segmenter.method
    canvas = method.extension.prepare(image, method, PATCH).double()
    rows, columns = canvas.shape[1] // PATCH, canvas.shape[2] // PATCH
    total, hits = torch.zeros(rows, columns, WIDTH, dtype=torch.float64), torch.zeros(rows, columns, 1)
    side = method.crop // PATCH
    for top in {min(start, canvas.shape[1] - 32) for start in range(0, canvas.shape[1], 16)}:
        for left in {min(start, canvas.shape[2] - 32) for start in range(0, canvas.shape[2], 16)}:
            window, _ = dense_window(model, canvas[:, top : top + 32, left : left + 32])
            y, x = top // PATCH, left // PATCH
            total[y : y + side, x : x + side] += window.view(side, side, -1)
            hits[y : y + side, x : x + side] += 1
    flat = (total / hits).flatten(0, 1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    similarity = unit @ unit.T
    scores = 10 * (similarity - similarity.mean())
    flat = torch.softmax(scores.masked_fill(scores < 0, -math.inf), -1) @ flat
    h = head.fc1(flat)
    for block in head.blocks:
        h = h + block[2](F.gelu(block[0](h)))
    joint = head.final[2](F.gelu(head.final[0](h)))
    return (joint / joint.norm(dim=1, keepdim=True)).view(rows, columns, -1)


@pytest.mark.parametrize("size", [(40, 57), (71, 40)])
def test_radseg_is_its_formula(size):
    image = picture(*size)
    segmenter = Segmenter(small_radio(), method=get_method("radseg", **WINDOWS))
    exact = Segmenter(small_radio(torch.float64), method=get_method("radseg", **WINDOWS))
    encoded = segmenter.encode(image)
    expected = dense_picture(exact, image)
    assert encoded.canvas[0] % 16 == encoded.canvas[1] % 16 == 0
    torch.testing.assert_close(encoded.features[0].permute(1, 2, 0).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_picture_becomes_whole_strides_as_published():
    method = get_method("radseg")
    assert whole_strides((375, 500), method) == (672, 672)  # 500 → 672, 375·672/500 = 504 → 672
    assert whole_strides((448, 672), method) == (448, 672)
    assert whole_strides((224, 300), method) == (448, 448)
    assert whole_strides((100, 200), method) == (336, 336)
    assert whole_strides((375, 500), get_method("radseg", crop=None)) == (375, 500)


def encoded_of(features, size):
    rows, columns = features.shape[1:]
    box = Box(0, 0, rows, columns)
    picture = torch.zeros(3, *size, dtype=torch.uint8)
    return Encoded(picture, features[None], (box,), box, (rows, columns), (rows, columns), True)


def test_classes_that_are_nowhere_probable_are_dropped():
    text = torch.eye(4)
    features = F.normalize(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0.999, 0]]), dim=1).T[:, None]
    encoded, method = encoded_of(features, (2, 4)), get_method("radseg", extension=RadSeg(prompt_denoising=0.6))
    settings = (text, (0, 1, 2, 2), None, None, method)
    decision = method.extension.decide(encoded, *settings, with_scores=True)
    # At the right words 1 and 2 share the probability: 0.525 and 0.475, neither reaches 0.6 and one class is left.
    assert decision.labels.unique().tolist() == [0]
    assert decision.scores.whole((2, 4))[1:].abs().max() == 0
    lower = get_method("radseg", extension=RadSeg(prompt_denoising=0.5))
    decision = lower.extension.decide(encoded, text, (0, 1, 2, 2), None, None, lower, with_scores=False)
    assert decision.labels[:, 0].tolist() == [0, 0]
    assert decision.labels[:, 3].tolist() == [1, 1]
    assert abs(decision.confidence[0, 3].item() - 1 / (1 + math.exp(-0.1 / math.sqrt(1.998)))) < 1e-3
    none = get_method("radseg", extension=RadSeg(prompt_denoising=1.0))
    right = encoded_of(features[:, :, 1:], (2, 2))
    everything = none.extension.decide(right, text, (0, 1, 2, 2), None, None, none, with_scores=False)
    assert everything.labels.unique().tolist() == [1]  # where all would go, the best stays


def test_radseg_runs_on_clip_too():
    segmenter = Segmenter(small_clip(), method=get_method("radseg", **WINDOWS))
    result = segmenter.set_classes("sky, house; hut, tree")(picture(40, 57))
    assert result.segmentation.shape == (40, 57)
    assert 0 <= result.segmentation.min() <= result.segmentation.max() < 3


def published(model, head, *, teachers=("dino_v2", "siglip2")):
    """What `torch.save` is given by NVIDIA's training code."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "patch_embed.proj.weight":
            state["patch_generator.embedder.weight"] = tensor.flatten(1)
        elif name == "pos_embed":
            state["patch_generator.pos_embed"] = tensor
        elif name == "cls_token":
            state["patch_generator.cls_token.token"] = torch.cat([tensor[0], model.reg_token[0]])
        elif name.startswith("blocks."):
            state[name.replace(".gamma", ".grandma")] = tensor
    state = {f"base_model.{name}": tensor.clone() for name, tensor in state.items()}
    state |= {f"_heads.1.{name}": tensor.clone() for name, tensor in head.state_dict().items()}
    state |= {"_heads.0.fc1.weight": torch.zeros(3, 3), "input_conditioner.norm_mean": torch.zeros(3, 1, 1)}
    args = argparse.Namespace(teachers=[{"name": name, "type": name} for name in teachers], mlp_version="v2")
    return {"state_dict": state, "args": args, "epoch": 3}


@pytest.fixture
def small_world(monkeypatch):
    monkeypatch.setattr(language_radio, "_build_radio", tower)
    monkeypatch.setattr(language_radio, "text_config", lambda: TEXT)
    monkeypatch.setattr(language_radio, "load_tokenizer", lambda *_, **__: HashTokenizer(8, 50))


def test_nvidias_checkpoint_loads_with_its_language_head(tmp_path, small_world):
    save_file({f"text.{key}": value for key, value in text_tower().state_dict().items()} | {"visual.x": torch.ones(2)},
              tmp_path / "siglip2-g.safetensors")  # fmt: skip
    path = tmp_path / "c-radio_v3-b_half.pth.tar"
    torch.save(published(tower(), language_head()), path)
    options = {"cache_dir": tmp_path, "local_files_only": True, "device": "cpu", "method": "radseg"}
    segmenter = Segmenter.from_pretrained("RADIO-B-16", **options, **WINDOWS)
    expected = Segmenter(small_radio(), method=segmenter.method)
    image = picture(40, 57)
    assert torch.equal(segmenter.encode(image).features, expected.encode(image).features)
    assert torch.equal(segmenter.clip.encode_text(["a house"]), expected.clip.encode_text(["a house"]))
    assert segmenter.set_classes("sky, house")(image).segmentation.shape == (40, 57)
    for content, message in (
        (published(tower(), language_head(), teachers=("dino_v2", "sam")), "no language head: expected a teacher"),
        ({"weights": 3}, "no checkpoint of NVIDIA's"),
        (published(tower(), torch.nn.Linear(3, 3)), "a language head of another make: bias, weight"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=f"RADIO-B-16: .*{message}"):
            Segmenter.from_pretrained("RADIO-B-16", **options)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(WeightsError, match="truncated"):
        Segmenter.from_pretrained("RADIO-B-16", **options)


def test_weights_are_multiplied_out_of_their_factors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    left, right = F.normalize(torch.randn(6, generator=generator), dim=0), F.normalize(torch.ones(4), dim=0)
    own = "a.parametrizations.weight"
    state = {f"{own}.original": weight, f"{own}.0.scale": torch.tensor([[0.3]]), f"{own}.0._u": left,
             f"{own}.0._v": right, f"{own}.0._sn_version": torch.tensor(2), "a.bias": torch.ones(6)}  # fmt: skip
    plain = multiplied_out(state)
    assert set(plain) == {"a.weight", "a.bias"}
    expected = weight * ((F.softplus(torch.tensor(0.3)) + 0.05) / (left @ weight @ right + 1e-6))
    torch.testing.assert_close(plain["a.weight"], expected)
    packed = {f"{own}.original": weight, f"{own}.0.parts.0.scale": torch.tensor([[2.0]]),
              f"{own}.0.parts.0._u": left[:2], f"{own}.0.parts.0._v": right}  # fmt: skip
    expected = torch.cat([weight[:2] * 2 / (left[:2] @ weight[:2] @ right + 1e-6), weight[2:]])
    torch.testing.assert_close(multiplied_out(packed)["a.weight"], expected)


def test_a_radio_with_another_method_is_refused_in_one_line(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    arguments = ["segment", str(tmp_path / "a.png"), "--classes", "sky", "--model", "RADIO-B-16", "--method", "naclip"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 2
    assert "method: expected radseg for model RADIO-B-16, which is no CLIP, received 'naclip'" in answer.output


def test_a_radio_takes_the_method_that_goes_with_it_where_none_is_named(tmp_path, small_world, monkeypatch):
    monkeypatch.setattr(language_radio, "load_language_radio", lambda *_, **__: small_radio())
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    arguments = ["segment", str(tmp_path / "a.png"), "--classes", "sky, house", "--model", "radio-b/16", "--quiet"]
    sizes = [f"--{name.replace('_', '-')}={WINDOWS[name]}" for name in ("short_side", "crop", "stride")]
    answer = CliRunner().invoke(main, [*arguments, *sizes, "-o", str(tmp_path / "out"), "--weights", "random"])
    assert answer.exit_code == 0, answer.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["method"]["name"] == "radseg"
    assert Segmenter.from_pretrained("RADIO-L-16", weights="random", device="cpu", **WINDOWS).method.name == "radseg"
    assert Segmenter.from_pretrained("tiny", device="cpu").method.name == "s2clip"
    assert methods_for("RADIO-L-16") == ("radseg",)
    assert methods_for("tiny") == methods_for("ViT-B-16") == tuple(METHODS)
    assert default_methods("ViT-B-16", "clip", "s2clip") == ("clip", "s2clip")
    with pytest.raises(ValueError, match=r"^model: expected one of tiny, .* received 'RADIO-B'"):
        default_methods("RADIO-B", "s2clip")


@pytest.mark.slow
def test_radseg_in_its_real_architecture_on_random_weights():
    options = {"weights": "random", "device": "cpu", "method": "radseg", "templates": "plain"}
    segmenter = Segmenter.from_pretrained("RADIO-B-16", short_side=224, crop=224, **options)
    assert (segmenter.clip.embed_dim, segmenter.clip.layers, segmenter.clip.prefix_tokens) == (1536, 12, 8)
    result = segmenter.set_classes("sky, house; hut, tree")(picture(70, 96))
    assert result.segmentation.shape == (70, 96)
    assert result.confidence.isfinite().all()


def test_without_transformers_the_extra_is_named_before_any_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = r"^RADIO-B-16: its words need transformers: pip install 's2clip\[radseg\]'$"
    with pytest.raises(MissingExtraError, match=said):
        Segmenter.from_pretrained("RADIO-B-16", method="radseg", cache_dir=tmp_path, device="cpu")
