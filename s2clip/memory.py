"""What fits under a memory cap: how many windows, words and pictures at once. Bytes are counted beforehand, not tried.

    peak = weights + reserve + max(encoding, deciding)
    encoding = picture + what all windows need once + windows · a window
    deciding = picture + label maps + cosines of `words` words over the canvas

The figures below are upper bounds of what the modules hold at a time, in tensors of the size that is named; they were
set by measuring on the CPU, where the allocator's live bytes can be watched (`tests/test_memory.py`). On CUDA they are
the same sums, with the number format and the tiles of the kernels, and have not been measured.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from s2clip.backbones.sam2 import Sam2
from s2clip.errors import reject
from s2clip.kernels.reference import CHUNK
from s2clip.methods.method import Method

HEAD_CELLS = 1 << 15
"""Cells whose features go through the vision head at once: 0.3 GB for ViT-H, and more than a picture of 2048x1024."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
CUDA_CONTEXT = 700 * 10**6
"""The context, the libraries' workspaces and the kernels' code."""
FRAGMENTS = 0.08
"""Share of a GPU's cap that the caching allocator cannot fill."""
BLOCK_MAPS = 14
"""Tensors [tokens, width] inside a transformer block at its peak: input, sum, norm in fp32, and of the FFN 4 + 4, or
four times 8/3 where it is gated (EVA02-CLIP)."""
FLOAT = 4
WORTH_ASKING = 10**9
"""Bytes from which on it is looked up whether the machine has them free."""
LABEL_BYTES = 40
"""Per pixel of the picture: labels in int32 and int64, confidence, their copies, one plane of scores."""
STRIP_BYTES = 6 * FLOAT * CHUNK
"""What the pixel ops hold of all words at a time."""
KERNEL_STRIP = 48 * 2**20
"""What the affinity kernel holds of an affinity at a time."""
WORDS_OF_ALL = 1024
"""How many words a plan provides for when they are not known yet."""
PROMPT_BYTES = 110 * 10**6
"""Activations of one prompt in SAM's decoder."""
SAM_TENSORS = 4
"""Score tensors [heads, tokens, tokens] of SAM's global attention: with its relative positions, before and after the
softmax."""


def parse_size(size: str | int) -> int:
    """ "8GB" (10^9 bytes), "7.5GiB" (2^30), "500MB" or a number of bytes → bytes. Raises ValueError."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if isinstance(size, str) and re.fullmatch(r"\s*\d{1,5}(\.\d+)?\s*", size):
        hint = f"{size.strip()} bytes hold no model: write {size.strip()}GB, or MB"
        reject("max_memory", 'a size such as "8GB" or "7.5GiB"', f"{size!r}; {hint}")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if not isinstance(size, str) or match is None or match[2] not in UNITS or not float(match[1]):
        reject("max_memory", 'a size such as "8GB" or "7.5GiB"', repr(size))
    return int(float(match[1]) * UNITS[match[2]])


def show_size(size: int) -> str:
    """Bytes → "7.3GB" or "12MB", rounded up, so that what is shown is enough."""
    return f"{-(-size // 10**6)}MB" if size < 10**9 else f"{-(-size // 10**7) / 100:g}GB"


class Tower(NamedTuple):
    """A vision transformer."""

    layers: int
    width: int
    patch: int


class Load(NamedTuple):
    """What the models and the method need, whatever the picture."""

    weights: int
    """Bytes of all models."""
    item: int
    """Bytes of a number in the encoders."""
    on_cuda: bool
    clip: Tower
    heads: int
    joint: int
    """Size of CLIP's joint space."""
    vfm: Tower | None
    vfm_scale: float
    levels: int
    affinity: bool
    terms: int
    spliced: bool
    keeps_attention: bool = False
    """The maps of all heads are summed over the blocks, on a GPU too."""
    sam_scores: int = 0
    """Bytes of a score tensor in SAM's encoder; 0 without SAM."""


class Sizes(NamedTuple):
    """One picture's."""

    picture: tuple[int, int]
    canvas: tuple[int, int]
    """After resizing."""
    window: tuple[int, int]
    """With its padding."""
    windows: int
    words: int | None = None
    """None: any number; the plan says how many at once."""


class Plan(NamedTuple):
    """How a picture is worked on, and the bytes of it at a time."""

    windows: int
    """Windows in a batch, of all pictures together."""
    words: int
    """Words whose cosines at canvas pixels are held at a time."""
    on_host: bool
    """Windows' features wait in the host's memory."""
    resident: int
    """Bytes of the picture while others are encoded."""
    peak: int


def load_of(models, method: Method, *, refines: bool = False) -> Load:
    """The load of `s2clip.published.extension.Models` under a method; refines: SAM runs on every picture."""
    clip, vfm, sam = models.clip, models.vfm, models.sam
    modules = {id(module): module for module in (clip, vfm, sam) if module is not None}
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for module in modules.values()
        for tensor in (*module.parameters(), *module.buffers())
    }
    blocks = getattr(getattr(vfm, "model", None), "blocks", None)
    item = clip.dtype.itemsize
    scores = 0
    if isinstance(sam, Sam2) and refines:  # no scores, but a finer grid in its first blocks
        scores = item * (sam.frame // 4) ** 2 * sam.first_width * BLOCK_MAPS // SAM_TENSORS
    elif sam is not None and (refines or method.uses_sam):
        tokens = (sam.image_encoder.img_size // sam.image_encoder.patch_embed.proj.kernel_size[0]) ** 2
        scores = item * tokens**2 * sam.image_encoder.blocks[0].attn.num_heads
    return Load(
        weights=sum(storages.values()),
        item=item,
        on_cuda=clip.device.type == "cuda",
        clip=Tower(clip.layers, clip.width, clip.patch_size),
        heads=clip.heads,
        joint=clip.embed_dim,
        vfm=Tower(len(blocks or ()), vfm.width, vfm.patch_size) if method.uses_vfm else None,
        vfm_scale=method.vfm_scale,
        levels=len(method.resolve_levels(clip.layers)) if method.uses_levels else 0,
        affinity=method.vfm_weight is not None or (method.uses_levels and method.progressive),
        terms=len(method.terms),
        spliced=method.merge == "splice",
        keeps_attention=getattr(method.extension, "keeps_attention", False),
        sam_scores=scores,
    )


def machine_bytes(device: torch.device) -> int:
    """What the device has: a GPU's memory; the host's, or what the container leaves of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows does not tell
        return 1 << 62
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total


def left_bytes(most: int, on_cuda: bool) -> int:
    """What of `most` bytes of the host nobody uses now, in the machine and in the container; of a GPU all."""
    if on_cuda:
        return most
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        most = min(most, 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        cached = int(next(line for line in lines if line.startswith("inactive_file ")).split()[1])
        most = min(most, int((group / "memory.max").read_text()) - used + cached)
    return max(most, 0)


class Cap(NamedTuple):
    """A number of bytes, and what has to be done in them."""

    size: int
    load: Load
    asked: bool = True
    """By a user; else it is what the machine has."""

    def plan(self, sizes: Sizes, *, most_windows: int) -> Plan:
        """The plan with the largest batch that stays under the cap.

        Raises ValueError that says how much would do, where not even one window or word at a time does.
        """
        load, fixed = self.load, self.fixed
        (height, width), pixels = sizes.canvas, sizes.picture[0] * sizes.picture[1]
        picture, features = _picture_bytes(load, sizes), _feature_bytes(load, sizes)
        on_host = load.on_cuda and features > (self.size - fixed) // 3
        resident = picture + (0 if on_host else features)
        resize, once, window = _resize_bytes(sizes), _once_bytes(load, sizes), _window_bytes(load, sizes)
        sam = SAM_TENSORS * load.sam_scores + (PROMPT_BYTES if load.sam_scores else 0)
        strips = STRIP_BYTES if sizes.words is None else min(STRIP_BYTES, 4 * FLOAT * sizes.words * pixels)
        maps = LABEL_BYTES * pixels + strips
        if load.spliced:
            word, most_words = 2 * FLOAT * _cells(load, sizes.canvas), sizes.words or WORDS_OF_ALL
            maps, word = maps + most_words * word, 0
        else:
            word = 3 * FLOAT // 2 * (height * width + sizes.window[0] * sizes.window[1])
            most_words = sizes.words or WORDS_OF_ALL
        least = fixed + resident + max(resize, once + window, maps + word, sam)
        left = self.size if self.asked or least < WORTH_ASKING else fixed + left_bytes(self.size - fixed, load.on_cuda)
        if least > min(self.size, left):
            what = f"a picture of {sizes.picture[0]}x{sizes.picture[1]} with these models and windows"
            if not self.asked:
                has = f"and this machine has {show_size(self.size)}"
                has += f", of which {show_size(left - fixed)} are free" if left < self.size else ""
                raise ValueError(f"{what} needs {show_size(least)}, {has}: cut it, or set short_side and crop")
            reject("max_memory", f"at least {show_size(least)} for {what}", show_size(self.size))
        room = self.size - fixed - resident
        windows = min(most_windows, (room - once) // window)
        words = most_words if load.spliced else min(most_words, (room - maps) // word)
        peak = fixed + resident + max(resize, once + windows * window, maps + words * word, sam)
        return Plan(windows, words, on_host, resident + LABEL_BYTES * pixels, peak)

    @property
    def fixed(self) -> int:
        """Bytes of the weights, and what a GPU cannot use."""
        return self.load.weights + (CUDA_CONTEXT + int(FRAGMENTS * self.size) if self.load.on_cuda else 0)

    @property
    def prompts(self) -> int:
        """Prompts that SAM's decoder may take at once: half of what the weights leave."""
        return max(1, (self.size - self.fixed) // 2 // PROMPT_BYTES)

    def check(self) -> "Cap":
        """Raise ValueError where the weights alone are too much."""
        if self.fixed > self.size:
            reject("max_memory", f"more than {show_size(self.fixed)}, which the models take", show_size(self.size))
        return self

    def together(self, residents: Sequence[int]) -> list[int]:
        """Lengths of consecutive groups of pictures that may be worked on together: half of the room, at least one."""
        room, used = (self.size - self.fixed) // 2, 0
        groups: list[int] = []
        for resident in residents:
            if groups and used + resident <= room:
                groups[-1], used = groups[-1] + 1, used + resident
            else:
                groups.append(1)
                used = resident
        return groups


def _grid(size: tuple[int, int], tower: Tower, scale: float = 1.0) -> int:
    rows, columns = (-(-round(side * scale) // tower.patch) for side in size)
    return rows * columns


def _features_grid(load: Load, size: tuple[int, int]) -> int:
    """Cells of the grid that a window's features are on."""
    return _grid(size, load.clip) if load.vfm is None else _grid(size, load.vfm, load.vfm_scale)


def _cells(load: Load, canvas: tuple[int, int]) -> int:
    """Cells of a spliced picture."""
    patch = load.clip.patch
    ratio = 1 if load.vfm is None else max(1, round(patch * load.vfm_scale / load.vfm.patch))
    return _grid(canvas, load.clip) * ratio**2


def _picture_bytes(load: Load, sizes: Sizes) -> int:
    """The picture, resized; and the sum of its windows where they are spliced, which the head's output replaces."""
    (height, width), (rows, columns) = sizes.picture, sizes.canvas
    total = 3 * height * width + 3 * FLOAT * rows * columns
    if load.spliced:
        cells = _cells(load, sizes.canvas)
        held = min(cells, HEAD_CELLS)
        total += FLOAT * cells * load.clip.width
        total += held * (load.clip.width * (FLOAT + 2 * load.item) + 4 * FLOAT * load.joint)
    return total


def _resize_bytes(sizes: Sizes) -> int:
    """Beside the picture and its resized form: rows first, then columns, each from two neighbours."""
    (_, width), (rows, columns) = sizes.picture, sizes.canvas
    return 3 * FLOAT * rows * (columns if sizes.canvas == sizes.picture else max(3 * width, width + 2 * columns))


def _feature_bytes(load: Load, sizes: Sizes) -> int:
    """Unit vectors of all windows, where words come later."""
    return 0 if load.spliced else FLOAT * sizes.windows * _features_grid(load, sizes.window) * load.joint


def _window_bytes(load: Load, sizes: Sizes) -> int:
    """One more window in a batch."""
    tokens, cells, width = _grid(sizes.window, load.clip) + 1, _features_grid(load, sizes.window), load.clip.width
    images = 4 * 3 * FLOAT * sizes.window[0] * sizes.window[1]
    states = load.item * width * tokens * load.clip.layers
    inside = load.item * width * tokens * BLOCK_MAPS
    hierarchy = FLOAT * width * tokens * (load.levels + 4) if load.levels else 0
    if load.vfm is not None:
        own = load.item * load.vfm.width * (cells + 1)
        resampled = load.item * width * cells * load.levels
        inside = max(inside, own * BLOCK_MAPS + int(images * load.vfm_scale**2), own + resampled)
    output = cells * (width * (2 * load.item + FLOAT) + (0 if load.spliced else 4 * FLOAT * load.joint))
    return images + states + inside + hierarchy + output


def _once_bytes(load: Load, sizes: Sizes) -> int:
    """What a batch needs beside its windows: the CPU's reference works on one window's N x N scores at a time."""
    tokens, cells = _grid(sizes.window, load.clip) + 1, _features_grid(load, sizes.window)
    if load.on_cuda:
        kept = FLOAT * (2 * load.heads + 1) * tokens**2 if load.keeps_attention else 0
        return kept + (KERNEL_STRIP if load.affinity else 0)
    scores = 3 * FLOAT * load.heads * tokens**2 if load.terms else 0
    if load.affinity:
        maps = load.levels * load.clip.width + (load.vfm.width if load.vfm is not None else 0)
        scores = max(scores, FLOAT * (3 * cells**2 + cells * (2 * maps + 3 * load.clip.width)))
    return scores
