"""What several baselines need."""

import functools

import torch
from torch import Tensor


def compiled(function=None, **options):
    """`torch.compile` on CUDA, or an error; eager on the CPU, where compiling costs minutes and is nobody's baseline.

    Left to itself torch runs eagerly what it cannot compile whole, and all sizes after the eighth: `forget_compiled`.
    """
    if function is None:
        return functools.partial(compiled, **options)
    best = functools.cache(lambda: torch.compile(function, dynamic=False, fullgraph=True, **options))

    @functools.wraps(function)
    def call(*arguments, **keywords):
        on_cuda = any(isinstance(argument, Tensor) and argument.is_cuda for argument in arguments)
        return (best() if on_cuda else function)(*arguments, **keywords)

    return call


def forget_compiled() -> None:
    """To be called before every case: a rival is compiled for its sizes, however many cases came before."""
    torch.compiler.reset()
