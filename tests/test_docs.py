"""The pages of docs/ hold: their code runs, what they name exists, generated pages are current.

Code runs as it stands but for three things: real models are replaced by the embedded ones, whose weights are always
there; benchmarks are miniature trees; scenes are counted in twos, and of the tables' many cells only the list is made
(tests/test_tables.py runs some).
"""

import re
import shlex
import shutil
import sys
from pathlib import Path

import av
import pytest
import rasterio
from click.testing import CliRunner
from data_trees import make_tree
from PIL import Image
from rasterio.transform import from_origin

from s2clip import scenes
from s2clip.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TARGETS = set(re.findall(r"^(\S+?):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """Lines of the sh blocks, continued lines joined, without comments."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if shlex.split(line, comments=True)]


SYSTEM = (
    "make",
    "python",
    "pytest",
    "torchrun",
    "bash",
    "pip",
    "nvidia-smi",
    "sudo",
    "nsys",
    "ncu",
    "curl",
    "tests/gpu/run",
    "tests/gpu/pack",
)
BENCHMARKS = ("voc21", "context60", "coco_object", "cityscapes", "ade20k", "coco_stuff")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Where a reader sits: a photo, a folder of photos, all data sets, somebody's label maps."""
    tmp_path = tmp_path_factory.mktemp("desk")
    for name in BENCHMARKS:
        tree = make_tree(name, tmp_path / "data", count=2)
        if name == "voc21":
            shutil.copytree(tree.root / "SegmentationClass", tmp_path / "their/maps")
    (tmp_path / "photos").mkdir()
    for path, seed in (("photo.jpg", 0), ("photos/a.jpg", 1), ("photos/b.jpg", 2)):
        Image.fromarray(scenes.generate(seed)[0]).save(tmp_path / path)
    with av.open(str(tmp_path / "clip.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        film.mux(stream.encode(av.VideoFrame.from_ndarray(scenes.generate(3, (48, 64))[0], format="rgb24")))
        film.mux(stream.encode())
    for folder in ("own/images", "own/labels"):
        (tmp_path / folder).mkdir(parents=True)
    Image.fromarray(scenes.generate(4, (48, 64))[0]).save(tmp_path / "own/images/a.jpg")
    Image.fromarray((scenes.generate(4, (48, 64))[1] % 4).astype("uint8")).save(tmp_path / "own/labels/a.png")
    bands = scenes.generate(3, (128, 160))[0].transpose(2, 0, 1)
    profile = {"height": 128, "width": 160, "count": 3, "dtype": "uint8", "crs": "EPSG:25832"}
    with rasterio.open(tmp_path / "scene.tif", "w", transform=from_origin(5e5, 5.5e6, 0.2, 0.2), **profile) as file:
        file.write(bands)
    return tmp_path


@pytest.fixture(autouse=True)
def at_the_desk(desk, monkeypatch):
    monkeypatch.chdir(desk)


def embedded(text):
    """The same with the embedded models for the real ones."""
    return re.sub(
        r"ViT-[BLH]-1[46]|\b(dino|dinov2)-[bs]\d+\b|sam-vit-[blh]", lambda found: EMBEDDED[found[0][:3]], text
    )


EMBEDDED = {"ViT": "tiny", "din": "tiny-dino", "sam": "sam-tiny"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page, capsys):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(embedded(block), page.name, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_run(page):
    for program, *arguments in commands(page):
        if program != "s2clip":
            assert program in SYSTEM, f"{program}: a program this test knows nothing of"
            continue
        if arguments[0] == "serve":  # would run for ever; tests/test_serve.py runs it, and the curl lines
            main.commands["serve"].make_context("serve", arguments[1:])
            continue
        if arguments[0] == "table" and "--dry-run" not in arguments:
            arguments.append("--dry-run")
        if "scenes" in arguments and "--limit" in arguments:
            arguments[arguments.index("--limit") + 1] = "2"
        elif "scenes" in arguments:
            arguments += ["--limit", "2"]
        options = {name for each in main.commands[arguments[0]].params for name in each.opts}
        if "--short-side" in options - set(arguments) and "--predictions" not in arguments:
            arguments += ["--short-side", "64"]
        result = CliRunner().invoke(main, [embedded(argument) for argument in arguments])
        expected = (0, 1) if arguments[0] == "check-data" else (0,)  # 1: miniature trees are not complete
        assert result.exit_code in expected, (arguments, result.output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_it_names_exists(page):
    for path in re.findall(r'(?:src="|\]\()(?!https?:)([\w./-]+)', page.read_text()):
        assert (page.parent / path).is_file(), path
    for program, *arguments in commands(page):
        if program == "make":
            assert set(arguments) <= TARGETS, arguments
        elif program in ("python", "pytest"):
            scripts = [argument for argument in arguments if argument.endswith(".py")]
            assert all((ROOT / script).is_file() for script in scripts), arguments


def test_the_ops_reference_is_that_of_the_docstrings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import ops_reference

    monkeypatch.delitem(sys.modules, "ops_reference")
    assert (ROOT / "docs" / "ops.md").read_text() == ops_reference.page(), "run: make docs"
