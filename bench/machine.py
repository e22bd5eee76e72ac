"""The machine under a benchmark: what it is called, what it could do, whether it is free, when it has finished."""

import datetime
import functools
import importlib.util
import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import torch

LANES_PER_EXPONENTIAL = 8
"""An SM of sm_80 to sm_90 starts 128 fp32 operations per clock and 16 exponentials."""


class Ceilings(NamedTuple):
    """What a device can do per second at most."""

    tensor: float  # fp16 or bf16 FLOP with fp32 accumulation
    single: float  # fp32 FLOP, a multiply-add is two
    memory: float  # bytes of DRAM, read and written
    source: str

    @property
    def lanes(self) -> float:
        """fp32 instructions per second, a multiply-add is one."""
        return self.single / 2

    @property
    def exponentials(self) -> float:
        return self.lanes / LANES_PER_EXPONENTIAL


CEILINGS = {
    "NVIDIA GeForce RTX 4090": Ceilings(165.2e12, 82.6e12, 1008e9, "data sheet, sm_89"),
}


class Work(NamedTuple):
    """What an op cannot avoid: each input read once, each output written once, no intermediate."""

    tensor_flops: float = 0.0
    lane_operations: float = 0.0
    """fp32 instructions, one per lane and clock."""
    exponentials: float = 0.0
    bytes: float = 0.0

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds: the slowest of arithmetic, fp32 issue, exponentials and memory, as if they overlapped fully."""
        return max(
            self.tensor_flops / ceilings.tensor,
            self.lane_operations / ceilings.lanes,
            self.exponentials / ceilings.exponentials,
            self.bytes / ceilings.memory,
        )


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def finish() -> None:
    """Waits for the current stream: lighter than the whole device, and enough for one stream."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


@functools.cache
def ceilings() -> Ceilings:
    """The data sheet's where the table has the device, else measured once: products of matrices and a copy."""
    if name() in CEILINGS:
        return CEILINGS[name()]
    on_gpu = torch.cuda.is_available()
    side, elements = (8192, 1 << 28) if on_gpu else (1024, 1 << 24)
    single = _product(side, torch.float32)
    half = _product(side, torch.float16) if on_gpu else single  # a CPU computes in fp32
    source = torch.ones(elements, device=device())
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    return Ceilings(half, single, memory, "measured at start: matrix products, copy")


def _product(side: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(side, side, device=device(), dtype=dtype) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right)


def _seconds(run, repeats: int = 5) -> float:
    """The quickest of a few runs: a ceiling is what the device can do, not what it does on average."""
    times = []
    for _ in range(repeats):
        finish()
        start = time.perf_counter()
        run()
        finish()
        times.append(time.perf_counter() - start)
    return min(times)


def free_bytes() -> int | None:
    """Memory of the GPU that is not taken, by this process or any other; None without a GPU."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def obstacles() -> list[str]:
    """Why figures of this machine would mislead, a line each; empty where it is a GPU to itself."""
    if not torch.cuda.is_available():
        return ["no GPU: ratios of one run on this CPU, which say nothing about a GPU and are not stored"]
    lines = []
    state = clocks()
    if state.get("utilization.gpu", 0) > 10:
        lines.append(f"busy GPU: {state['utilization.gpu']:.0f} % in use before the first measurement; rows say so")
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    if others > 2 << 30:
        lines.append(f"busy GPU: {others / 2**30:.1f} GiB of its memory belong to other processes; rows say so")
    return lines


QUERIES = ("utilization.gpu", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def clocks() -> dict[str, float]:
    """What nvidia-smi says of load, clocks (MHz), power (W) and temperature; empty where it is not to be had."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
        cells = answer.splitlines()[0].split(",")
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return {}
    return {query: float(cell) for query, cell in zip(QUERIES, cells, strict=True) if _is_number(cell)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def setup() -> dict:
    """What all rows of a run share."""
    return {
        "gpu": name(),
        **versions(),
        "date": datetime.date.today().isoformat(),
        "obstacles": obstacles(),
        "clocks": clocks(),
    }


def versions() -> dict[str, str | None]:
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {"torch": torch.__version__, "triton": triton_version, "commit": _commit()}


def _commit() -> str:
    """Of the code; stored rows do not make it another one. S2CLIP_COMMIT says it where no repository is at hand."""
    if given := os.environ.get("S2CLIP_COMMIT"):
        return given

    def git(*arguments: str) -> str:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=9", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    except OSError:
        return "unknown"
    return commit + ("-dirty" if changed else "") if commit else "unknown"


def give_up(what: str, error: Exception) -> None:
    """Say in one line what was not measured and why, and return what it held of the GPU's memory."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    print(f"{what}: not measured ({reason})", flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
