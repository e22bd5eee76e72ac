"""What the source distribution holds: all that its tests read, so that they run where it is unpacked."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_THE_REPOSITORY = {".gitignore", ".github", ".pre-commit-config.yaml"}
"""What no test reads."""
MADE = {".git", ".venv", "out", "dist", "build", ".hypothesis", ".pytest_cache", ".ruff_cache", ".mypy_cache"}
"""What is made in a tree, by us and by tools."""


def test_the_source_distribution_holds_every_file_of_the_tree(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    held = {line.replace("\\", "/") for line in (tmp_path / "s2clip.egg-info" / "SOURCES.txt").read_text().splitlines()}
    missing = sorted(_tree() - held)
    assert missing == [], "MANIFEST.in leaves them out"
    assert {"tests/test_sdist.py", "tests/gpu/run", "tests/readers.txt", "kernels/reference.py"} <= held


def _tree() -> set[str]:
    """Of the repository's own files where git knows them, else of all that was unpacked."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        named = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        named = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    made = ("__pycache__", ".egg-info")
    return {
        name
        for name in named
        if name
        and name.split("/")[0] not in OF_THE_REPOSITORY | MADE
        and not any(one in name for one in made)
        and not name.endswith((".pyc", "PKG-INFO", "setup.cfg"))
        and (ROOT / name).is_file()
    }
