"""Masks as COCO writes them: alternating run lengths, zeros first, down the columns; as numbers or packed into text."""

from collections.abc import Sequence

import numpy as np

from s2clip.errors import reject

BITS, MORE, SIGN, OFFSET = 0x1F, 0x20, 0x10, 48


def unpack(text: str | bytes) -> np.ndarray:
    """int64 run lengths of a packed string.

    A character holds five bits of a number, lowest first, and one that says that more follow; the last one's fifth bit
    is the sign. From the fourth number on, the difference to the run two before stands in place of the run.

    Raises:
        ValueError: a character outside of 48..111, or a number that does not end.
    """
    symbols = np.frombuffer(text.encode("latin-1", "replace") if isinstance(text, str) else text, np.uint8).astype(int)
    symbols -= OFFSET
    if not symbols.size:
        return np.zeros(0, np.int64)
    if symbols.min() < 0 or symbols.max() > 63 or symbols[-1] & MORE:
        reject("counts", "a packed run-length string", repr(text[:20]))
    last = np.flatnonzero((symbols & MORE) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 7:
        reject("counts", "runs below 2^34", repr(text[:20]))
    shift = 5 * (np.arange(len(symbols)) - np.repeat(first, length))
    runs = np.add.reduceat((symbols & BITS) << shift, first)
    runs -= np.where(symbols[last] & SIGN, 1 << (5 * length), 0)
    for start in (1, 2):
        runs[start::2] = np.cumsum(runs[start::2])
    return runs


def decode(counts: str | bytes | Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """bool [H,W], size = (H, W). `ValueError` where the runs are not those of a mask of this size."""
    runs = unpack(counts) if isinstance(counts, str | bytes) else np.asarray(counts, np.int64)
    height, width = size
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        reject("counts", f"runs that add up to {height}x{width}", f"{len(runs)} runs that add up to {int(runs.sum())}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
