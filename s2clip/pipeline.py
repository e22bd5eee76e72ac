"""A stream of pictures through a device: groups are queued ahead of the reader, failures stay in their place."""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from s2clip.pictures.reading import Failure, Picture
from s2clip.results.result import Result

logger = logging.getLogger(__name__)

Finish = Callable[[], Sequence[Result]]
"""Waits for what was queued, checks it, and gives it."""
Compute = Callable[[Sequence[Picture]], Finish]
"""Queues the work of some pictures on the device."""


class DeviceQueue:
    """Lets a GPU work one group ahead of the reader; on the CPU work is done when it is queued, and nothing is ahead.

    The GPU's work goes to a stream of its own. On the reader's stream, a reader who copies a label map to the host
    would wait for the group after his, and the GPU would wait for him before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead = 0 if self.stream is None else 1

    def __reduce__(self) -> tuple:
        return DeviceQueue, (self.device,)

    def __call__(self, compute: Compute, pictures: Sequence[Picture]) -> Finish:
        if self.stream is None:
            return compute(pictures)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            finish = compute(pictures)
            done = self.stream.record_event()
        return lambda: self._finished(finish, done)

    def _finished(self, finish: Finish, done: torch.cuda.Event) -> Sequence[Result]:
        done.synchronize()
        results = finish()
        for tensor in device_tensors(results):  # not to be given away by our stream while the reader's stream uses it
            tensor.record_stream(torch.cuda.current_stream(self.device))
        return results


def device_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a GPU in results, their regions and whatever else holds some."""
    if isinstance(value, Tensor):
        if value.device.type == "cuda":
            yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from device_tensors(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from device_tensors(part)


def run(
    batches: Iterable[list[Picture | Failure]],
    compute: Compute,
    queue: DeviceQueue,
    *,
    split: Callable[[list[Picture | Failure]], list[int]],
    record: bool,
) -> Iterator[Result | Failure]:
    """Results in order.

    split: a batch → the lengths of the groups that are computed together. record: failures are yielded in their place,
    and where a group fails its pictures are tried one by one; else the first failure is raised, after what came before.
    """
    queued: deque[Iterator[Result | Failure]] = deque()
    for batch in batches:
        rest = iter(batch)
        for length in split(batch):
            group = list(islice(rest, length))
            queued.append(_launch(group, compute, queue, record))
            if len(queued) > queue.ahead:
                yield from queued.popleft()
    while queued:
        yield from queued.popleft()


def _launch(
    group: list[Picture | Failure], compute: Compute, queue: DeviceQueue, record: bool
) -> Iterator[Result | Failure]:
    """Queue the group now; what is returned waits for it when it is iterated, and raises no sooner."""
    if not record:
        failed = next((place for place, one in enumerate(group) if isinstance(one, Failure)), len(group))
        group = group[: failed + 1]
    pictures = [one for one in group if not isinstance(one, Failure)]
    error: Exception | None = None
    try:
        finish = queue(compute, pictures) if pictures else list
    except Exception as raised:
        error = raised

    def outcomes() -> Iterator[Result | Failure]:
        try:
            if error is not None:
                raise error
            results: Iterator[Result | Failure] = iter(finish())
        except Exception as raised:
            if not record:
                raise
            results = _one_by_one(pictures, compute, queue, raised)
        for one in group:
            if not isinstance(one, Failure):
                yield next(results)
            elif record:
                yield one
            else:
                raise one.error

    return outcomes()


def _one_by_one(
    pictures: Sequence[Picture], compute: Compute, queue: DeviceQueue, error: Exception
) -> Iterator[Result | Failure]:
    """Pictures that failed with `error` together, each alone."""
    for picture in pictures:
        try:
            if len(pictures) == 1:
                raise error
            yield queue(compute, [picture])()[0]
        except Exception as own:
            logger.info("%s", picture.source, exc_info=own)
            yield Failure(picture.pixels if picture.source is None else picture.source, own)
