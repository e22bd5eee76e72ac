"""Milliseconds per stage, without stopping the device in between."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """`with watch("clip"): ...` adds to stage "clip"; `milliseconds()` reads all stages, waiting for the device once.

    On CUDA a stage is timed by two events on the current stream, so the host runs ahead as it would untimed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._spans: list[tuple[str, object, object]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = self._now()
        yield
        self._spans.append((stage, start, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Stage → milliseconds, in the order the stages first ran."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        totals: dict[str, float] = {}
        for stage, start, end in self._spans:
            span = (end - start) * 1000 if isinstance(start, float) else start.elapsed_time(end)
            totals[stage] = totals.get(stage, 0.0) + span
        return totals

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
