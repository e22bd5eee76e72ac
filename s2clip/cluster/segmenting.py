"""`s2clip segment` by actors: bytes of pictures in; files and lines of the manifest out, or rows."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from s2clip.cluster.pool import Work
from s2clip.cluster.rows import row_of
from s2clip.errors import ImageError
from s2clip.pictures.reading import Failure
from s2clip.results.result import Result
from s2clip.segmenter import Segmenter


class Job(NamedTuple):
    """What an actor needs to know: how to load the segmenter, and where results go."""

    settings: Mapping[str, Any]
    """Keywords of `from_pretrained`."""
    classes: Sequence[str]
    background: int | None
    output: Path | None
    """Of the files; None: rows are given back."""
    formats: Sequence[str]
    names: bool = True
    threads: int | None = None
    """Of torch in each actor; None: as Ray sets them."""

    def load(self) -> Work:
        """In the actor."""
        limit_threads(self.threads)
        segmenter = Segmenter.from_pretrained(**self.settings)
        segmenter.set_classes(self.classes, background=self.background)
        return Segmenting(segmenter, self)


class Segmenting:
    """Rows {"key", "path", "stem", "content" or "error"} → lines {"key", "record"}, with a "row" where no files are
    written, or {"key", "error"}.

    Files are whole when their line is given back; doing a row again writes the same files again.
    """

    def __init__(self, segmenter: Segmenter, job: Job) -> None:
        self.segmenter, self.job = segmenter, job

    @property
    def settings(self) -> dict[str, Any]:
        return self.segmenter.settings

    def __call__(self, rows: Sequence[dict]) -> list[dict]:
        read = [row for row in rows if row.get("error") is None]
        results = self.segmenter.stream([row["content"] for row in read], on_error="record")
        return [self._line(row, results if row.get("error") is None else None) for row in rows]

    def _line(self, row: dict, results: Iterator[Result | Failure] | None) -> dict:
        if results is None:
            return {"key": row["key"], "error": row["error"]}
        try:
            result = next(results)
            if isinstance(result, Failure):
                raise result.error
            result = dataclasses.replace(result, source=row["path"])
            job = self.job
            if job.output is None:
                return {"key": row["key"], "record": result.record({}), "row": row_of(result, row["key"], job.formats)}
            paths = result.save(job.output, job.formats, stem=row["stem"], sidecars=False, names=job.names)
            return {"key": row["key"], "stem": row["stem"], "record": result.record(paths)}
        except Exception as error:  # none of one picture's errors ends the others
            text = " ".join(str(error).split()) or type(error).__name__
            return {"key": row["key"], "error": text.removeprefix("bytes: ") if isinstance(error, ImageError) else text}


def limit_threads(threads: int | None) -> None:
    """As many threads of torch as this actor's share of the machine; Ray would give it one."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def share_of_threads(workers: int) -> int | None:
    """Threads of each of so many actors on this machine; None where somebody said how many by OMP_NUM_THREADS."""
    return None if os.environ.get("OMP_NUM_THREADS") else max(1, (os.cpu_count() or 1) // workers)
