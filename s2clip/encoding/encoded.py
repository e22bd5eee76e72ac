"""A picture's features, before any word is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from s2clip.pictures.windows import Box

if TYPE_CHECKING:
    from s2clip.backbones.sam import Embedding


@dataclass(frozen=True, eq=False)
class Encoded:
    """One picture, ready for any words: unit vectors on a grid, per window or for the whole picture.

    picture uint8 [3,H,W] as it came; features [n,C,h,w] float32 ([n,S,C,h,w] of a method that gives S at once). n = 1
    and one box where windows were spliced; else the windows of `merge="pixel"`, each of which covers `inner` of its
    `padded` pixels.
    """

    picture: Tensor
    features: Tensor
    boxes: tuple[Box, ...]
    """Windows in pixels of the resized picture."""
    inner: Box
    """Where a window lies in the padded one."""
    padded: tuple[int, int]
    """Pixels of a padded window."""
    canvas: tuple[int, int]
    """(H, W) of the resized picture."""
    spliced: bool
    source: str | None = None
    """Path of the picture, if it has one."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds per stage; those of a batch are shared out by windows. To look waits for the device."""
    sam: Embedding | None = None
    """SAM's view of the picture, where a refinement needs one."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's extension keeps for its decision, each [windows,...]."""
    regions: Tensor | None = None
    """[H,W] int64 ids of the picture's regions, where the method needs them."""
    words_at_once: int | None = None
    """Of how many words a memory cap lets cosines at canvas pixels be held; None: of any number."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, and so of the label map."""
        return tuple(self.picture.shape[1:])
