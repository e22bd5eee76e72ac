"""The README's code runs as it stands, and what it names exists."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from s2clip import scenes
from s2clip.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("s2clip ")]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scenes.generate(0)[0]).save("photo.jpg")


@pytest.mark.usefixtures("photo")
def test_python_runs(tmp_path):
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["result"].segmentation.shape == (96, 128)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"photo.png", "photo.overlay.png", "photo.npz"}
    assert names["attended"].shape == (1, 12, 197, 64)
    assert names["count"].item() == 2  # diagonals touch


@pytest.mark.usefixtures("photo")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command):
    arguments = shlex.split(command, comments=True)[1:]
    result = CliRunner().invoke(main, arguments + (["--limit", "1"] if "evaluate" in arguments else []))
    assert result.exit_code == 0, result.output


def test_what_it_names_exists():
    targets = set(re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([\w-]+)", "\n".join(blocks("sh")))) <= targets
    for path in re.findall(r'(?:src="|\]\()([\w./-]+)', README):
        assert (ROOT / path).is_file(), path
    assert len(README.splitlines()) <= 120
