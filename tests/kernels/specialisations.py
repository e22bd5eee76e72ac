"""What a launcher would compile, without a GPU.

Triton compiles once per cache key: types of the arguments, which of them it specialises on (divisible by 16, equal to
1), constexpr values and options. Inside `recorded(module, arch)` the kernels of a module compute that key with Triton's
own code and do nothing else; the arguments may be tensors on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launch(NamedTuple):
    """One cache key in words; comparable with `s2clip.kernels.inspect.Case`."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    specialised: tuple[tuple[str, Any], ...]  # arguments that this key holds only for some values of
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]


class _Recorder:
    def __init__(self, kernel, backend, launches: set[Launch]):
        # Under the interpreter `triton.jit` keeps the function and its options, not the compiler's view of them.
        self.kernel = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
        self.bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        self.launches = launches

    def __getitem__(self, grid):
        return self._record

    def _record(self, *arguments, **keywords):
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
        self.launches.add(launch)


@contextmanager
def recorded(module: ModuleType, arch: int) -> Iterator[set[Launch]]:
    """Collects the distinct keys of everything that `module` launches, as if on a GPU of architecture `arch`."""
    launches: set[Launch] = set()
    backend = make_backend(GPUTarget("cuda", arch, 32))
    kernels = {name: value for name, value in vars(module).items() if hasattr(value, "fn") and hasattr(value, "run")}
    recorders = {name: _Recorder(kernel, backend, launches) for name, kernel in kernels.items()}
    with mock.patch.multiple(module, architecture=lambda device: arch, **recorders):
        yield launches


def of_case(case) -> Launch:
    """The key of a case of the compile gate."""
    run_time = [name for name in case.kernel.arg_names if name in case.signature]
    return Launch(
        case.kernel.__name__,
        tuple((name, case.signature[name]) for name in run_time),
        tuple((name, "D") for name in run_time if name in case.aligned),
        tuple((name, case.constants[name]) for name in case.kernel.arg_names if name in case.constants),
        tuple(sorted(zip(OPTIONS, (case.num_warps, case.num_stages, case.enable_fp_fusion), strict=True))),
    )
