"""What counts as a number in a setting. True is none, though Python takes it for 1."""

import math


def is_real(value: object) -> bool:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """An int."""
    return isinstance(value, int) and not isinstance(value, bool)
