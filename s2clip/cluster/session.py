"""A connection to Ray: to a cluster by its address, or to one of this process on this machine."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from s2clip.errors import ClusterError, MissingExtraError

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
"""Ray reports its use over the network unless told not to, warns of a change in how it hides GPUs, and gives its actors
niceness 15: on a machine with other work they would hardly run at all."""


SECONDS = 5.0


def prepare() -> None:
    """Before Ray is imported: its settings, unless somebody has chosen others."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def connected(address: str | None, *, workers: int) -> Iterator[None]:
    """Ray for the time of the block; what is connected already stays so.

    address: "host:port" of a cluster's head, or "auto" for the one that this machine belongs to; None: processes of
    this machine, which end with the block. workers: how many actors are going to be asked for.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: no cluster answers at the address.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("--engine ray needs Ray: pip install 's2clip[ray]'")
    _check_reachable(address)
    prepare()
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if address is None:
            # "local": None would join a cluster that RAY_ADDRESS or another program on this machine names;
            # readers need a share of a processor beside the actors
            cores = max(os.cpu_count() or 1, workers + 1)
            ray.init("local", num_cpus=cores, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = "on this machine" if address is None else f"at {address}"
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"--engine ray: no Ray {where}: {reason}") from None
    try:
        _hush()
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """`ClusterError` at once for a HOST:PORT where nobody listens; Ray would try for minutes."""
    found = re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--engine ray: no Ray at {address}: {error}") from None


def _hush() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
