"""EoMT as a source of regions: transformers' own forward, its published layout, and what is said where it fails."""

import sys

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from small_models import fill, picture
from transformers import EomtConfig, EomtForUniversalSegmentation

from s2clip import Segmenter, scenes
from s2clip.backbones import weights
from s2clip.backbones.model_table import MODELS
from s2clip.cli import main
from s2clip.errors import MissingExtraError, WeightsError
from s2clip.refinement import eomt

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_blocks": 1, "num_queries": 12}


def small_eomt(*_):
    with weights.private_random_state():
        model = EomtForUniversalSegmentation(
            EomtConfig(**SIZES, image_size=64, patch_size=8, num_labels=eomt.LABELS, num_upscale_blocks=1)
        )
    fill(model, 3, scale=0.4)
    model.attn_mask_probs.zero_()  # as at the end of its training
    return model.eval()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The folder of a cache that holds the model as its own library saves it."""
    monkeypatch.setattr(eomt, "build_eomt", small_eomt)
    small_eomt().save_pretrained(tmp_path / "repository")
    (tmp_path / "repository" / "model.safetensors").rename(tmp_path / "eomt-l.safetensors")
    return tmp_path


def test_its_row_is_what_transformers_builds():
    row = MODELS["masks"]["eomt-l"]
    with torch.device("meta"):
        model = eomt.build_eomt("eomt-l")
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == row.parameters
    assert (model.config.image_size, model.config.patch_size) == (row.native, row.patch)


@pytest.mark.parametrize("size", [(48, 61), (61, 48), (64, 64)])
def test_regions_are_the_surest_masks_of_the_librarys_forward(published, size):
    options = {"cache_dir": published, "device": "cpu", "local_files_only": True}
    source, image = eomt.load_eomt("eomt-l", {"score_threshold": 0.02}, **options), picture(*size)
    scale = 64 / max(size)
    inner = tuple(int(side * scale + 0.5) for side in size)
    pixels = F.interpolate(image[None].float() / 255, inner, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(getattr(MODELS["masks"]["eomt-l"], name))[:, None, None] for name in ("mean", "std"))
    frame = torch.zeros(1, 3, 64, 64)
    frame[:, :, : inner[0], : inner[1]] = (pixels - mean) / std
    with torch.no_grad():
        answer = small_eomt()(pixel_values=frame)
    probability, chosen = answer.class_queries_logits[0].softmax(-1).max(-1)
    kept = [query for query in range(12) if chosen[query] < 133 and probability[query] > 0.02]
    masks = F.interpolate(answer.masks_queries_logits, (64, 64), mode="bilinear")[..., : inner[0], : inner[1]]
    masks = F.interpolate(masks, size, mode="bilinear")[0].sigmoid()
    ids = source(image, None)
    assert ids.dtype == torch.int64
    for y in range(0, size[0], 7):
        for x in range(0, size[1], 7):
            best = max(range(len(kept)), key=lambda index: probability[kept[index]] * masks[kept[index], y, x])
            assert ids[y, x] == (best + 1 if masks[kept[best], y, x] >= 0.5 else 0)
    assert len(ids.unique()) > 2


def test_masks_that_are_nowhere_sure_are_no_regions():
    nothing = eomt.paint(torch.ones(2, 3, 4), torch.tensor([[0.0, 0.0, 9.0], [0.1, 0.0, 0.0]]), eomt.EomtMasks())
    assert nothing.tolist() == [[0] * 4] * 3


def test_damaged_and_foreign_files_are_told(published):
    options = {"cache_dir": published, "device": "cpu", "local_files_only": True}
    path = published / "eomt-l.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"eomt-l: cannot read .*truncated"):
        eomt.load_eomt("eomt-l", **options)
    save_file({"blocks.0.norm1.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"eomt-l: .* holds another model's weights"):
        eomt.load_eomt("eomt-l", **options)
    path.unlink()
    with pytest.raises(WeightsError, match="eomt-l: its weights are not on this machine"):
        eomt.load_eomt("eomt-l", **options)
    with pytest.raises(ValueError, match="region_options: expected the fields score_threshold, mask_threshold"):
        eomt.load_eomt("eomt-l", {"points_per_side": 3}, **options)
    with pytest.raises(ValueError, match=r"EomtMasks.mask_threshold: expected a number in 0..1"):
        eomt.EomtMasks(mask_threshold=2)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"eomt-l: needs transformers: pip install 's2clip\[eomt\]'"):
        eomt.build_eomt("eomt-l")


def test_corrclip_takes_its_regions_by_name(published):
    options = {"cache_dir": published, "local_files_only": True, "device": "cpu"}
    regions = {"regions": "eomt-l", "region_options": {"score_threshold": 0.02}}
    segmenter = Segmenter.from_pretrained("tiny", method="corrclip", **regions, **options)
    result = segmenter.set_classes("sky, tree")(scenes.generate(0)[0])
    assert result.segmentation.shape == (96, 128)
    described = segmenter.settings["regions"]
    assert (described["masks"], described["score_threshold"]) == ("eomt-l", 0.02)
    assert len(described["sha256"]) == 64


def test_corrclip_takes_sams_masks_where_nothing_is_said(tmp_path):
    Image.fromarray(scenes.generate(0)[0]).save(tmp_path / "0.png")
    arguments = ["segment", str(tmp_path / "0.png"), "--classes", "sky, tree", "--method", "corrclip", "-q"]
    answer = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    assert '"sam": "sam-tiny"' in (tmp_path / "out" / "run.json").read_text()


@pytest.mark.slow
def test_eomt_in_its_real_architecture_on_random_weights():
    source = eomt.load_eomt("eomt-l", weights="random", device="cpu")
    assert source(picture(70, 96), None).shape == (70, 96)
