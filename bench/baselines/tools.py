"""What several baselines need."""

import functools

import torch
from torch import Tensor


def compiled(function=None, **options):
    """`torch.compile` on CUDA; eager on the CPU, where compiling costs minutes and is nobody's baseline."""
    if function is None:
        return functools.partial(compiled, **options)
    best = functools.cache(lambda: torch.compile(function, dynamic=False, **options))

    @functools.wraps(function)
    def call(*arguments, **keywords):
        on_cuda = any(isinstance(argument, Tensor) and argument.is_cuda for argument in arguments)
        return (best() if on_cuda else function)(*arguments, **keywords)

    return call
