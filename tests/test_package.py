"""What importing the package does, in processes of their own."""

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

CHECK = """
import socket, sys
{before}
class NoSocket(socket.socket):
    def __init__(self, *args, **kwargs):
        raise AssertionError("a socket was opened")
socket.socket = NoSocket
import torch
def state():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.random.get_rng_state().sum().item(),
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
before = state()
{statement}
assert state() == before, "global state changed"
assert not torch.cuda.is_initialized(), "a GPU was touched"
loaded = [name for name, module in sys.modules.items() if module and name.split(".")[0] == "triton"]
assert not loaded, loaded[:3]
"""


def run(tmp_path, statement, before=""):
    code = CHECK.format(statement=statement, before=before)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""


def test_importing_everything_public_is_silent_and_changes_nothing(tmp_path):
    run(tmp_path, "import s2clip; from s2clip import Method, Segmenter, ops, scenes")


def test_a_picture_is_segmented_without_triton(tmp_path):
    """`triton` cannot be imported: the CPU path must not miss it."""
    run(
        tmp_path,
        "from s2clip import Segmenter, scenes\n"
        "segmenter = Segmenter.from_pretrained('tiny', short_side=64).set_classes(scenes.CLASSES)\n"
        "assert segmenter(scenes.generate(0, (48, 64))[0]).segmentation.shape == (48, 64)",
        before="sys.modules['triton'] = None",
    )


def test_typed_and_named():
    from importlib import resources

    import s2clip

    assert (resources.files("s2clip") / "py.typed").is_file()
    assert set(s2clip.__all__) <= set(dir(s2clip))
    for name in s2clip.__all__:
        assert getattr(s2clip, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = s2clip.nothing


def test_every_requirement_has_a_version_known_to_be_good(monkeypatch):
    """What set-up installs by: a requirement that is new or raised needs `make constraints`."""
    said = {}
    setuptools = SimpleNamespace(setup=lambda **fields: said.update(fields), find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)  # Python 3.12 and later bring none
    runpy.run_path(str(ROOT / "setup.py"))
    ranges = [Requirement(line) for line in {*said["install_requires"], *said["extras_require"]["dev"]}]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len(ranges) > 20
    assert len(pins) > len(ranges)
    for wanted in ranges:
        assert wanted.specifier, f"setup.py: {wanted} names no version that its tests passed with"
        name = wanted.name.lower().replace("_", "-")
        versions = [str(pin.specifier).removeprefix("==") for pin in pins if pin.name == name]
        assert versions, f"constraints.txt: nothing for {wanted}; python tools/constraints.py writes it"
        for version in versions:
            assert version in wanted.specifier, f"constraints.txt: {name}=={version} for {wanted}"
