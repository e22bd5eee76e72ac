"""Check the import contracts of pyproject.toml on the package as it is installed, where `kernels/` is `s2clip.kernels`.

python tools/import_contracts.py      # prints what is kept and what is broken; exit 1 where one is
"""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "s2clip"
        only_code = shutil.ignore_patterns("__pycache__", "tiny", "*.yaml", "*.txt")
        shutil.copytree(ROOT / "s2clip", package, ignore=only_code)
        shutil.copytree(ROOT / "kernels", package / "kernels", ignore=only_code)
        sys.path.insert(0, folder)
        sys.modules.pop("s2clip", None)
        with contextlib.chdir(folder):
            status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    return 0 if status == EXIT_STATUS_SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
