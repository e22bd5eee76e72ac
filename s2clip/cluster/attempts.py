"""Which rows a process was at when it ended, so that the one at fault is found, left out and named.

Ray starts an actor that died again and gives it the same rows. Without a memory of that, a picture that crashes its
process (a driver's fault, memory, a decoder) would crash it for ever.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

MOST = 3


class Attempts:
    """What has begun and not ended; lives in a process of its own, where no picture is touched.

    most: how often a row may end the process that works on nothing else.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._open: set[str] = set()
        self._alone: dict[str, int] = {}
        self._lost: set[str] = set()
        self._begun: dict[int, int] = {}

    def begin(self, keys: Sequence[str]) -> list[str] | None:
        """These are worked on together; those of them that were begun before and never ended are given back, and then
        none counts as begun.

        None: the process has ended more often than its rows explain, as one does whose end comes after its work; these
        are given up, or they would be begun for ever.
        """
        batch = hash(tuple(keys))  # a number each for 10^6 pictures, not their names
        self._begun[batch] = self._begun.get(batch, 0) + 1
        # together, then `most` times for each row that is lost and for the one that is at it, then to leave it out
        if self._begun[batch] > 2 + self.most * (1 + len(self._lost.intersection(keys))):
            return None
        suspects = [key for key in keys if key in self._open]
        if not suspects:
            self._open.update(keys)
        return suspects

    def begin_alone(self, key: str) -> bool:
        """This one is worked on by itself; False where it has ended its process too often for that."""
        tries = self._alone.get(key, 0)
        if tries >= self.most:
            self._lost.add(key)
            return False
        self._alone[key] = tries + 1
        self._open.add(key)
        return True

    def end(self, keys: Iterable[str]) -> None:
        """Nothing of these is in work any more."""
        for key in keys:
            self._open.discard(key)
            self._alone.pop(key, None)


class Asked(Protocol):
    """`Attempts`, wherever it lives."""

    def begin(self, keys: Sequence[str]) -> list[str] | None: ...

    def begin_alone(self, key: str) -> bool: ...

    def end(self, keys: Iterable[str]) -> None: ...


class Remote:
    """`Attempts` of another process, by the handle of its Ray actor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def begin(self, keys: Sequence[str]) -> list[str] | None:
        import ray

        return ray.get(self._handle.begin.remote(keys))

    def begin_alone(self, key: str) -> bool:
        import ray

        return ray.get(self._handle.begin_alone.remote(key))

    def end(self, keys: Iterable[str]) -> None:
        import ray

        ray.get(self._handle.end.remote(list(keys)))  # or the next row's end of the process would be this one's too


def guarded(
    rows: Sequence[dict], work: Callable[[Sequence[dict]], list[dict]], attempts: Asked, most: int
) -> list[dict]:
    """`work` of the rows, each of which has a "key": all together, or, after a process ended amid them, one by one.

    A row that ends its process `most` times by itself becomes {"key": .., "error": ..}.
    """
    keys = [row["key"] for row in rows]
    suspects = attempts.begin(keys)
    if suspects is None:
        return [{"key": key, "error": "the process that worked on it and others ended again and again"} for key in keys]
    if not suspects:
        lines = work(rows)
        attempts.end(keys)
        return lines
    lines = []
    for row in rows:
        if attempts.begin_alone(row["key"]):
            lines += work([row])
            attempts.end([row["key"]])
        else:
            lines.append({"key": row["key"], "error": f"ended the process that worked on it, {most} times"})
    return lines
