"""What people try first with the Python API: it works, or one line says what to write instead."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import s2clip
from s2clip import Segmenter, scenes
from s2clip.errors import OutputError
from s2clip.names import match_name

ROOT = Path(__file__).parent.parent
CLASSES = "sky, water; sea, grass, house"


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("Tiny", method="CLIP").set_classes(CLASSES)


@pytest.fixture(scope="module")
def picture():
    return scenes.generate(0, (48, 64))[0]


def test_results_and_segmenters_say_what_they_are(segmenter, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.png")
    result = segmenter(tmp_path / "a.png")
    assert isinstance(result, s2clip.Result)
    assert re.fullmatch(r"Result\(.*a\.png, 64x48: \w+ \d+ %.*\)", repr(result))
    where = f"{segmenter.device} {str(segmenter.clip.dtype).removeprefix('torch.')}"
    described = f"tiny, method clip, {where}, 4 classes: sky, water; sea, grass, house"
    assert repr(segmenter) == f"Segmenter({described})"
    assert repr(Segmenter(segmenter.clip, method="clip")) == f"Segmenter(tiny, method clip, {where}, no classes set)"


def test_a_result_is_a_picture_in_a_notebook(segmenter, picture, monkeypatch):
    from io import BytesIO

    from PIL import ImageShow

    result = segmenter(picture)
    with Image.open(BytesIO(result._repr_png_())) as shown:
        assert shown.size == result.overlay().size
    colours = s2clip.Result(result.segmentation, result.confidence, result.classes).overlay(legend=False)
    assert len(colours.getcolors(1 << 20)) > 1
    monkeypatch.setattr(ImageShow, "_viewers", [])
    with pytest.raises(OutputError, match=r"overlay\(\)\.save"):
        result.show()


def test_a_batch_gives_a_list(segmenter, picture):
    single = segmenter(picture).segmentation
    array = np.stack([picture, picture])
    for batch in (array, torch.from_numpy(array).permute(0, 3, 1, 2)):
        results = segmenter(batch)
        assert len(results) == 2
        assert all(torch.equal(result.segmentation, single) for result in results)


def test_dtypes_by_name():
    assert Segmenter.from_pretrained("tiny", method="clip", device="cpu", dtype="bfloat16").clip.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype: expected float32, .*, or float64 on the CPU, received 'int8'"):
        Segmenter.from_pretrained("tiny", dtype="int8")


def test_names_as_people_write_them():
    from s2clip.backbones import clip, sam, vfm

    for name in ("vit-b-16", "ViT-B/16", "VIT_B_16", " ViT-B-16"):
        assert match_name("model", name, clip.CLIP_NAMES) == "ViT-B-16"
    for name in ("sam-b", "sam-vit-b", "SAM-B"):
        assert match_name("sam", name, sam.SAM_NAMES, sam.ALIASES) == "sam-vit-b"
        assert match_name("vfm", name, vfm.VFM_NAMES, sam.ALIASES) == "sam-vit-b"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: Segmenter("tiny"), r"Segmenter\.from_pretrained\('tiny'\)"),
        (lambda _: Segmenter.from_pretrained("tiny", methd="clip"), "did you mean 'method'"),
        (lambda _: Segmenter.from_pretrained("tiny", treshold=0.5), "did you mean 'threshold'"),
        (lambda _: Segmenter.from_pretrained("tiny", method="slip"), "did you mean 'sclip'"),
        (lambda _: Segmenter.from_pretrained("ViT-B-61"), "did you mean 'ViT-B-16'"),
        (lambda one: one.with_method("clip", logit_scal=1.0), "did you mean 'logit_scale'"),
        (lambda one: one.set_classes(None), 'classes: expected names, as "sky'),
        (lambda one: one.segment("photo.jpg", "sky"), r"segmenter\.encode\(picture\)"),
        (lambda one: one.scores("photo.jpg"), "encode"),
        (lambda one: one.stream("photo.jpg"), "of one make a list"),
        (lambda one: one.stream(np.zeros((4, 4, 3), np.uint8)), "of one make a list"),
    ],
)
def test_misuse_is_told(segmenter, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(segmenter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("refine", ["none", "SAM"])
def test_a_threshold_without_background_leaves_pixels_unlabelled(picture, refine, tmp_path):
    plain = Segmenter.from_pretrained("tiny", method="clip").set_classes(CLASSES)(picture)
    threshold = float(plain.confidence.median())
    cut = Segmenter.from_pretrained("tiny", method="clip", refine=refine, threshold=threshold).set_classes(CLASSES)
    result = cut(picture)
    coarse = result.segmentation if result.coarse is None else result.coarse
    below = plain.confidence < threshold
    assert below.any()
    assert torch.equal(coarse, plain.segmentation.masked_fill(below, 255))
    assert result.background is None
    paths = result.save(tmp_path)
    with Image.open(paths["png"]) as image:
        assert np.array_equal(np.asarray(image), result.segmentation.numpy())


def test_unlabelled_pixels_of_more_than_255_classes(picture):
    many = [f"word {index}" for index in range(300)]
    segmenter = Segmenter.from_pretrained("tiny", method="clip", threshold=1.0).set_classes(many)
    assert (segmenter(picture).segmentation == 65535).all()


def test_lists_that_may_not_be_what_was_meant_are_pointed_out(segmenter, caplog):
    other = segmenter.with_method("clip")
    other.set_classes(["sky, tree", "house"])
    other.set_classes("sky")
    said = [record.getMessage() for record in caplog.records]
    assert any("'sky, tree'" in line and "comma" in line for line in said)
    assert said[-1].startswith("classes: the single class 'sky' is given every pixel")


MYPY = """
[mypy]
cache_dir = {cache}
[mypy-s2clip.*]
follow_imports = silent
ignore_missing_imports = True
[mypy-torch.*,numpy.*,PIL.*,timm.*,open_clip.*,segment_anything.*,diffusers.*,transformers.*]
follow_imports = skip
"""


@pytest.mark.long
def test_the_readmes_python_passes_mypy(tmp_path):
    """Of s2clip its types count, as for a user who installed it; torch is skipped, whose own types take minutes."""
    text = "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S))
    known = "\nreveal_type(result)\nreveal_type(segmenter(['a.jpg']))\nreveal_type(segmenter.stream(['a.jpg']))\n"
    (tmp_path / "block.py").write_text(text + known)
    (tmp_path / "mypy.ini").write_text(MYPY.format(cache=tmp_path / "cache"))
    # in a process of its own, which mypy leaves without freeing its heap: that alone took 25 s of the tests' process
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "block.py"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}  # an editable install is found by Python, not by mypy
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = re.findall(r'Revealed type is "(.*)"', done.stdout)
    assert [one.replace("builtins.", "").replace("typing.", "") for one in revealed] == [
        "s2clip.results.result.Result",
        "list[s2clip.results.result.Result]",
        "Iterator[s2clip.results.result.Result]",
    ]
