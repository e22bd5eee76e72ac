"""Rows spread over actors: each loads once what it works with, and gives lines of JSON back."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from s2clip.cluster.attempts import MOST, Attempts, Remote, guarded
from s2clip.errors import ClusterError, reject

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset


class Work(Protocol):
    """What an actor does: rows → a line for each, as JSON values; each line has the "key" of its row."""

    def __call__(self, rows: Sequence[dict]) -> list[dict]: ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the lines depend on, as JSON values."""


ROWS = 32
"""Rows that an actor is given at once: it reads ahead within them."""
INIT_DEATHS = 8


@dataclass(frozen=True)
class Cluster:
    """How much of a cluster is asked for.

    address: see `session.connected`. workers: actors; gpus: GPUs of each, which may be a part of one. rows: how many an
    actor is given at once.
    """

    address: str | None = None
    workers: int = 1
    gpus: float = 0.0
    rows: int = ROWS
    tries: int = MOST

    def blocks(self, count: int) -> int:
        """In how many blocks so many rows are given out: enough for every actor, and none larger than `rows`."""
        return max(-(-count // self.rows), min(count, self.workers))

    @property
    def readers(self) -> int:
        """How many of Ray's processes read."""
        return 2 * self.workers

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("gpus", 0), ("rows", 1), ("tries", 1)):
            if getattr(self, name) < least:
                reject(name, f"at least {least}", getattr(self, name))


def spread(dataset: "Dataset", load: Callable[[], Work], cluster: Cluster, blocks: int | None = None) -> Iterator[dict]:
    """The lines of all rows, in whatever order they are done. Ray must be connected.

    load: called once in each actor. blocks: of the dataset, where that is known: no more actors than that. A row whose
    process ends again and again gives {"key", "error"}.

    Raises:
        ClusterError: what is asked for is not there, or no actor could load.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.max_consecutive_actor_init_deaths = INIT_DEATHS
    # beside the driver: if its machine is gone, so is the driver
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    memory: Any = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote(cluster.tries)
    done = dataset.map_batches(
        Actor,
        fn_constructor_args=(load, memory, cluster.tries),
        batch_size=cluster.rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(cluster.workers, blocks or cluster.workers)),
        num_cpus=1,
        num_gpus=cluster.gpus or None,
    )
    try:
        for row in done.iter_rows():
            yield json.loads(row["line"])
    except ray.exceptions.RayError as error:
        raise ClusterError(f"--engine ray: {_last_line(error)}") from error
    finally:
        ray.kill(memory)


def spread_items(items: Sequence[dict], load: Callable[[], Work], cluster: Cluster) -> Iterator[dict]:
    """`spread` of rows that the driver has."""
    import ray

    blocks = cluster.blocks(len(items))
    yield from spread(ray.data.from_items(list(items), override_num_blocks=blocks), load, cluster, blocks)


def introduced(load: Callable[[], Work], cluster: Cluster) -> tuple[dict[str, Any], list[str]]:
    """(settings, warnings) of the work, loaded once in a process that has what an actor will have.

    The driver's machine may be of another kind, with no GPU. Raises what loading raises, and as `spread`.
    """
    import ray

    _check_resources(cluster)
    task = ray.remote(_introduce).options(num_cpus=1, num_gpus=cluster.gpus or None, max_retries=0)
    try:
        return ray.get(task.remote(load))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"--engine ray: {_last_line(error)}") from error


def _introduce(load: Callable[[], Work]) -> tuple[dict[str, Any], list[str]]:
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("s2clip").addHandler(handler)
    try:
        return load().settings, list(dict.fromkeys(heard))
    finally:
        logging.getLogger("s2clip").removeHandler(handler)


class Actor:
    """One process of the pool, whose work is done by one thread of it.

    Ray builds an actor in one thread and calls it in another. OpenMP keeps a team for each thread that ever computed,
    and with two teams on two cores products ran at 0.62 of their speed (1.3 cores at work in place of 2).
    """

    def __init__(self, load: Callable[[], Work], attempts: Any, most: int) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.work = self._thread.submit(load).result()
        self.guarded = partial(guarded, attempts=Remote(attempts), most=most)

    def __call__(self, table: "pyarrow.Table") -> "pyarrow.Table":
        import pyarrow

        lines = self._thread.submit(self.guarded, table.to_pylist(), self.work).result()
        return pyarrow.table({"line": [json.dumps(line, allow_nan=False) for line in lines]})


def _check_resources(cluster: Cluster) -> None:
    import ray

    there = ray.cluster_resources()
    for name, wanted in (("GPU", cluster.gpus * cluster.workers), ("CPU", cluster.workers)):
        if there.get(name, 0) < wanted:
            raise ClusterError(
                f"--workers {cluster.workers}: {wanted:g} {name}s are needed, the cluster has {there.get(name, 0):g}"
            )


def _last_line(error: BaseException) -> str:
    """What went wrong, without the path it came on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
