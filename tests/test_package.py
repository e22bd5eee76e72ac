"""What importing the package does, in processes of their own."""

import subprocess
import sys

import pytest

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
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
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
        "segmenter = Segmenter.from_pretrained('tiny').set_classes(scenes.CLASSES)\n"
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
