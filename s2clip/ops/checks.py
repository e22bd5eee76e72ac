"""Checks of the ops' arguments: each raises `ValueError` with the argument, what was expected, and what was received.

All look at shapes, dtypes and devices only, never at values on a device, so that one op's checks cost a few µs.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NoReturn, TypeGuard

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bool, torch.uint16, torch.uint32, torch.uint64),
)
WHOLE = (int, torch.SymInt, Integral)  # int first: the check of an abstract class costs a microsecond
REAL = (float, int, Real)


def fail(argument: str, expected: str, received: object) -> NoReturn:
    raise ValueError(f"{argument}: expected {expected}, received {received}")


def tensor(argument: str, value: object, shape: str, dtypes: Sequence[torch.dtype]) -> Tensor:
    """A tensor with as many axes as `shape` has letters, for instance "[B,H,W]", and one of the dtypes."""
    axes = shape.count(",") + 1
    if not isinstance(value, Tensor):
        fail(argument, f"a tensor {shape}", type(value).__name__)
    if value.ndim != axes:
        fail(argument, f"{axes} axes {shape}", f"{value.ndim} axes {list(value.shape)}")
    if value.dtype not in dtypes:
        fail(argument, "a float tensor" if dtypes is FLOATS else "an integer tensor", value.dtype)
    return value


def any_tensor(argument: str, value: object, shape: str, axes: Sequence[int]) -> None:
    """A tensor of any dtype with one of these numbers of axes."""
    if not isinstance(value, Tensor):
        fail(argument, f"a tensor {shape}", type(value).__name__)
    if value.ndim not in axes:
        fail(argument, f"a tensor {shape}", f"{value.ndim} axes {list(value.shape)}")


def like(argument: str, value: Tensor, other: str, reference: Tensor, *, dtype: bool = True) -> None:
    """The same device and, unless switched off, the same dtype as another argument."""
    if value.device != reference.device:
        fail(argument, f"the device of {other}, {reference.device}", value.device)
    if dtype and value.dtype != reference.dtype:
        fail(argument, f"the dtype of {other}, {reference.dtype}", value.dtype)


def shape(argument: str, value: Tensor, expected: tuple[int, ...], letters: str) -> None:
    if value.shape != expected:
        fail(argument, f"{letters} = {list(expected)}", list(value.shape))


def not_empty(argument: str, value: Tensor, axes: Sequence[int], letters: str) -> None:
    """None of these axes has size 0."""
    for axis in axes:
        if value.shape[axis] == 0:
            fail(argument, f"{letters} of at least 1", list(value.shape))


def number(argument: str, value: object, low: float = -torch.inf, high: float = torch.inf) -> float:
    """A finite number from low to high."""
    found = float(value) if isinstance(value, REAL) and not isinstance(value, bool) else torch.nan
    if not low <= found <= high or abs(found) == torch.inf:
        fail(argument, f"a finite number from {low} to {high}", repr(value))
    return found


def whole(value: object) -> TypeGuard[int]:
    """Whether it passes for an int: one, another library's, or one that torch.compile traces."""
    return isinstance(value, WHOLE)


def pair(argument: str, value: object, high: int | None = None) -> tuple[int, int]:
    """(height, width), both integers from 1 to high."""
    if not isinstance(value, Sequence) or len(value) != 2:
        fail(argument, "(height, width)", value)
    height, width = value
    if not whole(height) or not whole(width) or height < 1 or width < 1:
        fail(argument, "(height, width), integers of at least 1", value)
    if high is not None and (height > high or width > high):
        fail(argument, f"(height, width) of at most {high}", value)
    return height, width


def choice(argument: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices or isinstance(value, bool):
        fail(argument, "one of " + ", ".join(map(repr, choices)), repr(value))


def class_id(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**31:
        fail(argument, "an integer class id from 0 to 2³¹−1", repr(value))
    return int(value)


def finite(argument: str, value: Tensor) -> None:
    """No NaN and no infinity; reads the values, so for CPU tensors only."""
    if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):  # the sum is one pass and no mask
        fail(argument, "finite values, because a label has no NaN", f"{int((~value.isfinite()).sum())} that are not")


def indices(argument: str, value: Sequence[int] | Tensor, length: int, letter: str) -> Tensor:
    """`length` integers as a tensor [letter]: a tensor as it is, a sequence as an int64 CPU tensor."""
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value, dtype=None if len(value) else torch.int64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            fail(argument, f"integers [{letter}]", value)
    if value.dtype not in INTEGERS or value.shape != (length,):
        fail(argument, f"integers [{letter}] = [{length}]", f"{value.dtype} {list(value.shape)}")
    return value
