"""Masks as the run lengths that other tools read."""

import numpy as np

from s2clip.results.formats.pieces import Piece


def coco_counts(piece: Piece, height: int, width: int) -> list[int]:
    """COCO's uncompressed counts of the whole picture [H,W], column by column, beginning with zeros."""
    columns = np.pad(piece.mask.T, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(columns, axis=1)
    (start_x, start_y), (end_x, end_y) = np.nonzero(change == 1), np.nonzero(change == -1)
    starts = (piece.x + start_x) * height + piece.y + start_y
    ends = (piece.x + end_x) * height + piece.y + end_y
    apart = starts[1:] != ends[:-1]  # a run through the foot of one column goes on at the head of the next
    starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    edges = np.stack([starts, ends], 1).ravel()
    counts: list[int] = np.diff(edges, prepend=0, append=height * width).tolist()
    return counts if counts[-1] else counts[:-1]


def row_counts(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask row by row, beginning with the zeros, as CVAT's are."""
    flat = np.concatenate([[0], mask.ravel().astype(np.int8)])
    edges = np.flatnonzero(np.diff(flat))
    counts: list[int] = np.diff(edges, prepend=0, append=mask.size).tolist()
    return counts if counts[-1] else counts[:-1]


def label_studio_rle(mask: np.ndarray) -> list[int]:
    """Label Studio's brush: the bytes of an RGBA picture, 255 inside, packed by thi.ng's rle-pack.

    32 bits of length, 5 of word size less 1, 4 x 4 of run sizes less 1; then each run as 1, the number of its size, its
    length less 1, its value (packages/rle-pack of thi-ng/umbrella).
    """
    sizes = (3, 4, 8, 16)
    bits = [f"{4 * mask.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    value = 0
    for count in row_counts(mask):
        left = 4 * count
        while left:
            length = min(left, 1 << sizes[-1])
            number = next(place for place, size in enumerate(sizes) if length <= 1 << size)
            bits.append(f"1{number:02b}{length - 1:0{sizes[number]}b}{value:08b}")
            left -= length
        value = 255 - value
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tolist()
