"""Pictures to patch features in CLIP's joint space: resize, windows, batches, merging. Knows no words."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import memory
from s2clip.backbones.precision import at_least_float32
from s2clip.encoding.encoded import Encoded
from s2clip.encoding.hooks import Models, Windows, window_hooks
from s2clip.errors import reject
from s2clip.methods.method import Method
from s2clip.pictures.windows import Box, Splice, cut_windows, nearest, padded_size, padding, resized_size, window_boxes
from s2clip.shelter import sheltered
from s2clip.stopwatch import Stopwatch, Timings


@dataclass(eq=False)
class _Job:
    """One picture on its way through the batches."""

    picture: Tensor
    resized: Tensor
    """What is cut into windows, when their turn comes: 1,225 of them are 1.7 GB."""
    boxes: list[Box]
    regions: Tensor | None
    region_ids: Tensor | None
    """The regions at the size of `resized`."""
    splice: Splice | None
    watch: Stopwatch
    plan: memory.Plan | None
    features: Tensor | None = None
    kept: int = 0
    """How many windows' features there are."""
    extra: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def canvas(self) -> tuple[int, int]:
        return tuple(self.resized.shape[1:])

    def keep(self, features: Tensor) -> None:
        """The next windows' features, into one tensor for all: joined at the end, they would be held twice."""
        if len(features) == len(self.boxes):
            self.features = features
            return
        if self.features is None:
            on_host = self.plan is not None and self.plan.on_host
            place = {"device": "cpu", "pin_memory": True} if on_host else {"device": features.device}
            self.features = torch.empty((len(self.boxes), *features.shape[1:]), dtype=features.dtype, **place)
        self.features[self.kept : self.kept + len(features)].copy_(features, non_blocking=True)
        self.kept += len(features)


class Encoder:
    """uint8 pictures → `Encoded`, with the backbones and the method fixed.

    At most `max_batch` windows go through the backbones at once. `mix_pictures` lets windows of several pictures share
    a batch. On a GPU that fills the machine; a matrix product may then round differently in the last bit, because the
    libraries choose their algorithm by batch size. Without it every picture is computed as if it were alone, bit by
    bit. None: mixed on CUDA only, where alone a small picture leaves most of the device idle. `cap`: the memory that
    may be used; `max_batch` then is the most that is tried.

    `ValueError` where a spliced method's crop or stride is not a multiple of CLIP's patch.
    """

    def __init__(
        self,
        models: Models,
        method: Method,
        *,
        max_batch: int | None = None,
        mix_pictures: bool | None = None,
        cap: memory.Cap | None = None,
    ) -> None:
        clip, vfm = models.clip, models.vfm
        on_cuda = clip.device.type == "cuda"
        self.models, self.clip, self.method, self.extension = models, clip, method, window_hooks(method)
        self.cap = cap
        self.max_batch = max_batch if max_batch is not None else (32 if on_cuda else 8)
        self.mix_pictures = mix_pictures if mix_pictures is not None else on_cuda
        if self.max_batch < 1:
            reject("max_batch", "at least 1", max_batch)
        patch = clip.patch_size
        self.multiple = method.pad_multiple or (math.lcm(patch, vfm.patch_size) if method.uses_vfm else patch)
        if method.merge == "splice":
            self.multiple = patch
            for name in ("crop", "stride"):
                value = getattr(method, name)
                if value is not None and method.crop is not None and value % patch:
                    reject(name, f"a multiple of {patch}, the patch of {clip.name}, for merge='splice'", value)

    @sheltered()
    def __call__(self, pictures: Sequence[Tensor], regions: Sequence[Tensor] | None = None) -> list[Encoded]:
        """Pictures uint8 [3,H,W], of any sizes, in order; regions: ids [H,W] of each, for a method that needs them."""
        jobs = [self._prepare(*one) for one in zip(pictures, regions or [None] * len(pictures), strict=True)]
        parts: dict[int, list[tuple[Stopwatch, float]]] = {id(job): [(job.watch, 1.0)] for job in jobs}
        for batch in self._batches(jobs):
            watch, total = self._run(batch), sum(len(job.boxes[part]) for job, part in batch)
            for job, part in batch:
                parts[id(job)].append((watch, len(job.boxes[part]) / total))
        return [replace(self._merge(job), timings=Timings(*parts[id(job)])) for job in jobs]

    def plan(self, size: tuple[int, int]) -> memory.Plan | None:
        """How a picture of (H,W) is worked on under the cap, None without one.

        Raises ValueError where it cannot be, under the cap or in this machine: a picture of 1x300 becomes one window of
        132,000 patches, whose attention no machine holds.
        """
        method = self.method
        multiple = self.multiple if method.merge == "splice" or self.extension.aligned else 1
        canvas = resized_size(*size, method.short_side, method.long_side, multiple)
        boxes = window_boxes(*canvas, method.crop, method.stride)
        window = padded_size(*boxes[0].size, self.multiple)
        patch = max(self.clip.patch_size, self.models.vfm.patch_size if method.uses_vfm else 1)
        if min(window) < patch:
            reject("picture", f"at least one patch of {patch} pixels in a window, or pad_multiple=None", window)
        sizes = memory.Sizes(tuple(size), canvas, window, len(boxes))
        plan = (self.cap or self._machine).plan(sizes, most_windows=1 if self.cap is None else self.max_batch)
        return None if self.cap is None else plan

    @functools.cached_property
    def _machine(self) -> memory.Cap:
        """What the device has, for these models."""
        load = memory.load_of(self.models, self.method)
        return memory.Cap(memory.machine_bytes(self.clip.device), load, asked=False)

    def _prepare(self, picture: Tensor, regions: Tensor | None) -> _Job:
        method, clip = self.method, self.clip
        plan, watch = self.plan(tuple(picture.shape[1:])), Stopwatch(clip.device)
        with watch("resize"):
            multiple = self.multiple if method.merge == "splice" or self.extension.aligned else 1
            resized = self.extension.prepare(picture.to(clip.device), method, multiple)
            canvas = (resized.shape[1], resized.shape[2])
            boxes = window_boxes(*canvas, method.crop, method.stride)
            ids = None if regions is None else nearest(regions.to(clip.device).long(), canvas)[None]
        splice = Splice(boxes, canvas, clip.patch_size) if method.merge == "splice" else None
        return _Job(picture, resized, boxes, regions, ids, splice, watch, plan)

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[tuple[_Job, slice]]]:
        """Lists of (picture, which of its windows) of one window size, as many as `max_batch` and the cap allow.

        A method whose windows depend on each other gets all those of one picture at once, however many.
        """
        if self.extension.whole_picture:
            yield from ([(job, slice(0, len(job.boxes)))] for job in jobs)
            return
        if not self.mix_pictures:
            for job in jobs:
                most = self._most([job])
                for start in range(0, len(job.boxes), most):
                    yield [(job, slice(start, start + most))]
            return
        by_shape: dict[tuple[int, ...], list[_Job]] = {}
        for job in jobs:
            by_shape.setdefault(padded_size(*job.boxes[0].size, self.multiple), []).append(job)
        for group in by_shape.values():
            most = self._most(group)
            batch, room = [], most
            for job in group:
                start, count = 0, len(job.boxes)
                while start < count:
                    stop = min(start + room, count)
                    batch.append((job, slice(start, stop)))
                    start, room = stop, room - (stop - start)
                    if room == 0:
                        yield batch
                        batch, room = [], most
            if batch:
                yield batch

    def _most(self, jobs: Sequence[_Job]) -> int:
        """Windows in a batch of these pictures."""
        return min((job.plan.windows for job in jobs if job.plan is not None), default=self.max_batch)

    def _run(self, batch: list[tuple[_Job, slice]]) -> Stopwatch:
        watch, regions = Stopwatch(self.clip.device), None
        with watch("resize"):
            mean = self.clip.mean.flatten()
            images = _joined([cut_windows(job.resized, job.boxes[part], self.multiple, mean) for job, part in batch])
            if batch[0][0].region_ids is not None:
                outside = torch.tensor([-1])
                regions = _joined(
                    [cut_windows(job.region_ids, job.boxes[part], self.multiple, outside)[:, 0] for job, part in batch]
                )
        windows = Windows(images, regions, self._most([job for job, _ in batch]))
        features, extra, joint = self.extension.window_features(windows, self.models, self.method, watch)
        if self.method.merge == "pixel":
            with watch("head"):
                features = F.normalize(at_least_float32(features), dim=-3) if joint else self._head(features)
        lengths = [len(job.boxes[part]) for job, part in batch]
        with watch("head"):
            for (job, _), own in zip(batch, features.split(lengths), strict=True):
                if job.splice is None:
                    job.keep(own)
                else:
                    job.splice.add(at_least_float32(own))
        for name, values in extra.items():
            for (job, _), own in zip(batch, values.split(lengths), strict=True):
                job.extra.setdefault(name, []).append(own)
        return watch

    def _merge(self, job: _Job) -> Encoded:
        height, width = job.boxes[0].size
        sam, boxes, inner = None, job.boxes, padding(height, width, self.multiple)
        padded, spliced = padded_size(height, width, self.multiple), job.splice is not None
        if not spliced:
            features = job.features
        else:
            with job.watch("head"):
                whole, job.splice = job.splice.result(), None
            whole, sam = self.extension.picture_features(whole, job.picture, self.models, self.method, job.watch)
            with job.watch("head"):
                features = self._head_in_rows(whole)[None]
            boxes, padded, inner = [Box(0, 0, *job.canvas)], job.canvas, Box(0, 0, *job.canvas)
        extra = {name: _joined(values) for name, values in job.extra.items()}
        geometry = (tuple(boxes), inner, padded, job.canvas)
        others = {"sam": sam, "extra": extra, "regions": job.regions}
        words_at_once = None if job.plan is None else job.plan.words
        return Encoded(job.picture, features, *geometry, spliced, words_at_once=words_at_once, **others)

    def _head_in_rows(self, features: Tensor) -> Tensor:
        """`_head` of a picture [D,h,w]; a large one some rows at a time, into the place of the features, as C <= D."""
        rows, channels = max(1, memory.HEAD_CELLS // features.shape[2]), self.clip.embed_dim
        if rows >= features.shape[1] or channels > len(features):
            return self._head(features)
        for part in features.split(rows, 1):
            part[:channels] = self._head(part)
        return features[:channels]

    def _head(self, features: Tensor) -> Tensor:
        """[...,D,h,w] → unit vectors [...,C,h,w] float32: LN_post, projection, normalisation."""
        joint = at_least_float32(self.clip.head(features.movedim(-3, -1)))
        return F.normalize(joint, dim=-1).movedim(-1, -3).contiguous()


def _joined(parts: list[Tensor], axis: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
