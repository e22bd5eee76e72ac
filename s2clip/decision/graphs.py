"""Small work that comes again with the same sizes, as CUDA graphs: one launch instead of one per kernel.

A graph is tied to sizes, so sizes are the buckets: VOC has two that make up most of it, Cityscapes has one. Capturing
costs as much as some hundred replays save, so only what has come `after` times is captured, and only the latest
`capacity` are kept. Written without a GPU at hand: the choice of buckets is tested with a stand-in for the capture, the
capture itself has never run, and what it saves is unmeasured.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import s2clip.ops  # registers torch.ops.s2clip  # noqa: F401

Function = Callable[..., tuple[Tensor, ...]]
"""Tensors by position, constants by name → new tensors; nothing in it may wait for the device."""


class CapturedGraph:
    """`function` on tensors of fixed sizes. Not for two streams at a time: inputs and outputs have one place each."""

    def __init__(self, function: Function, tensors: tuple[Tensor, ...], constants: dict[str, Any]) -> None:
        self.inputs = tuple(tensor.clone() for tensor in tensors)
        with torch.cuda.device_of(self.inputs[0]):  # streams and captures are those of the current device
            self.graph = torch.cuda.CUDAGraph()
            function(*self.inputs, **constants)  # compiles kernels and makes workspaces, which a capture may not
            torch.cuda.current_stream().synchronize()
            # Threads that read pictures pin memory meanwhile, which a capture watched globally would not survive.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs, **constants)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.cuda.device_of(self.inputs[0]):
            for place, tensor in zip(self.inputs, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
            self.graph.replay()
            return tuple(output.clone() for output in self.outputs)


class GraphCache:
    """Calls `function`; sizes and constants that come for the `after`-th time are captured, then replayed."""

    def __init__(
        self,
        function: Function,
        *,
        after: int = 8,
        capacity: int = 8,
        capture: Callable[[Function, tuple[Tensor, ...], dict[str, Any]], Function] | None = None,
    ) -> None:
        self.function, self.after, self.capacity, self.capture = function, after, capacity, capture or CapturedGraph
        self._graphs: OrderedDict[tuple, Function] = OrderedDict()
        self._seen: OrderedDict[tuple, int] = OrderedDict()

    def __reduce__(self) -> tuple:
        """Graphs are a process's own: a copy captures anew."""
        return _new_cache, (self.function, self.after, self.capacity, self.capture)

    def __call__(self, *tensors: Tensor, **constants: Any) -> tuple[Tensor, ...]:
        sizes = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in tensors)
        key = (sizes, tuple(sorted(constants.items())))
        if key not in self._graphs:
            if not self._has_come_often(key):
                return self.function(*tensors, **constants)
            self._graphs[key] = self.capture(self.function, tensors, constants)
            while len(self._graphs) > self.capacity:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key](*tensors)

    def _has_come_often(self, key: tuple) -> bool:
        self._seen[key] = self._seen.get(key, 0) + 1
        self._seen.move_to_end(key)
        while len(self._seen) > 64 * self.capacity:
            self._seen.popitem(last=False)
        if self._seen[key] < self.after:
            return False
        del self._seen[key]  # once dropped from the graphs it has to come as often again
        return True


def _new_cache(function: Function, after: int, capacity: int, capture: Any) -> GraphCache:
    return GraphCache(function, after=after, capacity=capacity, capture=capture)


def classify(
    features: Tensor,
    text: Tensor,
    class_index: Tensor,
    *,
    size: tuple[int, int],
    scale: float,
    classes: int,
    threshold: float,
    background: int,
) -> tuple[Tensor, Tensor]:
    """The shared decision on a spliced picture, without a look at the host: features [C,h,w], text [Q,C] → labels [H,W]
    int64, confidence [H,W].

    class_index [Q] int64 on the device, of `classes` classes: `ops.classify_pixels` would read them to check them.
    """
    cosines = (text @ features.flatten(1)).unflatten(1, features.shape[1:])[None]
    rules = (scale, class_index, classes, threshold, background)
    labels, confidence = torch.ops.s2clip.classify_pixels(cosines, list(size), *rules)
    return labels[0].long(), confidence[0]
