"""The table of models is what the libraries know, and its families give what the libraries' own forward gives."""

import json
from importlib.resources import files
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from click.testing import CliRunner
from open_clip.model import _build_text_tower
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from small_models import fill
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit, _radio_vit_cfg
from timm.models.vision_transformer import VisionTransformer, _convert_radio

from s2clip.backbones import checkpoints, model_table, vfm, weights
from s2clip.backbones.clip import ARCHITECTURES, build_clip
from s2clip.backbones.model_table import MODELS, find_row
from s2clip.backbones.positions import resample_positions
from s2clip.backbones.rotary_features import RotaryFeatures
from s2clip.cli import main
from s2clip.errors import WeightsError

VISION = list(MODELS["vision"])
SAMS = {name: row for name, row in MODELS["masks"].items() if row.family == "sam"}
LARGE = [name for name in VISION if MODELS["vision"][name].parameters > 200]


DOCUMENTED = (Path(__file__).parents[1] / "docs" / "extending.md").read_text().split("```yaml\n")[1].split("```")[0]


def millions(model):
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1)


@pytest.mark.parametrize("name", VISION)
def test_vision_rows_are_what_timm_knows(name):
    check_vision_row(MODELS["vision"][name])


def test_the_row_that_the_docs_add_makes_a_model(tmp_path):
    table = tmp_path / "models.yaml"
    table.write_text(
        (files("s2clip.data") / "models.yaml").read_text() + "".join(f"  {line}\n" for line in DOCUMENTED.splitlines())
    )
    written = model_table.read_table(table)
    assert list(written["words"]) == [*MODELS["words"], "dinov2-g14"]  # the last kind of the file
    check_vision_row(written["words"]["dinov2-g14"])


def check_vision_row(row):
    config = timm.get_pretrained_cfg(row.architecture)
    assert (row.mean, row.std) == (tuple(config.mean), tuple(config.std))
    assert row.licence.lower() == config.license
    assert row.url == (config.url or "")
    with torch.device("meta"):
        model = vfm.FAMILIES[row.family][0](row.architecture)
    assert (model.patch_embed.patch_size[0], model.patch_embed.img_size[0]) == (row.patch, row.native)
    assert millions(model) == row.parameters
    if row.family != "radio":  # whose published table of positions is larger than timm's
        assert row.native == config.input_size[1]
        assert row.files[0][0] == config.hf_hub_id


def test_rows_of_radio_with_language_are_the_vision_rows_with_other_files():
    for letter in "BL":
        speaking, seeing = MODELS["clip"][f"RADIO-{letter}-16"], MODELS["vision"][f"radio-v3-{letter.lower()}16"]
        for field in ("architecture", "patch", "native", "mean", "std", "parameters", "licence"):
            assert getattr(speaking, field) == getattr(seeing, field)
        assert speaking.files[0][0] == seeing.files[0][0]


def test_the_row_of_words_is_what_open_clip_knows():
    row = MODELS["words"]["siglip2-g"]
    config, published = (
        open_clip.get_model_config(row.architecture),
        open_clip.get_pretrained_cfg(row.architecture, "webli"),
    )
    with torch.device("meta"):
        assert millions(_build_text_tower(config["embed_dim"], config["text_cfg"])) == row.parameters
    assert published["hf_hub"].strip("/") == row.files[0][0]


TAGS = {
    "DFN-B-16": "dfn2b",
    "DFN-L-14": "dfn2b",
    "DFN-H-14": "dfn5b",
    "MetaCLIP2-H-14": "metaclip2_worldwide",
    "EVA02-B-16": "merged2b_s8b_b131k",
    "EVA02-L-14": "merged2b_s4b_b131k",
}
"""Of weights whose activation or repository only open_clip's list tells."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_clip_rows_are_what_open_clip_knows(name):
    row, config = MODELS["clip"][name], open_clip.get_model_config(ARCHITECTURES[name])
    assert row.activation == ("quickgelu" if config.get("quick_gelu") else "gelu")
    with torch.device("meta"):
        model = build_clip(name)
    stem = model.visual.trunk.patch_embed if row.family == "eva" else model.visual
    assert (row.patch, row.native) == (stem.patch_size[0], model.visual.image_size[0])
    assert millions(model) == row.parameters
    if name in TAGS:
        listed = row.architecture.replace("worldwide-quickgelu", "worldwide")
        published = open_clip.get_pretrained_cfg(listed, TAGS[name])
        assert (row.mean, row.std) == (tuple(published["mean"]), tuple(published["std"]))
        assert published.get("quick_gelu", False) == (row.activation == "quickgelu")
        assert published["hf_hub"].strip("/") == row.files[0][0]


def test_mask_rows_have_the_size_of_their_architecture():
    with torch.device("meta"):
        assert {name: millions(sam_model_registry[row.architecture]()) for name, row in SAMS.items()} == {
            name: row.parameters for name, row in SAMS.items()
        }


def test_models_lists_every_model_and_finds_its_weights(tmp_path):
    (tmp_path / "dinov3-b16.safetensors").write_bytes(b"")
    answer = CliRunner().invoke(main, ["models", "--json", "--cache-dir", str(tmp_path)])
    assert answer.exit_code == 0
    rows = {row["name"]: row for row in json.loads(answer.stdout)["models"]}
    assert set(rows) == {"tiny", "tiny-dino", "sam-tiny"} | {name for names in MODELS.values() for name in names}
    assert rows["dinov3-b16"]["weights"] == str(tmp_path / "dinov3-b16.safetensors")
    assert {name for name, row in rows.items() if row["weights"] == "embedded"} == {"tiny", "tiny-dino", "sam-tiny"}
    assert rows["DFN-H-14"]["weights"] is None
    assert not any(row["gated"] for row in rows.values())  # of Meta's DINOv3, which is, timm has an open copy
    assert {name for name, row in rows.items() if not row["commercial"]} == {
        "MetaCLIP-B-16", "MetaCLIP-L-14", "MetaCLIP2-H-14", "DFN-B-16", "DFN-L-14", "DFN-H-14"
    }  # fmt: skip
    text = CliRunner().invoke(main, ["models", "--cache-dir", str(tmp_path)]).stdout
    for name in rows:
        assert f"\n  {name} " in text
    assert "apple-amlr*" in text


def test_the_help_of_model_and_sam_is_the_table():
    text = "".join(CliRunner().invoke(main, ["segment", "--help"]).stdout.split())
    for name in (*MODELS["clip"], *SAMS):
        assert name in text


def small_eva(**options):
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    with weights.private_random_state():
        model = Eva(**sizes, use_rot_pos_emb=True, use_fc_norm=False, dynamic_img_size=True, **options)
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return fill(model, 3).eval()


DINOV3 = {
    "rope_type": "dinov3",
    "rope_rotate_half": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "qkv_bias": False,
}
PE_SPATIAL = {
    "attn_type": "rope",
    "ref_feat_shape": (8, 8),
    "rope_grid_indexing": "xy",
    "use_post_transformer_norm": False,
}


@pytest.mark.parametrize("options", [DINOV3, PE_SPATIAL], ids=["dinov3", "pe-spatial"])
@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_rotary_features_are_timms_forward_without_its_prefix(options, size):
    model = small_eva(**options)
    backbone = RotaryFeatures(model, name="small")
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    expected = model.forward_features((images - mean) / std)[:, model.num_prefix_tokens :]
    features = backbone.features(images)
    assert features.shape == (2, size[0] // 8, size[1] // 8, 48)
    torch.testing.assert_close(features.flatten(1, 2), expected, rtol=1e-5, atol=1e-5)
    assert backbone.features(images[..., :37, :50]).shape == (2, 5, 7, 48)
    for part in backbone.last_projections(images):
        assert part.shape == features.shape


def radio_file(model):
    """Its tensors under the names that NVIDIA publishes."""
    prefix, tensors = "radio_model.model.", {}
    for name, tensor in model.state_dict().items():
        if name == "patch_embed.proj.weight":
            tensors[f"{prefix}patch_generator.embedder.weight"] = tensor.flatten(1).contiguous()
        elif name == "pos_embed":
            tensors[f"{prefix}patch_generator.pos_embed"] = tensor
        elif name == "cls_token":
            tensors[f"{prefix}patch_generator.cls_token.token"] = torch.cat([tensor[0], model.reg_token[0]])
        elif name.startswith("blocks."):
            tensors[prefix + name.replace(".gamma", ".grandma")] = tensor
    others = {
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "radio_model.summary_idxs": torch.arange(3),
    }
    return {name: tensor.detach().clone() for name, tensor in (tensors | others).items()}


def small_radio():
    options = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    with weights.private_random_state():
        model = VisionTransformer(**options, num_classes=0, reg_tokens=7, no_embed_class=True, final_norm=False)
    fill(model, 5)
    model.patch_embed.proj.bias.data.zero_()
    return model.eval().requires_grad_(False)


def test_radios_names_are_read_as_timm_reads_them():
    model = small_radio()
    ours, theirs = vfm._adapt_radio(radio_file(model)), _convert_radio(radio_file(model))
    assert ours.keys() == theirs.keys() == model.state_dict().keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)
        assert torch.equal(ours[name], model.state_dict()[name])


@pytest.mark.parametrize(("positions", "corners"), [("radio-corners", True), ("radio", False)])
@pytest.mark.parametrize("grid", [(8, 8), (5, 9), (11, 3)])
def test_radios_positions_are_those_of_timms_flexible_model(positions, corners, grid):
    config = _radio_vit_cfg(embed_dim=24, depth=1, num_heads=2, reg_tokens=7, pos_embed_align_corners=corners)
    with weights.private_random_state():
        flexible = NaFlexVit(cfg=config)
    table = torch.randn(128, 128, 24, generator=torch.Generator().manual_seed(2))
    flexible.embeds.pos_embed.data = table[None]
    patches = torch.zeros(1, grid[0] * grid[1], 24)
    flexible.embeds._apply_learned_pos_embed(patches, grid)
    ours = resample_positions(table.flatten(0, 1), (128, 128), grid, positions)
    torch.testing.assert_close(ours, patches[0], rtol=1e-5, atol=1e-5)


def test_radio_loads_its_published_layout_and_says_when_it_is_another(tmp_path, monkeypatch):
    model = small_radio()
    monkeypatch.setitem(vfm.FAMILIES, "radio", (lambda _name: small_radio(), vfm._adapt_radio))
    save_file(radio_file(model), tmp_path / "radio-v3-b16.safetensors")
    backbone = vfm.load_vfm("radio-v3-b16", cache_dir=tmp_path, device="cpu")
    assert backbone.pos_embed_interp == "radio-corners"
    assert backbone.features(torch.rand(1, 3, 30, 50)).shape == (1, 4, 7, 24)
    torch.testing.assert_close(backbone.mean, torch.tensor(MODELS["clip"]["ViT-B-16"].mean))
    save_file({"blocks.0.norm1.weight": torch.zeros(3), "head": torch.zeros(2)}, tmp_path / "radio-v3-b16.safetensors")
    with pytest.raises(
        WeightsError, match=r"radio-v3-b16: .* holds another model's weights\n  missing: .*\n  unexpected: head"
    ):
        vfm.load_vfm("radio-v3-b16", cache_dir=tmp_path, device="cpu")


def test_a_licence_without_commercial_use_is_said(caplog):
    from s2clip.backbones.model_table import say_licence

    say_licence("DFN-B-16")
    assert caplog.messages == ["DFN-B-16: the licence of its weights, apple-amlr, forbids commercial use"]
    for name in ("ViT-B-16", "dinov3-b16", "tiny"):
        say_licence(name)
    assert len(caplog.messages) == 1
    assert find_row("tiny") is None


def test_a_gated_model_says_where_its_licence_is_accepted(tmp_path, monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(url, **_):
        raise GatedRepoError("401", response=httpx.Response(401, request=httpx.Request("HEAD", url)))

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(checkpoints.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoints.huggingface_hub, "get_hf_file_metadata", refuse)
    with pytest.raises(
        WeightsError, match=r"do so at https://huggingface.co/timm/vit_base_patch16_dinov3.lvd1689m, then `hf auth"
    ):
        checkpoints.find("dinov3-b16", cache_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VISION if MODELS["vision"][name].family != "radio"])
def test_every_vision_row_gives_timms_features_at_native_size(name):
    backbone = vfm.load_vfm(name, weights="random", device="cpu")
    row = MODELS["vision"][name]
    with weights.private_random_state():
        library = timm.create_model(row.architecture, pretrained=False, num_classes=0).eval()
    library.load_state_dict(backbone.model.state_dict())
    images = torch.rand(1, 3, row.native, row.native, generator=torch.Generator().manual_seed(4))
    mean, std = (torch.tensor(values)[:, None, None] for values in (row.mean, row.std))
    with torch.inference_mode():
        expected = library.forward_features((images - mean) / std)[:, library.num_prefix_tokens :]
        features = backbone.features(images)
    assert features.shape == (1, row.native // row.patch, row.native // row.patch, library.embed_dim)
    torch.testing.assert_close(features.flatten(1, 2), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["radio-v3-b16", "radio-v3-l16"])
def test_radio_gives_the_features_of_timms_flexible_model(name):
    backbone = vfm.load_vfm(name, weights="random", device="cpu")
    row = MODELS["vision"][name]
    library = timm.create_model(f"naflex{row.architecture}".split(".")[0], pretrained=False, num_classes=0).eval()
    state = backbone.model.state_dict()
    moved = {key.replace("patch_embed.", "embeds."): tensor for key, tensor in state.items()}
    for key in ("pos_embed", "cls_token", "reg_token"):
        moved[f"embeds.{key}"] = moved.pop(key)
    moved["embeds.pos_embed"] = moved["embeds.pos_embed"].unflatten(1, (128, 128))
    if library.embeds.proj.weight.ndim == 2:
        moved["embeds.proj.weight"] = moved["embeds.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    library.load_state_dict(moved)
    images = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(4))
    mean, std = (torch.tensor(values)[:, None, None] for values in (row.mean, row.std))
    with torch.inference_mode():
        expected = library.forward_features((images - mean) / std)
        expected = expected["patches"] if isinstance(expected, dict) else expected
        features = backbone.features(images).flatten(1, 2)
    torch.testing.assert_close(features, expected[:, -features.shape[1] :], rtol=1e-5, atol=1e-5)
