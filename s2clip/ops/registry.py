"""How an op is registered with `torch.library`, and which code runs."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from s2clip.kernels import reference
from s2clip.ops import checks
from s2clip.shelter import settled

BACKENDS = ("auto", "torch", "triton")
R = TypeVar("R")
Arguments = Any
"""Whatever the op's schema says: one class serves all ops, and torch checks the schema at run time."""


def nobody_listens(data: Tensor) -> bool:
    """Whether torch's dispatcher would do nothing but call the kernel: 1 µs, where its way through Python takes 25.

    It is needed for gradients (which these ops refuse), for tracing, vmap and fake tensors, and for whatever counts
    or records operators.
    """
    return (
        type(data) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.autograd.profiler._is_profiler_enabled
    )


class Op(Generic[R]):
    """A registered op: the body runs the reference, the kernel's launcher, or on the CPU a faster form if there is one.

    All three take the same arguments.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        fake: Callable[..., R],
        body: Callable[..., R] | None = None,
        launcher: str = "",
        on_cpu: Callable[..., R] | None = None,
    ) -> None:
        module, _, function = launcher.partition(":")
        specification: Callable[..., R] = getattr(reference, name)

        home = f"s2clip.kernels.{module or name}"

        def launch(*arguments: Arguments) -> R:
            # Imported with the first launch: importing s2clip needs no Triton.
            kernels = sys.modules.get(home) or importlib.import_module(home)
            launcher: Callable[..., R] = getattr(kernels, function or "launch")
            return launcher(*arguments)

        def settle(run: Callable[..., R], *arguments: Arguments) -> R:
            if torch.compiler.is_compiling():
                return self.body(run, *arguments)
            with settled():  # a caller's autocast would make bf16 of the reference's matrix products
                return self.body(run, *arguments)

        self.name = name
        self.body: Callable[..., R] = body or (lambda run, *arguments: run(*arguments))
        self.by_torch: Callable[..., R] = lambda *arguments: settle(specification, *arguments)
        self.by_triton: Callable[..., R] = lambda *arguments: settle(launch, *arguments)
        registered = torch.library.custom_op(f"s2clip::{name}", self.by_torch, mutates_args=(), schema=schema)
        registered.register_kernel("cuda", self.by_triton)
        self._by_kind = {"cuda": self.by_triton}
        if on_cpu is not None:
            registered.register_kernel("cpu", lambda *arguments: settle(on_cpu, *arguments))
        registered.register_fake(fake)
        self.by_device: Callable[..., R] = getattr(torch.ops.s2clip, name)  # not .default, which profiles leave out

    def __call__(self, backend: str, data: Tensor, *arguments: Arguments) -> R:
        checks.choice("backend", backend, BACKENDS)
        if backend == "torch":
            return self.by_torch(*arguments)
        if (backend == "triton" or data.is_cuda) and data.dtype == torch.float64:
            checks.fail("dtype", "float16, bfloat16 or float32 for Triton (backend='torch' takes float64)", data.dtype)
        if backend == "auto":
            direct = self._by_kind.get(data.device.type)
            return direct(*arguments) if direct and nobody_listens(data) else self.by_device(*arguments)
        if not data.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            checks.fail("backend", "CUDA tensors for 'triton', or TRITON_INTERPRET=1 in the environment", data.device)
        return self.by_triton(*arguments)
