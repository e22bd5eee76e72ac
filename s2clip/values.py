"""What counts as a number in a setting (True is none, though Python takes it for 1), and as no class in a map."""

import math


def is_real(value: object) -> bool:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """An int."""
    return isinstance(value, int) and not isinstance(value, bool)


def ignored_id(classes: int) -> int:
    """The id of pixels that belong to none of so many classes: 255, or 65535 where 255 is a class."""
    return 255 if classes <= 255 else 65535
