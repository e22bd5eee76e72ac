"""Several processes on one data set: shards by hand, or the ranks of torchrun."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from s2clip.errors import reject

Shard = tuple[int, int]
WHOLE: Shard = (0, 1)


def parse_shard(text: str | None) -> Shard | None:
    """ "1/4" → (1, 4): the second of four. `ValueError` for anything but 0 <= i < n."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        reject("--shard", "i/n with i from 0 to n-1", repr(text))
    return int(found[1]), int(found[2])


def rank_of_torchrun() -> Shard | None:
    """(rank, world size) where torchrun started this process among others."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return (int(rank), int(world)) if rank and world and int(world) > 1 else None


def local_device() -> str | None:
    """The GPU that torchrun meant for this process, or None outside of torchrun."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank and rank_of_torchrun() and torch.cuda.is_available() else None


@contextmanager
def process_group() -> Iterator[None]:
    """The ranks of torchrun meet over gloo for the time of the block; nothing happens without torchrun.

    A rank may wait for the slowest one for a week; if one dies, torchrun ends the others.
    """
    if rank_of_torchrun() is None:
        yield
        return
    import torch.distributed as distributed

    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gather(own: list[Any]) -> list[Any] | None:
    """The lists of all ranks, one after the other, on rank 0; None on the others."""
    import torch.distributed as distributed

    lists = [None] * distributed.get_world_size() if distributed.get_rank() == 0 else None
    distributed.gather_object(own, lists, dst=0)
    return None if lists is None else [item for one in lists for item in one]
