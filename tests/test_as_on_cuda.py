"""The pipeline's own tensors on CUDA, without a GPU: torch's fake tensors know device, dtype and shape, and no values.

What it finds: tensors of two devices or dtypes in one operation, ops whose fake and pipeline disagree, and places where
the host would wait for the device. Kernels do not run; their tests are in tests/kernels and tests/gpu.
"""

import dataclasses
import traceback
from pathlib import Path

import pytest
import torch
from pretended_cuda import pretend
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_leaves

from s2clip.backbones.clip import load_clip
from s2clip.backbones.sam import load_sam
from s2clip.backbones.vfm import load_vfm
from s2clip.methods.recipe import RECIPES
from s2clip.ops import components
from s2clip.pictures.reading import Picture
from s2clip.published.catalogue import METHODS
from s2clip.refinement.refiner import Refiner
from s2clip.refinement.settings import RECIPES as REFINEMENTS
from s2clip.segmenter import Segmenter

PACKAGE = str(Path(components.__file__).parents[1])
ENTRIES = ["sky", "house; hut", "tree"]
aten = torch.ops.aten


class FakeDevice(fake_tensor.FakeTensorMode):
    """Notes who waits for the device: reads of values, and copies that are not asynchronous. A value is 1, or false."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.waits = []

    def dispatch(self, func, types, args=(), kwargs=None):
        if func is aten._local_scalar_dense.default:
            self.note()
            return False if args[0].dtype == torch.bool else 1
        if func is aten._to_copy.default:
            target = (kwargs or {}).get("device")
            moves = target is not None and torch.device(target).type != args[0].device.type
            if moves and not kwargs.get("non_blocking"):
                self.note("copy in ")
        for tensor in tree_leaves(args):
            if isinstance(tensor, fake_tensor.FakeTensor):
                tensor.constant = None  # what torch knows the value of it would really send to a GPU
        return super().dispatch(func, types, args, kwargs)

    def note(self, what=""):
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        if frames:
            self.waits.append(what + frames[-1].name)


def to_fake(module, mode):
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            moved = mode.from_tensor(parameter.detach()).to("cuda:0")
            owner._parameters[name] = torch.nn.Parameter(moved, requires_grad=False)
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = mode.from_tensor(buffer).to("cuda:0")


def measured(backend, values, labels, class_map, scores, count):
    """In place of `measure_components`, whose number of rows depends on values."""
    assert count is not None, "the rows are known: the device is not to be asked again"
    assert count.device.type == "cpu"
    integers = [labels.new_empty(shape, dtype=torch.int32) for shape in (3, 3, 3, 3, (3, 4), (3, 2))]
    return *integers[:5], values.new_empty(3, dtype=torch.float32), integers[5]


@pytest.fixture(scope="module")
def loaded():
    """(mode, CLIP, DINO, SAM) in fp16."""
    torch._C._ensureCUDADeviceGuardSet()
    half, mode = {"device": "cpu", "dtype": torch.float16}, FakeDevice()
    models = load_clip("tiny", **half), load_vfm("tiny-dino", **half), load_sam("sam-tiny", **half)
    with mode:
        for model in models:
            to_fake(model, mode)
    return mode, *models


@pytest.fixture
def tiny(loaded, monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(components, "_measure_components", measured)
    return loaded


# Methods on regions ask the device how many there are, and fake tensors have no answer.
CASES = [*((name, False) for name in METHODS if not METHODS[name].uses_regions), ("s2clip", True), ("trident", True)]


@pytest.mark.parametrize(("name", "refined"), CASES)
def test_all_tensors_meet_on_the_device_and_nobody_waits_but_for_counts(name, refined, tiny):
    device, clip, vfm, sam = tiny
    with device:
        segmenter = Segmenter(
            clip,
            vfm=vfm,
            sam=sam,
            refiner=Refiner(sam, REFINEMENTS["sam-tiny"]) if refined else None,
            method=dataclasses.replace(RECIPES["tiny"], short_side=64).adapt(METHODS[name]),
        )
        segmenter.__dict__["settings"] = {}  # the weights' hashes need values
        segmenter._remark = lambda words, own, progress: None  # so does looking for equal vectors, once per list
        segmenter.set_classes(ENTRIES, background="sky")
        pixels = torch.zeros(3, 94, 125, dtype=torch.uint8)
        group = [Picture(pixels, f"{index}.png", 1.0, staged=pixels) for index in range(2)]
        device.waits.clear()
        results = list(segmenter._run([group, group], record=False))
    assert len(results) == 4
    for result in results:
        assert result.segmentation.device == result.confidence.device == torch.device("cuda:0")
        assert (result.segmentation.dtype, result.confidence.dtype) == (torch.int64, torch.float32)
        assert result.timings["classify"] > 0
    expected = {"check_labels", "find_regions"} if refined else {"check_labels"}
    assert set(device.waits) == expected
    assert device.waits.count("check_labels") == 2, "once per group"
