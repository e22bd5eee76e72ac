"""What a launcher would compile, without a GPU: the cases of the compile gate are recorded from calls on meta tensors.

Triton compiles once per cache key: types of the arguments, which of them it specialises on (divisible by 16, equal to
1), constexpr values and options. Inside `recorded(arch)` every kernel of the package computes that key with Triton's
own code and does nothing else; the tensors may be on the CPU or have no memory.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launch(NamedTuple):
    """One cache key in words."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    specialised: tuple[tuple[str, Any], ...]  # arguments that this key holds only for some values of
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]


class Run(NamedTuple):
    """One launch, with the values of its arguments."""

    launch: Launch
    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Launches(dict):
    """Launch → the kernel, in the order of the first time; `runs` has every launch."""

    def __init__(self):
        super().__init__()
        self.runs: list[Run] = []


class _Recorder:
    def __init__(self, kernel, backend, launches: Launches):
        # Under the interpreter `triton.jit` keeps the function and its options, not the compiler's view of them.
        self.kernel = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
        self.bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        self.launches = launches

    def __getitem__(self, grid):
        return functools.partial(self._record, grid)

    def _record(self, grid, *arguments, **keywords):
        bound, specialisation, options = self.bind(*arguments, **keywords)
        kinds = dict(zip(bound, specialisation, strict=True))
        run_time = {name: kind for name, kind in kinds.items() if kind[0] != "constexpr"}
        missing = set(OPTIONS) - set(options)
        assert not missing, f"{self.kernel.__name__} is launched without an explicit {', '.join(sorted(missing))}"
        launch = Launch(
            self.kernel.__name__,
            tuple((name, kind[0]) for name, kind in run_time.items()),
            tuple((name, kind[1]) for name, kind in run_time.items() if kind[1]),
            tuple((name, bound[name]) for name in bound if name not in run_time),
            tuple(sorted(options.items())),
        )
        self.launches.setdefault(launch, self.kernel)
        self.launches.runs.append(Run(launch, self.kernel, tuple(grid), dict(bound)))


@contextmanager
def recorded(arch: int) -> Iterator[Launches]:
    """Collects the distinct keys of everything that is launched, as if on a GPU of architecture `arch`."""
    launches = Launches()
    backend = make_backend(GPUTarget("cuda", arch, 32))
    modules = [module for name, module in sys.modules.items() if name.startswith("s2clip.kernels.")]
    with ExitStack() as stack:
        for module in modules:
            if hasattr(module, "architecture"):
                stack.enter_context(mock.patch.object(module, "architecture", return_value=arch))
            for name, value in list(vars(module).items()):
                if name.endswith("_kernel") and hasattr(value, "fn"):
                    stack.enter_context(mock.patch.object(module, name, _Recorder(value, backend, launches)))
        yield launches
