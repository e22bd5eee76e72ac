"""Milliseconds per stage, without stopping the device in between."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Stopwatch:
    """`with watch("clip"): ...` adds to stage "clip"; `milliseconds()` reads all stages.

    On CUDA a stage is timed by two events on the current stream, so the host runs ahead as it would untimed. Reading
    waits for the last stage that was timed, and for nothing that was queued after it.
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
        totals: dict[str, float] = {}
        for stage, start, end in self._spans:
            totals[stage] = totals.get(stage, 0.0) + self._between(start, end)
        return totals

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, start, end) -> float:
        if isinstance(start, float):
            return (end - start) * 1000
        end.synchronize()
        return start.elapsed_time(end)


class Timings(Mapping[str, float]):
    """Milliseconds per stage as a sum of parts, read when somebody looks: parts of a GPU may still be running.

    Each part is a stopwatch, or milliseconds that are known, and the share of it that counts: a picture's windows of
    all windows in a batch.
    """

    def __init__(self, *parts: tuple[Stopwatch | Mapping[str, float], float]) -> None:
        self._parts = parts
        self._totals: dict[str, float] | None = None

    def _read(self) -> dict[str, float]:
        if self._totals is None:
            totals: dict[str, float] = {}
            for part, share in self._parts:
                stages = part.milliseconds() if isinstance(part, Stopwatch) else part
                for stage, value in stages.items():
                    totals[stage] = totals.get(stage, 0.0) + value * share
            self._totals, self._parts = totals, ()
        return self._totals

    def __getitem__(self, stage: str) -> float:
        return self._read()[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return f"Timings({self._read()})"

    def __reduce__(self) -> tuple:
        return Timings, ((self._read(), 1.0),)
