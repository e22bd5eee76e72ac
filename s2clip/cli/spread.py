"""`s2clip segment --engine ray`: the driver, which gives pictures to actors and alone says what is done."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from s2clip.cli.console import bar, say, usage_errors
from s2clip.cli.engines import Sources, connection

if TYPE_CHECKING:
    from ray.data import Dataset

    from s2clip.cluster.pool import Cluster
    from s2clip.cluster.rows import RowSink
    from s2clip.results.folder import OutputFolder


class Run(NamedTuple):
    """What the command line says of a run of `segment`. models: keywords of `from_pretrained`."""

    models: dict[str, Any]
    classes: Sequence[str]
    background: int | None
    output: Path | None
    """None: rows, no files."""
    formats: Sequence[str]
    names: bool
    resume: bool


class Sink(Protocol):
    """Where results go, and what is there already."""

    def settle(self, settings: dict[str, Any], classes: Sequence[str], background: int | None) -> None: ...

    def has(self, picture: Path) -> bool: ...

    def keys(self) -> set[str]: ...

    def add(self, line: dict[str, Any], picture: Path | None) -> None: ...

    def finish(self, failed: Sequence[dict[str, str]]) -> None: ...


class Files:
    """Files in a folder, which actors have written when their lines come."""

    def __init__(self, folder: "OutputFolder", run: Run) -> None:
        self.folder, self.formats, self.resume = folder, run.formats, run.resume
        self.settle, self.finish = folder.settle, folder.finish

    def has(self, picture: Path) -> bool:
        return self.resume and self.folder.has(picture, self.formats)

    def keys(self) -> set[str]:
        return self.folder.keys(self.formats) if self.resume else set()

    def add(self, line: dict[str, Any], picture: Path | None) -> None:
        record, output = line["record"], self.folder.path
        files = {name: output / os.path.relpath(file, output.resolve()) for name, file in record["files"].items()}
        record["files"] = {name: str(path) for name, path in files.items()}
        if picture is None:
            self.folder.add_key(line["key"], line["stem"], record)
        else:
            self.folder.add(picture, line["stem"], record)


class Rows:
    """Rows, which this process writes."""

    def __init__(self, sink: "RowSink") -> None:
        self.sink = sink
        self.settle, self.finish = sink.settle, sink.finish

    def has(self, picture: Path) -> bool:
        return str(picture) in self.sink.ids

    def keys(self) -> set[str]:
        return self.sink.ids

    def add(self, line: dict[str, Any], picture: Path | None) -> None:
        self.sink.add(line["row"])


def rows_of(address: str, run: Run, asked_formats: bool) -> tuple[Sink, Run]:
    """(sink of rows, the run with what of its formats is a column); `ValueError` for formats that cannot be one."""
    from s2clip.cluster.rows import RowSink, check_masks

    columns = check_masks(run.formats if asked_formats else ("png",))
    return Rows(RowSink(address, columns, resume=run.resume)), run._replace(formats=columns)


def by_cluster(
    cluster: "Cluster",
    run: Run,
    sink: Sink,
    named: Sequence[tuple[Path, str]],
    sources: Sources,
    columns: tuple[str, str | None],
    *,
    failures: list[tuple[str, str]],
    tell: Callable[[dict[str, Any]], None],
    show_progress: bool,
) -> list[dict[str, Any]]:
    """The records of the pictures as a cluster's actors do them, in whatever order; what fails is added to `failures`.

    named: (picture, stem) of files of this machine; or else sources, and their columns (see `s2clip.cluster.shards`).
    tell: called with each record.
    """
    from s2clip.cluster.pool import introduced, spread
    from s2clip.cluster.segmenting import Job, share_of_threads

    threads = share_of_threads(cluster.workers) if cluster.address is None else None
    output = None if run.output is None else run.output.resolve()
    job = Job(run.models, run.classes, run.background, output, run.formats, run.names, threads)
    done: list[dict[str, Any]] = []
    with connection(cluster):
        with usage_errors():
            settings, warnings = introduced(job.load, cluster)
        for line in warnings:
            say(f"WARNING: {line}", err=True)
        sink.settle(settings, run.classes, run.background)
        pictures = {str(picture): picture for picture, _ in named}
        rows, left_out, todo = _rows(cluster, sink, named, sources, columns)
        if left_out:
            say(f"{left_out} {'' if todo is None else f'of {left_out + todo} '}pictures were done before", err=True)
        blocks = None if todo is None else cluster.blocks(todo)
        lines = iter(()) if rows is None else spread(rows, job.load, cluster, blocks)
        seen: set[str] = set()
        try:
            for line in bar(show_progress)(lines, total=todo):
                source, record = line["key"], line.get("record")
                if record is None:
                    failures.append((source, line["error"]))
                    continue
                if source in seen:  # two rows of one id; of one hash they are the same picture
                    if columns[1] is not None:
                        failures.append((source, "another picture has the same id"))
                    continue
                seen.add(source)
                record |= {"source": source} if source in pictures else {}
                sink.add(line, pictures.get(source))
                done.append(record)
                tell(record)
        except KeyboardInterrupt:
            say(f"{left_out + len(done)} pictures are done; --resume does the others", err=True)
            raise
        finally:
            getattr(lines, "close", lambda: None)()
            sink.finish([{"source": source, "error": reason} for source, reason in failures])
    return done


def _rows(
    cluster: "Cluster",
    sink: Sink,
    named: Sequence[tuple[Path, str]],
    sources: Sources,
    columns: tuple[str, str | None],
) -> "tuple[Dataset | None, int, int | None]":
    """(what is left to do, how many pictures are done, how many are left where that is known)."""
    from s2clip.cluster.files import address_rows, local_rows, named_addresses
    from s2clip.cluster.shards import Columns, shard_rows

    if sources.shards:
        before = sink.keys()
        return shard_rows(sources.shards, Columns(*columns), before, cluster.rows, cluster.readers), len(before), None
    if sources.addresses:
        whole = named_addresses(sources.addresses)
        left = named_addresses(sources.addresses, sink.keys())
        rows = address_rows(left, cluster.blocks(len(left)), cluster.readers) if left else None
        return rows, len(whole) - len(left), len(left)
    todo = [one for one in named if not sink.has(one[0])]
    pictures, stems = [picture for picture, _ in todo], [stem for _, stem in todo]
    rows = local_rows(pictures, stems, cluster.blocks(len(todo)), cluster.readers) if todo else None
    return rows, len(named) - len(todo), len(todo)
