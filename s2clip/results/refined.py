"""What SAM made of one picture's coarse map."""

from typing import NamedTuple

from torch import Tensor

from s2clip.ops import Components


class Refined(NamedTuple):
    """One picture's refined map."""

    labels: Tensor  # [H,W] int64
    score: Tensor  # [H,W] fp32: Q of the new label; 0 where the coarse label stayed
    regions: Components  # [R] the prompts, by class, at half resolution
    predicted_iou: Tensor  # [R]
    accepted: Tensor  # [R] bool
