"""The pages of docs/ hold: their code runs as it stands, what they name exists, generated pages are current."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

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


PROGRAM = [(page, command) for page in PAGES for command in commands(page) if command[0] == "s2clip"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where a reader sits: a photo, a folder of photos, and nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for path, seed in (("photo.jpg", 0), ("photos/a.jpg", 1), ("photos/b.jpg", 2)):
        Image.fromarray(scenes.generate(seed)[0]).save(path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_runs(page, capsys):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize(("page", "command"), PROGRAM, ids=lambda value: getattr(value, "stem", " ".join(value)[:60]))
def test_commands_run(page, command):
    arguments = command[1:]
    if arguments[0] in ("evaluate", "analyze") and "scenes" in arguments:
        arguments = [*arguments, "--limit", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


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
