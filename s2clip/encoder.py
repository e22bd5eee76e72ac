"""Pictures to patch features in CLIP's joint space: resize, windows, batches, merging. Knows no words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.errors import reject
from s2clip.features import patch_features
from s2clip.methods import Method
from s2clip.stopwatch import Stopwatch
from s2clip.windows import Box, cut_windows, padding, resize, resized_size, splice, window_boxes

if TYPE_CHECKING:
    from s2clip.refinement.sam import Embedding


@dataclass(frozen=True, eq=False)
class Encoded:
    """One picture, ready for any words: unit vectors on a grid, per window or for the whole picture.

    picture uint8 [3,H,W] as it came; features [n,C,h,w] float32. n = 1 and one box where windows were spliced; else the
    windows of `merge="pixel"`, each of which covers `inner` of its `padded` pixels.
    """

    picture: Tensor
    features: Tensor
    boxes: tuple[Box, ...]
    """Windows in pixels of the resized picture."""
    inner: Box
    """Where a window lies in the padded one."""
    padded: tuple[int, int]
    """Pixels of a padded window."""
    canvas: tuple[int, int]
    """(H, W) of the resized picture."""
    spliced: bool
    source: str | None = None
    """Path of the picture, if it has one."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds per stage; those of a batch are shared out by windows."""
    sam: "Embedding | None" = None
    """SAM's view of the picture, where a refinement needs one."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, and so of the label map."""
        return tuple(self.picture.shape[1:])


@dataclass(eq=False)
class _Job:
    """One picture on its way through the batches."""

    picture: Tensor
    canvas: tuple[int, int]
    boxes: list[Box]
    windows: Tensor
    watch: Stopwatch
    features: list[Tensor] = field(default_factory=list)


class Encoder:
    """uint8 pictures → `Encoded`, with the backbones and the method fixed.

    At most `max_batch` windows go through the backbones at once. `mix_pictures` lets windows of several pictures share
    a batch. On a GPU that fills the machine; a matrix product may then round differently in the last bit, because the
    libraries choose their algorithm by batch size. Without it every picture is computed as if it were alone, bit by
    bit. None: mixed on CUDA only, where alone a small picture leaves most of the device idle.

    `ValueError` where a spliced method's crop or stride is not a multiple of CLIP's patch.
    """

    def __init__(
        self, clip, vfm, method: Method, *, max_batch: int | None = None, mix_pictures: bool | None = None
    ) -> None:
        on_cuda = clip.device.type == "cuda"
        self.clip, self.vfm, self.method = clip, vfm, method
        self.max_batch = max_batch if max_batch is not None else (32 if on_cuda else 8)
        self.mix_pictures = mix_pictures if mix_pictures is not None else on_cuda
        if self.max_batch < 1:
            reject("max_batch", "at least 1", max_batch)
        patch = clip.patch_size
        self.multiple = math.lcm(patch, vfm.patch_size) if method.uses_vfm else patch
        if method.merge == "splice":
            self.multiple = patch
            for name in ("crop", "stride"):
                value = getattr(method, name)
                if value is not None and method.crop is not None and value % patch:
                    reject(name, f"a multiple of {patch}, the patch of {clip.name}, for merge='splice'", value)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        """Pictures uint8 [3,H,W], of any sizes, in order."""
        jobs = [self._prepare(picture) for picture in pictures]
        clocks = [(batch, self._run(batch)) for batch in self._batches(jobs)]
        encoded = [self._merge(job) for job in jobs]
        timings = {id(job): job.watch.milliseconds() for job in jobs}
        for batch, watch in clocks:
            total = sum(len(windows) for _, windows in batch)
            for stage, value in watch.milliseconds().items():
                for job, windows in batch:
                    own = timings[id(job)]
                    own[stage] = own.get(stage, 0.0) + value * len(windows) / total
        return [replace(one, timings=timings[id(job)]) for one, job in zip(encoded, jobs, strict=True)]

    def _prepare(self, picture: Tensor) -> _Job:
        method, clip = self.method, self.clip
        watch = Stopwatch(clip.device)
        with watch("resize"):
            multiple = self.multiple if method.merge == "splice" else 1
            canvas = resized_size(*picture.shape[1:], method.short_side, method.long_side, multiple)
            resized = resize(picture.to(clip.device), canvas, antialias=method.antialias)
            boxes = window_boxes(*canvas, method.crop, method.stride)
            windows = cut_windows(resized, boxes, self.multiple, clip.mean.flatten())
        return _Job(picture, canvas, boxes, windows, watch)

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[tuple[_Job, Tensor]]]:
        """Lists of (picture, some of its windows [k,3,h,w]) of one window size, at most `max_batch` windows in all."""
        if not self.mix_pictures:
            for job in jobs:
                for windows in job.windows.split(self.max_batch):
                    yield [(job, windows)]
            return
        by_shape: dict[tuple[int, ...], list[_Job]] = {}
        for job in jobs:
            by_shape.setdefault(tuple(job.windows.shape[1:]), []).append(job)
        for group in by_shape.values():
            batch, room = [], self.max_batch
            for job in group:
                windows = job.windows
                while len(windows):
                    batch.append((job, windows[:room]))
                    windows, room = windows[room:], room - len(windows[:room])
                    if room == 0:
                        yield batch
                        batch, room = [], self.max_batch
            if batch:
                yield batch

    def _run(self, batch: list[tuple[_Job, Tensor]]) -> Stopwatch:
        watch = Stopwatch(self.clip.device)
        windows = batch[0][1] if len(batch) == 1 else torch.cat([windows for _, windows in batch])
        features = patch_features(windows, self.method, self.clip, self.vfm, watch)
        if self.method.merge == "pixel":
            with watch("head"):
                features = self._head(features)
        for (job, _), part in zip(batch, features.split([len(windows) for _, windows in batch]), strict=True):
            job.features.append(part)
        return watch

    def _merge(self, job: _Job) -> Encoded:
        features = torch.cat(job.features)
        height, width = job.boxes[0].size
        inner, padded, boxes = padding(height, width, self.multiple), tuple(job.windows.shape[2:]), job.boxes
        spliced = self.method.merge == "splice"
        if spliced:
            with job.watch("head"):
                whole = splice(features.float(), job.boxes, job.canvas, self.clip.patch_size)
                features = self._head(whole[None])
            boxes, padded = [Box(0, 0, *job.canvas)], job.canvas
            inner = boxes[0]
        return Encoded(job.picture, features, tuple(boxes), inner, padded, job.canvas, spliced)

    def _head(self, features: Tensor) -> Tensor:
        """[n,D,h,w] → unit vectors [n,C,h,w] float32: LN_post, projection, normalisation."""
        joint = self.clip.head(features.permute(0, 2, 3, 1)).float()
        return F.normalize(joint, dim=-1).permute(0, 3, 1, 2).contiguous()
