"""One of the eight benchmarks from the command line: data, presets, result folders, what is printed."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from s2clip.cli.console import bar, load_segmenter, say, usage_errors, word_bar
from s2clip.cli.engines import connection
from s2clip.cli.program import INPUTS_FAILED, ValueFailure

if TYPE_CHECKING:
    from s2clip.cluster.pool import Cluster
    from s2clip.evaluation.answers import AnswersElsewhere
    from s2clip.evaluation.datasets import Dataset
    from s2clip.evaluation.own import OwnData
    from s2clip.evaluation.presets import Preset
    from s2clip.evaluation.ranks import Shard
    from s2clip.evaluation.report import Report

OUTPUT = Path("out/evaluate")


@dataclass(frozen=True)
class MethodRun:
    """One column: a method by name, the stage it takes, what refines its map."""

    method: str
    stage: str = "none"
    refine: str = "none"

    @property
    def fields(self) -> "Mapping[str, Any]":
        """The stage's, of `Method`."""
        from s2clip.methods.stages import STAGES

        return STAGES[self.stage]


@dataclass(frozen=True)
class Run:
    """What the command line says of a run, whatever is evaluated."""

    dataset: str
    data: Path | None
    limit: int | None = None
    resume: bool = False
    shard: "Shard | None" = None
    save_predictions: bool = False
    output: Path | None = None
    show_progress: bool = False
    own: "OwnData | None" = None
    """Pictures and label maps of the user's, in place of a benchmark."""

    def open(self) -> "Dataset | OwnData":
        """The data set; exit code 2 for an unknown name, 1 where the folder is not what it should be."""
        if self.own is not None:
            return self.own
        from s2clip.evaluation.benchmarks import DATASETS, resolve_name
        from s2clip.evaluation.datasets import open_dataset

        try:
            name = resolve_name(self.dataset)
        except ValueError:
            valid = ", ".join(["scenes", *DATASETS])
            raise ValueFailure(f"dataset: expected one of {valid}, received {self.dataset!r}") from None
        if self.data is None:
            raise ValueFailure(f"--data: the folder of {name} is needed")
        return open_dataset(name, self.data)

    def evaluate(self, answers: Any, dataset: "Dataset | OwnData", *names: str, source: str | None = None) -> "Report":
        """The report of one result folder, <output>/<data set>/<names>."""
        from s2clip.evaluation import records
        from s2clip.evaluation.runner import evaluate_dataset

        folder = Path(self.output or OUTPUT, dataset.name, *names)
        with usage_errors(), _told_on_interrupt(lambda: sum(len(batch["pictures"]) for batch in records.read(folder))):
            return evaluate_dataset(
                answers,
                dataset,
                folder,
                limit=self.limit,
                resume=self.resume,
                shard=self.shard,
                save_predictions=self.save_predictions,
                source=source,
                progress=bar(self.show_progress),
            )


@contextmanager
def _told_on_interrupt(done: Callable[[], int]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(f"{done()} pictures are recorded; --resume does the others", err=True)
        raise


def evaluate_methods(
    run: Run,
    columns: list[MethodRun],
    ablate: bool,
    model_settings: dict[str, Any],
    cluster: "Cluster | None" = None,
) -> "Iterator[Report]":
    """Each with its preset, one after the other, in <output>/<data set>/<model>/<method>+<stage>+<refine>."""
    from s2clip.evaluation.presets import preset
    from s2clip.evaluation.ranks import local_device, process_group

    dataset, model = run.open(), model_settings["model"]
    given = {name: value for name, value in model_settings.items() if value is not None}
    with usage_errors():
        presets = [(preset(one.method, dataset.name, model), one) for one in columns]
    with process_group(), connection(cluster):
        for chosen, one in presets:
            with usage_errors():
                settings = {**chosen.options(model, one.refine), "device": local_device(), **given, **one.fields}
                if cluster is not None:
                    answers = _by_ray(partial(_loaded, chosen, settings), dataset, cluster)
                    yield run.evaluate(answers, dataset, model, _named(answers.settings), source=chosen.source)
                    continue
                segmenter = chosen.set_classes(load_segmenter(settings), progress=word_bar(run.show_progress))
            for variant, name in variants(segmenter, ablate and one.refine == "sam"):
                yield run.evaluate(variant, dataset, model, name, source=chosen.source)


def evaluate_own(
    run: Run,
    columns: list[MethodRun],
    ablate: bool,
    model_settings: dict[str, Any],
    cluster: "Cluster | None" = None,
    **rules: Any,
) -> "Iterator[Report]":
    """Each by its defaults, on the user's data, in <output>/<data>/<model>/<method>+<stage>+<refine>."""
    from s2clip.evaluation.ranks import local_device, process_group

    dataset, model = run.open(), model_settings["model"]
    given = {name: value for name, value in model_settings.items() if value is not None}
    source = "defaults, on data of one's own"
    with process_group(), connection(cluster):
        for one in columns:
            settings = {"method": one.method, "refine": one.refine, "device": local_device()}
            settings |= {**one.fields, **rules, **given}
            if cluster is not None:
                load = partial(_loaded_for, tuple(dataset.classes), dataset.background, settings)
                answers = _by_ray(load, dataset, cluster)
                yield run.evaluate(answers, dataset, model, _named(answers.settings), source=source)
                continue
            segmenter = load_segmenter(settings)
            with usage_errors():
                names, shown = list(dataset.classes), word_bar(run.show_progress)
                segmenter.set_classes(names, background=dataset.background, progress=shown)
            for variant, name in variants(segmenter, ablate and one.refine == "sam"):
                yield run.evaluate(variant, dataset, model, name, source=source)


def _by_ray(load: Callable[[], Any], dataset: Any, cluster: "Cluster") -> "AnswersElsewhere":
    """What evaluates by actors, each of which loads its segmenter so."""
    from s2clip.cluster.scoring import ScoringJob, answers_of
    from s2clip.cluster.segmenting import share_of_threads

    threads = share_of_threads(cluster.workers) if cluster.address is None else None
    with usage_errors():
        answers, warnings = answers_of(ScoringJob(load, dataset, threads=threads), cluster)
    for line in warnings:
        say(f"WARNING: {line}", err=True)
    return answers


def _loaded(chosen: "Preset", settings: dict[str, Any]) -> Any:
    """In the actor."""
    from s2clip import Segmenter

    return chosen.set_classes(Segmenter.from_pretrained(**settings))


def _loaded_for(classes: Sequence[str], background: int | None, settings: dict[str, Any]) -> Any:
    """In the actor."""
    from s2clip import Segmenter

    return Segmenter.from_pretrained(**settings).set_classes(list(classes), background=background)


def _named(settings: Mapping[str, Any]) -> str:
    """The folder of a method by its settings."""
    from s2clip.methods.stages import stage_name
    from s2clip.refinement.settings import refinement_name

    method = SimpleNamespace(**settings["method"])
    parts = (stage_name(method), refinement_name(settings).replace(" ", "-"))
    return "+".join([method.name, *(part for part in parts if part != "none")])


def variants(segmenter: Any, ablate: bool) -> Iterator[tuple[Any, str]]:
    """(segmenter, folder name) of the segmenter and, to ablate, of it without each part of its refinement."""
    from s2clip.evaluation.scenes import ablations
    from s2clip.methods.stages import stage_name
    from s2clip.refinement.settings import refinement_name

    for one in [segmenter, *(ablations(segmenter) if ablate else [])]:
        refine = refinement_name(one.settings).replace("w/o", "without").replace(" ", "-")
        yield one, "+".join([one.method.name, *(part for part in (stage_name(one.method), refine) if part != "none")])


def evaluate_predictions(run: Run, folder: Path) -> "Iterator[Report]":
    """What lies in the folder, in <output>/<data set>/predictions/<name of the folder>."""
    from s2clip.evaluation.answers import SavedAnswers

    dataset = run.open()
    yield run.evaluate(SavedAnswers(folder, dataset), dataset, "predictions", folder.resolve().name)


def announce(reports: "Iterable[Report]", as_json: bool) -> None:
    """Print the figures side by side and what failed; exit code 1 if anything did. Rank 0 of torchrun speaks for all.

    A shard whose siblings are not done says what is missing in place of figures. An error, as of a method whose weights
    are missing, comes after the figures that the methods before it took hours for.
    """
    from s2clip.evaluation.ranks import rank_of_torchrun

    rank, _ = rank_of_torchrun() or (0, 1)
    done: list[Report] = []
    try:
        for report in reports:
            done.append(report)  # noqa: PERF402 - extend does not say what it keeps when the iterator raises
    finally:
        if done and rank == 0:
            _tell(done, as_json)
    if rank == 0 and any(report.failed for report in done):
        sys.exit(INPUTS_FAILED)


def _tell(reports: "list[Report]", as_json: bool) -> None:
    from s2clip.evaluation.report import side_by_side

    complete = [report for report in reports if report.complete]
    if as_json:
        rows = [{**report.document, "complete": report.complete, "folder": str(report.folder)} for report in reports]
        say(json.dumps({"dataset": reports[0].document["dataset"], "rows": rows}, allow_nan=False))
    elif complete:
        pictures = complete[0].document["pictures"]
        say(f"{complete[0].document['dataset']}: {pictures['asked']} of {pictures['in_dataset']} pictures, per cent\n")
        say(side_by_side(complete) + "\n")
    for report in reports if not as_json else []:
        if report.complete:
            say(f"{report.title}: {report.folder}")
        else:
            done = f"{report.tried} of {report.asked} pictures are done"
            say(f"{report.title}: {done}; the last shard writes the result, or s2clip merge {report.folder} ...")
    failed = [(report, *failure) for report in reports for failure in report.failed]
    for report, name, reason in failed:
        say(f"failed: {report.title}: {name}: {reason}", err=True)
    if failed:
        say(f"{sum(len(report.tally.done) for report in reports)} scored, {len(failed)} failed", err=True)
