"""Without a GPU the kernels run in Triton's interpreter, which has to be chosen before a kernel module is imported."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # last: its profile.py must not hide the standard library's

settings.register_profile("repeatable", derandomize=True, deadline=None)  # a loaded machine is slow, not wrong
settings.load_profile("repeatable")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        no_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(no_gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are tested: the GPU if there is one, otherwise the CPU through the interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Calls the program inside of this process, in a folder of its own."""
    from click.testing import CliRunner

    from s2clip import cli

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="module")
def clip():
    """A CLIP of a few thousand weights."""
    from small_models import small_clip

    return small_clip()


@pytest.fixture(scope="module")
def vfm():
    """A vision transformer of a few thousand weights."""
    from small_models import small_vfm

    return small_vfm()


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory of `s2clip.kernels` holds NaN, or an absurd integer, so that an unwritten element cannot pass."""
    from s2clip.testing import poison

    def poisoning(allocate):
        def allocate_poisoned(*arguments, **keywords):
            fresh = allocate(*arguments, **keywords)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return fresh.fill_(poison(fresh.dtype)) if caller.startswith("s2clip.kernels") else fresh

        return allocate_poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))
