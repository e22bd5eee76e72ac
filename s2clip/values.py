"""What counts as a number in a setting (True is none, though Python takes it for 1), and small facts of values."""

import json
import math
from collections.abc import Collection, Iterator
from numbers import Integral, Real
from typing import Any


def is_real(value: object) -> bool:
    """A finite int or float, NumPy's included."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """An int, NumPy's included."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def counted(number: int, noun: str) -> str:
    """ "1 figure", "2 figures", "3 classes", "0 entries"."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{number} {noun}es"
    return f"{number} {noun[:-1]}ies" if noun.endswith("ry") else f"{number} {noun}s"


def ignored_id(classes: int) -> int:
    """The id of pixels that belong to none of so many classes: 255, or 65535 where 255 is a class."""
    return 255 if classes <= 255 else 65535


def differences(there: Any, here: Any, free: Collection[str] = (), name: str = "") -> Iterator[str]:
    """ "method.tau is 1.0 there and 2.0 now" for every JSON value that is not the same; `free` keys may differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            if key not in free:
                yield from differences(there.get(key), here.get(key), free, f"{name}.{key}".lstrip("."))
    elif there != here:
        yield f"{name} is {_short(there)} there and {_short(here)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def plain(value: Any) -> Any:
    """A NumPy number as Python's, which JSON can say and every check knows; all else as it is."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0 else value
