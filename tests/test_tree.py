"""What tools and pages say of the tree is so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_table_of_processors_names_tests_that_exist():
    tree = ast.parse((ROOT / "tools" / "everywhere.py").read_text())
    lists = {"NUMBERS": [], "SEAMS": []}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id in lists:
            lists[target.id] += ast.literal_eval(node.value)
    assert lists["NUMBERS"]
    assert lists["SEAMS"]
    named = [f"test_{name}.py" for names in lists.values() for name in names]
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []
    assert len(set(named)) == len(named)


PACKAGES = sorted({path.parent for root in ("s2clip", "kernels") for path in (ROOT / root).rglob("__init__.py")})


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_door_says_what_goes_in_what_comes_out_and_what_stays_outside(folder):
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    for sign in ("In: ", "Out: ", "mport"):
        assert sign in said, f"{folder.name}: nothing after {sign!r}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/extending.md"])
def test_files_that_pages_name_exist(page):
    """A name without a folder is in the folder of the name before it, on a page's line."""
    missing, named = [], 0
    for line in (ROOT / page).read_text().splitlines():
        folder = ROOT
        for name in re.findall(r"(?<![\w./<>:-])(?:[\w.-]+/)*[\w.-]+(?:/|\.(?:py|yaml|toml|md|txt))(?![\w<*])", line):
            places = [place / name for place in (ROOT, ROOT / "s2clip", (ROOT / page).parent, folder)]
            found = next((place.resolve() for place in places if place.exists()), None)
            named += 1
            if found is None:
                missing.append(name)
            else:
                folder = found if found.is_dir() else found.parent
    assert missing == []
    assert named > 5


@pytest.mark.parametrize("root", ["s2clip", "kernels", "tests", "tools", "examples"])
def test_a_long_file_says_why(root):
    """Above 350 lines (tests: 460) a file holds a second idea, or a reason in its docstring for being as long."""
    most = 460 if root == "tests" else 350
    for path in (ROOT / root).rglob("*.py"):
        text = path.read_text()
        if text.count("\n") > most:
            assert "Long because" in (ast.get_docstring(ast.parse(text)) or ""), f"{path.relative_to(ROOT)}: {most}"
