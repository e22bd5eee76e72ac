"""What people type, line by line: each is done, or answered in one line that says what to type instead.

No wrong data in silence, long work that shows itself, small messages, traps of names, and what files are called.
"""

import json

import numpy as np
import pytest
from command_line import CLASSES, opened, paint

SKY = ("--classes", "sky, tree")


@pytest.fixture
def segment(run, tmp_path):
    """`s2clip segment` among a few pictures of one size and of one name."""
    for name in ("a.png", "one/a.png", "two/a.jpg", "two/a.png", "deep/er/b.png"):
        paint(tmp_path / name, size=(32, 48))
    for name in ("x.heic", "y.cr2", "notes.txt"):
        (tmp_path / "two" / name).touch()
    return lambda *arguments: run("segment", "--method", "clip", "--short-side", 32, *arguments)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png") if "overlay" not in path.name}


DONE = {
    "classes add up": (("a.png", "--classes", "sky", "--classes", "tree"), "2 classes: 0 sky, 1 tree", {"a.png"}),
    "classes by blanks": (("a.png", "--classes", "sky", "tree"), "2 classes: 0 sky, 1 tree", {"a.png"}),
    "classes before pictures": (("--classes", "sky", "tree", "a.png"), "2 classes: 0 sky, 1 tree", {"a.png"}),
    "a single class": (("a.png", "--classes", "sky"), "the single class 'sky' is given every pixel", {"a.png"}),
    "formats by commas": (("a.png", *SKY, "--format", "png,npz"), "out/a.npz", {"a.png"}),
    "formats by blanks": (("a.png", *SKY, "--format", "png", "npz"), "out/a.npz", {"a.png"}),
    "formats by repetition": (("a.png", *SKY, "--format", "png", "--format", "npz"), "out/a.npz", {"a.png"}),
    "a threshold alone": (("a.png", *SKY, "--threshold", 1), "a.png: no class 100 %", {"a.png"}),
    "names of any spelling": (("a.png", *SKY, "--model", "Tiny", "--refine", "SAM"), "a.png:", {"a.png"}),
    "what a folder holds else": (("two", *SKY), "1 HEIC (.heic), 1 RAW (.cr2)", {"a.jpg.png", "a.png.png"}),
    "folders in folders": (("deep", *SKY), "failed: deep: no pictures in this folder", set()),
    "the tree below": (("deep", "--recursive", *SKY), "deep/er/b.png:", {"er/b.png"}),
    "equal names in two folders": (("one/a.png", "two/a.png", *SKY), "two/a.png:", {"one/a.png", "two/a.png"}),
    "equal names the other way": (("two/a.png", "one/a.png", *SKY), "one/a.png:", {"one/a.png", "two/a.png"}),
    "where weights lie": (("a.png", *SKY, "-v"), "INFO: tiny: embedded in the package", {"a.png"}),
}


@pytest.mark.parametrize(("arguments", "said", "written"), DONE.values(), ids=DONE)
def test_it_is_done_and_said(segment, tmp_path, monkeypatch, arguments, said, written):
    monkeypatch.setattr("s2clip.pictures.inputs.find_spec", lambda name: None)  # without the extra that reads HEIC
    result = segment(*arguments)
    assert result.exit_code == (0 if written else 1), result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert (files(tmp_path / "out") if written else set()) == written


REFUSED = {
    "an address": (("https://example.org/a.png",), "addresses are read by --engine ray; or download it"),
    "an option twice": (("--threshold", 0.1, "--threshold", 0.2), "--threshold: given 2 times"),
    "sam without refinement": (("--sam", "sam-tiny"), "--sam: has no effect on clip without --refine sam"),
    "a vfm of none": (("--vfm", "tiny-dino"), "--vfm: has no effect, clip uses no vision foundation model"),
    "regions of none": (("--regions", "sam"), "--regions: has no effect, clip takes no regions"),
    "a background of none": (("--background", "sky"), "--background: has no effect without --threshold"),
    "frames of no film": (("--every", 3), "--every: is of films and cameras, and there is none"),
    "bands of no raster": (("--bands", "3,2,1"), "--bands: is of rasters"),
    "a model nearly": (("--model", "ViT-B-61"), "did you mean 'ViT-B-16'"),
    "a format nearly": (("--format", "cocoo"), "did you mean 'coco'"),
    "memory without a unit": (("--max-memory", 8), "8 bytes hold no model: write 8GB, or MB"),
    "a crop under the stride": (("--crop", 1), "--crop: expected at least the stride"),
    "a stride of nothing": (("--stride", 0), "--stride: expected at least 1"),
    "a stride of the whole": (("--crop", 0, "--stride", 8), "--stride: has no effect with --crop 0"),
    "weights that are not there": (("--weights", "no.pt"), "--weights: expected 'pretrained', 'random' or a file"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_one_line(segment, tmp_path, arguments, said):
    result = segment("a.png", *SKY, *arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert not list(tmp_path.glob("out/*"))


def test_other_classes_in_a_folder_of_results_are_refused(segment, tmp_path):
    assert segment("a.png", "--classes", CLASSES).exit_code == 0
    other = segment("one/a.png", *SKY)
    assert other.exit_code == 3
    assert "out: holds results of other settings: classes is" in other.stderr
    assert segment("a.png", "one/a.png", "--classes", CLASSES).exit_code == 0  # the first keeps its name
    assert files(tmp_path / "out") == {"a.png", "one/a.png"}


def test_a_threshold_alone_gives_pixels_to_no_class(segment, tmp_path):
    assert segment("a.png", *SKY, "--threshold", 1).exit_code == 0
    assert (np.asarray(opened(tmp_path / "out/a.png")) == 255).all()


EVALUATE = {
    "a vfm of one of two": (
        ("scenes", "--method", "clip,maskclip", "proxyclip", "--vfm", "tiny-dino", "--limit", 1),
        (0, "--vfm: has no effect on clip, maskclip"),
    ),
    "regions of none": (("scenes", "--regions", "sam"), (2, "--regions: has no effect, s2clip takes no regions")),
    "a vfm of none": (
        ("scenes", "--method", "clip", "sclip", "--vfm", "tiny-dino"),
        (2, "--vfm: has no effect, clip, sclip use no vision foundation model"),
    ),
    "sam without refinement": (("scenes", "--sam", "sam-tiny"), (2, "--sam: has no effect on s2clip")),
    "a stride of the whole": (("scenes", "--crop", 0, "--stride", 8), (2, "--stride: has no effect with --crop 0")),
    "a method nearly": (("scenes", "--method", "slip"), (2, "did you mean 'sclip'")),
    "a model beside predictions": (
        ("voc21", "--data", ".", "--predictions", ".", "--vfm", "tiny-dino"),
        (2, "--vfm: has no effect with --predictions"),
    ),
    "maps of scenes": (("scenes", "--save-predictions"), (2, "--save-predictions: not of scenes")),
}


@pytest.mark.parametrize(("arguments", "expected"), EVALUATE.values(), ids=EVALUATE)
def test_evaluate_says_it_too(run, arguments, expected):
    code, said = expected
    result = run("evaluate", *arguments, *(("--short-side", 32) if code == 0 else ()))
    assert result.exit_code == code, result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_the_demo_takes_names_as_people_write_them_and_is_quiet_when_asked(run, tmp_path):
    quiet = run("demo", "--refine", "None", "--method", "CLIP", "-q", "-o", "demo")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert (tmp_path / "demo/scene-24.png").is_file()
    wrong = run("demo", "--refine", "sma")
    assert wrong.exit_code == 2
    assert "--refine: expected one of none, sam, received 'sma'; did you mean 'sam'?" in wrong.stderr


def test_one_is_not_called_several(run, tmp_path):
    paint(tmp_path / "a.png")
    result = run("analyze", "features", "a.png", "--view", "qq", "--method", "clip")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "1 figure"
    with_words = run("analyze", "features", "a.png", "--view", "qq", "--method", "clip", "--classes", "sky", "tree")
    assert with_words.stdout.splitlines()[0] == "2 figures"


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "class", "1 class"), (2, "class", "2 classes"), (0, "file", "0 files"), (3, "entry", "3 entries")],
)
def test_numbers_and_their_nouns(number, noun, text):
    from s2clip.values import counted

    assert counted(number, noun) == text


def test_help_says_what_weights_may_be(run):
    shown = " ".join(run("segment", "--help").stdout.split())
    assert "pretrained; a FILE.safetensors or FILE.pt; random" in shown


def test_a_run_of_one_film_is_not_said_to_be_gone_on_with(run, tmp_path):
    (tmp_path / "clip.mp4").touch()
    result = run("segment", "clip.mp4", *SKY, "--resume")
    assert result.exit_code == 2
    assert "--resume: a film is segmented in one go; leave --resume out" in result.stderr


def test_json_is_not_mixed_with_what_is_said(segment):
    result = segment("a.png", "--classes", "sky", "--json")
    assert len(json.loads(result.stdout)["images"]) == 1
    assert "the single class" in result.stderr


def test_a_data_set_after_classes_is_no_class():
    from s2clip.cli.analyze import separability

    for data in ("scenes", "coco-stuff", "a.png"):
        spread = separability._spread(["--classes", "sky", "tree", data])
        assert spread == ["--classes", "sky", "--classes", "tree", data]
    assert separability._spread(["--classes", "sky", "scene"])[-2:] == ["--classes", "scene"]
