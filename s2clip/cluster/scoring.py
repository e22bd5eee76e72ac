"""`s2clip evaluate` by actors: indices of a data set in, lines of its records out."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from s2clip.cluster.pool import Cluster, Work, introduced, spread_items
from s2clip.cluster.segmenting import limit_threads
from s2clip.evaluation.answers import AnswersElsewhere, SegmenterAnswers
from s2clip.evaluation.runner import BATCH, NO_BAR, run_chunks


class ScoringJob(NamedTuple):
    """What an actor needs to know. segmenter: loads one whose classes are set."""

    segmenter: Callable[[], Any]
    dataset: Any
    predictions: Path | None = None
    threads: int | None = None

    def load(self) -> Work:
        """In the actor."""
        limit_threads(self.threads)
        return Scoring(SegmenterAnswers(self.segmenter()), self)


class Scoring:
    """Rows {"key", "index"} → lines {"key", "pictures", "seconds", "stages_ms", "peak_mib"} of one picture each."""

    def __init__(self, answers: SegmenterAnswers, job: ScoringJob) -> None:
        self.answers, self.job = answers, job

    @property
    def settings(self) -> dict[str, Any]:
        return self.answers.settings

    def __call__(self, rows: Sequence[dict]) -> list[dict]:
        heard: list[dict] = []
        indices = [row["index"] for row in rows]
        chunks = [indices[start : start + BATCH] for start in range(0, len(indices), BATCH)]
        with NO_BAR() as bar:
            run_chunks(self.answers, self.job.dataset, chunks, self.job.predictions, heard.append, bar)
        return [line for chunk in heard for line in _singles(chunk)]


def _singles(chunk: dict) -> Iterator[dict]:
    """A line of several pictures as one for each, which have equal shares of what it took."""
    share = 1 / len(chunk["pictures"])
    stages = {stage: round(value * share, 3) for stage, value in chunk["stages_ms"].items()}
    for one in chunk["pictures"]:
        spent = {"seconds": round(chunk["seconds"] * share, 6), "stages_ms": stages, "peak_mib": chunk["peak_mib"]}
        yield {"key": str(one["index"]), "pictures": [one], **spent}


def answers_of(job: ScoringJob, cluster: Cluster) -> tuple[AnswersElsewhere, list[str]]:
    """What `evaluate_dataset` may be given in place of a segmenter, and the warnings of loading it.

    Ray must be connected for as long as it is used.
    """
    settings, warnings = introduced(job.load, cluster)
    return AnswersElsewhere(settings, partial(_lines, job, cluster)), warnings


def _lines(
    job: ScoringJob, cluster: Cluster, chunks: Sequence[Sequence[int]], predictions: Path | None
) -> Iterator[dict[str, Any]]:
    items = [{"key": str(index), "index": index} for chunk in chunks for index in chunk]
    if not items:
        return
    for line in spread_items(items, job._replace(predictions=predictions).load, cluster):
        key = line.pop("key")
        if "error" in line:  # it ended its process
            failed = {"index": int(key), "name": job.dataset[int(key)].name, "error": line["error"]}
            line = {"pictures": [failed], "seconds": 0.0, "stages_ms": {}, "peak_mib": {}}
        yield line
