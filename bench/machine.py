"""The machine under a benchmark: what it is called, what it could do, and when it has finished."""

import functools
import subprocess
from pathlib import Path

import torch

# (dense fp16 FLOP/s with fp32 accumulation, bytes/s): NVIDIA's data sheets. Others are measured at start.
CEILINGS = {
    "NVIDIA GeForce RTX 4090": (165.2e12, 1008e9),
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def finish() -> None:
    """Waits for the current stream: lighter than the whole device, and enough for one stream."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


@functools.cache
def ceilings() -> tuple[float, float] | None:
    """(FLOP/s, bytes/s) of the GPU; None on the CPU, where no share of a ceiling is claimed."""
    if not torch.cuda.is_available():
        return None
    if name() in CEILINGS:
        return CEILINGS[name()]
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * 8192**3 / _seconds(lambda: left @ right), 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(run, repeats: int = 10) -> float:
    for _ in range(3):
        run()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / repeats


def floor_seconds(flops: float, moved: float) -> float | None:
    """The larger of arithmetic and memory time at the ceilings."""
    limits = ceilings()
    return None if limits is None else max(flops / limits[0], moved / limits[1])


def versions() -> dict[str, str | None]:
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    here = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return {"torch": torch.__version__, "triton": triton_version, "commit": git.stdout.strip() or None}
