"""Evaluate on a data set so that nothing is lost: every batch is on the disk before the next one ends.

    folder/protocol.json     what was evaluated and how, held against every later run into the same folder
    folder/records/*.jsonl   one line per batch (`s2clip.evaluation.records`)
    folder/result.{json,md,csv}, confusion.csv    once every picture was tried
    folder/predictions/*.png where asked for

Reading runs ahead of the device in threads, writing behind it in one; what the main thread does besides asking the
models is the metric.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from s2clip.errors import DatasetError, OutputError, reject
from s2clip.evaluation import pictures, protocol, ranks, records
from s2clip.evaluation.answers import Answer, AnswersElsewhere, SavedAnswers, SegmenterAnswers
from s2clip.evaluation.metrics import confusion_matrix
from s2clip.evaluation.pictures import Item
from s2clip.evaluation.report import MODELS, Report
from s2clip.files import writable_folder
from s2clip.shelter import sheltered

try:
    import resource
except ImportError:  # Windows does not tell
    resource = None

BATCH = 8
NO_BAR = partial(tqdm, disable=True)
MIB = 1024 * 1024


@sheltered()
def evaluate_dataset(
    answers: Any,
    dataset: Any,
    output: str | os.PathLike,
    *,
    limit: int | None = None,
    resume: bool = False,
    shard: ranks.Shard | None = None,
    batch_size: int = BATCH,
    save_predictions: bool = False,
    source: str | None = None,
    progress: Callable[..., Any] = NO_BAR,
) -> Report:
    """Score `answers` on the first `limit` pictures of the data set and write the result into `output`.

    A picture that cannot be read, or that the models fail on, is recorded, and the run goes on; resuming tries it
    again. Result files are written once every picture was tried: by the last shard to end, by rank 0 of torchrun.

    Args:
        answers: a `Segmenter` whose classes are set, `SavedAnswers` or `AnswersElsewhere`.
        dataset: see `s2clip.evaluation.pictures.Dataset`.
        resume: go on where a run into this folder stopped, with the same settings; its limit and shards may differ.
        shard: (i, n): every n-th batch from the i-th on; batches are the same in any split. None: all, or the part of
            this rank under torchrun.
        batch_size: pictures per call of the models and per line of the log.
        save_predictions: also write a label PNG of every picture.
        source: where the settings come from; for protocol.json.
        progress: called as `tqdm(total=, initial=, unit=)`.

    Raises:
        ValueError: a limit below 1, or class counts that differ.
        OutputError: a folder of other settings, of an earlier run without `resume`, or that cannot be written.
    """
    answers = answers if isinstance(answers, SavedAnswers | AnswersElsewhere) else SegmenterAnswers(answers)
    asked = range(len(dataset) if limit is None else min(limit, len(dataset)))
    if limit is not None and limit < 1:
        reject("limit", "at least 1", limit)
    if not len(dataset):
        raise DatasetError(f"{dataset.name}: no picture to evaluate on")
    prompts = answers.settings.get("prompts", dataset.classes)
    if len(prompts) != len(dataset.classes):
        reject("prompts", f"one entry for each of the {len(dataset.classes)} classes of {dataset.name}", len(prompts))
    output = writable_folder(output)
    described = protocol.describe(dataset, answers.settings, batch_size=batch_size, source=source)
    protocol.settle(output, described)
    part = shard or ranks.rank_of_torchrun() or ranks.WHOLE
    together = shard is None and part != ranks.WHOLE

    chunks = [asked[start : start + batch_size] for start in range(0, len(asked), batch_size)][part[0] :: part[1]]
    todo = _remaining(output, part, chunks, len(dataset.classes), resume)
    total, left = sum(map(len, chunks)), sum(map(len, todo))
    with progress(total=total, initial=total - left, unit=" pictures") as bar:
        log = partial(records.append, records.shard_path(output, part))
        predictions = output / "predictions" if save_predictions else None
        if isinstance(answers, AnswersElsewhere):
            for line in answers.lines(todo, predictions):
                log(line)
                bar.update(len(line["pictures"]))
        else:
            run_chunks(answers, dataset, todo, predictions, log, bar)
    batches = records.read(output)
    if together:
        batches = ranks.gather(batches) or batches
    report = Report(described, records.tally(batches, len(dataset.classes), asked), len(asked), output)
    if report.complete and not (together and part[0]):
        report.write()
    return report


def _remaining(
    output: Path, part: ranks.Shard, chunks: Sequence[Sequence[int]], classes: int, resume: bool
) -> list[list[int]]:
    """The pictures still to be scored, by chunk. Without `resume` there may be no records but other shards'."""
    if not resume and records.foreign(output, part):
        raise OutputError(
            f"{output}: holds the records of an earlier run: --resume goes on with it, or choose another folder with -o"
        )
    done = records.tally(records.read(output), classes, [index for chunk in chunks for index in chunk]).done
    left = [[index for index in chunk if index not in done] for chunk in chunks]
    return [chunk for chunk in left if chunk]


def run_chunks(
    answers: Any,
    dataset: Any,
    todo: Sequence[Sequence[int]],
    predictions: Path | None,
    log: Callable[[dict[str, Any]], None],
    bar: Any,
) -> None:
    """Score chunks of indices one after the other; `log` gets the line of each (`records`) once its PNGs are there."""
    if answers.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(answers.device)
    written: Future[None] | None = None
    with (
        closing(pictures.batches(dataset, todo, answers.reading)) as batches,
        ThreadPoolExecutor(1, thread_name_prefix="s2clip-write") as writer,
    ):
        clock = _Clock()
        queue = _Queue(batches, clock)
        stream = answers(queue)
        for chunk in todo:
            answered = list(islice(stream, len(chunk)))
            items = queue.next_asked()
            clock.lap(MODELS)
            scored = [_score(item, answer, len(dataset.classes)) for item, answer in zip(items, answered, strict=True)]
            clock.lap("metric")
            if written is not None:
                written.result()
            clock.lap("write")
            seconds, milliseconds = clock.read()
            line = {
                "pictures": scored,
                "seconds": round(seconds, 6),
                "stages_ms": _rounded(milliseconds | _stages(items, answered)),
                "peak_mib": peak_mib(answers.device),
            }
            written = writer.submit(_write, log, line, items, answered, predictions)
            bar.update(len(items))
        if written is not None:
            written.result()


class _Clock:
    """Milliseconds of consecutive parts of a batch."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._spans: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """What has passed since the last lap was this stage."""
        now = time.perf_counter()
        self._spans[stage] = self._spans.get(stage, 0.0) + now - self._last
        self._last = now

    def read(self) -> tuple[float, dict[str, float]]:
        """(seconds, milliseconds by stage) since the last reading."""
        spans, self._spans = self._spans, {}
        return sum(spans.values()), {stage: 1000 * span for stage, span in spans.items()}


class _Queue:
    """Batches on their way to the models, which may pull further than what they have answered."""

    def __init__(self, batches: Iterator[list[Item]], clock: _Clock) -> None:
        self._batches, self._clock = batches, clock
        self._asked: deque[list[Item]] = deque()

    def __iter__(self) -> Iterator[list[Item]]:
        while True:
            self._clock.lap(MODELS)
            items = next(self._batches, None)
            self._clock.lap("wait")
            if items is None:
                return
            self._asked.append(items)
            yield items

    def next_asked(self) -> list[Item]:
        """The oldest batch that was pulled and not yet taken here."""
        return self._asked.popleft()


def _score(item: Item, answer: Answer, classes: int) -> dict[str, Any]:
    """The record of one picture."""
    record = {"index": item.index, "name": item.name}
    if answer.error is not None:
        return record | {"error": answer.error}
    try:
        matrix = confusion_matrix(answer.labels, item.target.to(answer.labels.device), classes).cpu()
    except ValueError as error:
        return record | {"error": str(error)}
    return record | {"counts": records.sparse(matrix)}


def _stages(items: Sequence[Item], answered: Sequence[Answer]) -> dict[str, float]:
    """Milliseconds of decoding, which runs beside the models, and of the models' own stages."""
    stages = {"decode": sum(item.milliseconds for item in items)}
    for answer in answered:
        for name, value in answer.timings.items():
            stages[name] = stages.get(name, 0.0) + value
    return stages


def _rounded(milliseconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in milliseconds.items()}


def peak_mib(device: torch.device) -> dict[str, float]:
    """The most memory this process has held so far: of the host, and of the device if there is one."""
    peak = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        peak["host"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB, 1)
    if device.type == "cuda":
        peak["device"] = round(torch.cuda.max_memory_allocated(device) / MIB, 1)
    return peak


def _write(
    log: Callable[[dict[str, Any]], None],
    line: dict[str, Any],
    items: Sequence[Item],
    answered: Sequence[Answer],
    predictions: Path | None,
) -> None:
    """The pictures first: what is recorded has its prediction."""
    if predictions is not None:
        for item, answer in zip(items, answered, strict=True):
            if answer.result is not None:
                answer.result.save(predictions, ("png",), stem=item.name, sidecars=False)
    log(line)
