"""A caller's settings of torch kept out of what is computed here, and put back as they were.

Autocast, a default dtype or device and inference mode are for the caller's own code: under them the same segmenter
would give other labels, keep other vectors, or hand out tensors that cannot be trained upon. What says the precision
here is `dtype=`.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

_CASTING = ("cpu", "cuda", "mps", "xpu")


class _DefaultDtype:
    """fp32 while anybody computes. The default is one for all threads: the first changes it, the last puts it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._callers = torch.float32

    @property
    def nobody(self) -> bool:
        """Whether no thread computes under a default that is not its caller's."""
        return self._inside == 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            joined = self._inside > 0 or torch.get_default_dtype() != torch.float32
            if joined:
                if self._inside == 0:
                    self._callers = torch.get_default_dtype()
                    torch.set_default_dtype(torch.float32)
                self._inside += 1
        try:
            yield
        finally:
            if joined:
                with self._lock:
                    self._inside -= 1
                    if self._inside == 0:
                        torch.set_default_dtype(self._callers)


_float32_by_default = _DefaultDtype()
_NOTHING = nullcontext()


def _is_settled() -> bool:
    """Whether the caller has set nothing: 0.3 µs, where to look at each setting and to keep it takes 10.

    Default devices are modes of torch's functions; any mode at all is looked at closely.
    """
    return (
        not torch._C._is_any_autocast_enabled()
        and torch._C._len_torch_function_stack() == 0
        and torch.get_default_dtype() is torch.float32
        and _float32_by_default.nobody
    )


def settled() -> AbstractContextManager[None]:
    """No autocast; fp32 and the CPU where neither dtype nor device is said. Gradients stay as they are."""
    return _NOTHING if _is_settled() else _settle()


@contextmanager
def _settle() -> Iterator[None]:
    with ExitStack() as stack:
        for kind in _CASTING:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_float32_by_default())
        yield


@contextmanager
def sheltered() -> Iterator[None]:
    """`settled`, without gradients, and with tensors that anybody may write to or train upon: no inference mode."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(settled())
        yield
