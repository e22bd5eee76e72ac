"""How many operators one picture takes on a GPU, the backbones' own included, counted without one.

An operator that launches is counted once, however torch decomposes it for fake tensors; views and allocations are not.
Attention is one operator, as it is on CUDA in half precision, where fake tensors would take it apart.
"""

import torch
import torch.nn.functional as F
from pretended_cuda import pretend
from test_as_on_cuda import FakeDevice, measured, to_fake
from torch._subclasses import fake_tensor
from torch.utils._pytree import tree_leaves

from s2clip.backbones.clip import load_clip
from s2clip.backbones.vfm import load_vfm
from s2clip.ops import components
from s2clip.pictures.reading import Picture
from s2clip.segmenter import Segmenter

MOST = 500
SILENT = ("aten::empty", "aten::detach", "aten::_unsafe_view", "aten::_local_scalar_dense", "profiler::", "prim::")
OUR_LAUNCHES = {
    "recombined_attention": lambda given: 1,
    "progressive_affinity": lambda given: 7,
    "affinity_attention": lambda given: 2 + len(given[0]),
    "spatial_entropy": lambda given: 2,
    "classify_pixels": lambda given: 1,
}


class Counting(FakeDevice):
    """Counts what is called on CUDA tensors; what a call is made of is not counted again."""

    def __init__(self):
        super().__init__()
        self.within, self.operators, self.launches = 0, 0, 0

    def dispatch(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if self.within == 0 and name.startswith("s2clip::"):
            self.launches += OUR_LAUNCHES[name.removeprefix("s2clip::")](args)
        elif self.within == 0 and not name.startswith(SILENT) and self.computes(func, args, kwargs or {}):
            self.operators += 1
        self.within += 1
        try:
            return super().dispatch(func, types, args, kwargs)
        finally:
            self.within -= 1

    @staticmethod
    def computes(func, args, kwargs):
        if any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns):
            return False  # a view
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        return any(tensor.is_cuda for tensor in tensors) or str(kwargs.get("device", "")).startswith("cuda")


original = F.scaled_dot_product_attention


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Without a mask the fused form; the words' causal mask comes before anything is counted."""
    if attn_mask is not None:
        return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]


def test_one_picture_of_s2clip_takes_at_most_500_operators(monkeypatch):
    torch._C._ensureCUDADeviceGuardSet()
    device, half = Counting(), {"device": "cpu", "dtype": torch.float16, "weights": "random"}
    clip, vfm = load_clip("ViT-B-16", **half), load_vfm("dino-b8", **half)
    with device:
        for model in (clip, vfm):
            to_fake(model, device)
    pretend(monkeypatch)
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(components, "_measure_components", measured)
    for owner in (F, torch._C._nn):
        monkeypatch.setattr(owner, "scaled_dot_product_attention", attention)
    with device:
        segmenter = Segmenter(clip, vfm=vfm, method="s2clip")
        segmenter.__dict__["settings"] = {}  # the weights' hashes need values
        segmenter._remark = lambda words, own, progress: None  # so does looking for equal vectors, once per list
        segmenter.set_classes([f"thing{index}" for index in range(21)], background="thing0")
        pixels = torch.zeros(3, 375, 500, dtype=torch.uint8)
        device.operators = device.launches = 0
        (result,) = segmenter._run([[Picture(pixels, "a.png", 1.0, staged=pixels)]], record=False)
    assert result.segmentation.shape == (375, 500)
    # 12 + 11 blocks of about ten operators each are the networks' own: fewer were not counted right.
    assert 230 < device.operators + device.launches <= MOST, (device.operators, device.launches)
