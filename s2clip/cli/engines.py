"""`--engine`: what its options mean together, and the pictures of a run segmented here or by a cluster."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s2clip.cli.console import bar, say, usage_errors
from s2clip.errors import first_few, reject
from s2clip.names import match_name

if TYPE_CHECKING:
    from s2clip.cluster.pool import Cluster
    from s2clip.results.folder import OutputFolder

ENGINES = ("local", "ray")


class Run(NamedTuple):
    """What the command line says of a run of `segment`. models: keywords of `from_pretrained`."""

    models: dict[str, Any]
    classes: Sequence[str]
    background: int | None
    output: Path
    formats: Sequence[str]
    names: bool
    resume: bool


def chosen_cluster(engine: dict[str, Any], device: str | None) -> "Cluster | None":
    """None for this process. `ValueError` for options that do not go together."""
    name = match_name("engine", engine["engine"], ENGINES)
    if name == "local":
        for option in ("address", "workers", "gpus_per_worker", "column", "id_column"):
            if option not in engine:
                continue
            if engine[option] is not None:
                reject(f"--{option.replace('_', '-')}", "--engine ray with it", "--engine local")
        return None
    from s2clip.cluster.pool import Cluster

    workers, gpus = engine["workers"], engine["gpus_per_worker"]
    if workers is not None and workers < 1:
        reject("--workers", "at least 1", workers)
    if gpus is not None and not 0 <= gpus <= 64:
        reject("--gpus-per-worker", "0 to 64", gpus)
    if gpus is None:
        gpus = 0.0 if device == "cpu" or not _any_gpu(engine["address"]) else 1.0
    return Cluster(engine["address"], workers or 1, gpus)


def refuse_for_cluster(named: Mapping[str, Collection[Any]]) -> None:
    """`ValueError` for the first kind of work that one process does."""
    for kind, those in named.items():
        if those:
            shown = first_few(sorted(map(str, those)), 3)
            raise ValueError(f"--engine ray: not for {kind} ({shown}), which one process does; leave --engine out")


def chosen_shards(sources: Sequence[str], cluster: "Cluster | None", settings: Mapping[str, Any]) -> list[str]:
    """The shards that the words of the command line name; `ValueError` where they, or their columns, cannot be read."""
    from s2clip.cluster.shards import is_shard

    found = [one for source in sources for one in (sorted(glob(source)) if "://" not in source else ()) or [source]]
    shards = [one for one in found if is_shard(one)]
    for name in (name for name, value in settings.items() if value and not shards):
        raise ValueError(f"--{name.replace('_', '-')}: of shards (.parquet), and none is named")
    if not shards:
        return []
    if cluster is None:
        raise ValueError(f"{shards[0]}: shards are read by --engine ray")
    others = [one for one in found if not is_shard(one)]
    if others:
        raise ValueError(f"{others[0]}: not a shard, as {shards[0]} is; pictures in files are a run of their own")
    return list(dict.fromkeys(shards))


def _any_gpu(address: str | None) -> bool:
    """Of this machine; a cluster's are asked for by --gpus-per-worker, since nobody knows them before."""
    import torch

    return address is None and torch.cuda.is_available()


def connection(cluster: "Cluster | None") -> AbstractContextManager[None]:
    """Ray for the time of the block, where it is needed."""
    if cluster is None:
        return nullcontext()
    from s2clip.cluster.session import connected

    return connected(cluster.address, workers=cluster.workers)


def by_cluster(
    cluster: "Cluster",
    run: Run,
    folder: "OutputFolder",
    named: Sequence[tuple[Path, str]],
    *,
    failures: list[tuple[str, str]],
    tell: Callable[[dict[str, Any]], None],
    show_progress: bool,
    shards: Sequence[str] = (),
    columns: tuple[str, str | None] = ("image", None),
) -> list[dict[str, Any]]:
    """The records of the pictures as a cluster's actors do them, in whatever order; what fails is added to `failures`.

    Only this process writes the manifest. named: (picture, stem) of files; or else shards, and their columns (see
    `s2clip.cluster.shards`). tell: called with each record.
    """
    from s2clip.cluster.files import local_rows
    from s2clip.cluster.pool import introduced, spread
    from s2clip.cluster.segmenting import Job, share_of_threads
    from s2clip.cluster.shards import Columns, shard_rows

    threads = share_of_threads(cluster.workers) if cluster.address is None else None
    job = Job(run.models, run.classes, run.background, run.output.resolve(), run.formats, run.names, threads)
    done: list[dict[str, Any]] = []
    with connection(cluster):
        with usage_errors():
            settings, warnings = introduced(job.load, cluster)
        for line in warnings:
            say(f"WARNING: {line}", err=True)
        folder.settle(settings, run.classes, run.background)
        before = folder.keys(run.formats) if run.resume and shards else set()
        todo = [one for one in named if not (run.resume and folder.has(one[0], run.formats))]
        if left_out := len(before) + len(named) - len(todo):
            say(f"{left_out} {'' if shards else f'of {len(named)} '}pictures were done before", err=True)
        stems = {str(picture): stem for picture, stem in todo}
        pictures = [picture for picture, _ in todo]
        if shards:
            rows = shard_rows(shards, Columns(*columns), before, cluster.rows)
        else:
            rows = local_rows(pictures, list(stems.values()), cluster.blocks(len(todo))) if todo else None
        blocks = None if shards else cluster.blocks(len(todo))
        lines = iter(()) if rows is None else spread(rows, job.load, cluster, blocks)
        try:
            for line in bar(show_progress)(lines, total=None if shards else len(todo)):
                source, record = line["key"], line.get("record")
                if record is None:
                    failures.append((source, line["error"]))
                    continue
                files = {name: run.output / os.path.relpath(file, job.output) for name, file in record["files"].items()}
                record["files"] = {name: str(path) for name, path in files.items()}
                record |= {} if shards else {"source": source}
                if shards:
                    folder.add_key(source, line["stem"], record)
                else:
                    folder.add(Path(source), stems[source], record)
                done.append(record)
                tell(record)
        except KeyboardInterrupt:
            say(f"{left_out + len(done)} pictures are done; --resume does the others", err=True)
            raise
        finally:
            getattr(lines, "close", lambda: None)()
            folder.finish([{"source": source, "error": reason} for source, reason in failures])
    return done
