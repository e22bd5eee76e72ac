"""`--engine`: what its options mean together, and where the pictures of a run lie."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from glob import glob
from typing import TYPE_CHECKING, Any, NamedTuple

from s2clip.errors import first_few, reject
from s2clip.names import match_name

if TYPE_CHECKING:
    from s2clip.cluster.pool import Cluster

ENGINES = ("local", "ray")


class Sources(NamedTuple):
    """What a cluster reads that one process does not: shards, or pictures at addresses."""

    shards: Sequence[str] = ()
    addresses: Sequence[str] = ()


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


def listed(sources: Sequence[str]) -> list[str]:
    """The words of the command line, with the lines of LIST in place of @LIST."""
    from s2clip.cluster.addresses import read_list

    unread = [(one, one.startswith("@") and not os.path.lexists(one)) for one in sources]
    return [line for one, is_list in unread for line in (read_list(one[1:]) if is_list else [one])]


def chosen_sources(sources: Sequence[str], cluster: "Cluster | None", settings: Mapping[str, Any]) -> Sources:
    """The shards and addresses that the words of the command line name; `ValueError` where they do not go together."""
    from s2clip.cluster.addresses import found, is_address, public
    from s2clip.cluster.shards import is_shard

    remote = [one for one in sources if is_address(one)]
    if remote and cluster is None:
        raise ValueError(f"{public(remote[0])}: addresses are read by --engine ray; or download it and give its path")
    words = [one for source in sources for one in (() if is_address(source) else sorted(glob(source))) or [source]]
    every = list(dict.fromkeys(one for word in words for one in (found(word) if is_address(word) else [word])))
    shards = [one for one in every if is_shard(one)]
    for name in (name for name, value in settings.items() if value and not shards):
        raise ValueError(f"--{name.replace('_', '-')}: of shards (.parquet), and none is named")
    if shards and cluster is None:
        raise ValueError(f"{public(shards[0])}: shards are read by --engine ray")
    others = [one for one in every if not is_shard(one)]
    if shards and others:
        raise ValueError(
            f"{public(others[0])}: not a shard, as {public(shards[0])} is; pictures in files are a run of their own"
        )
    addresses = [one for one in others if is_address(one)]
    if addresses and len(addresses) < len(others):
        here = next(one for one in others if not is_address(one))
        raise ValueError(
            f"{here}: not at an address, as {public(addresses[0])} is; pictures of this machine are a run apart"
        )
    return Sources(shards, addresses)


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
