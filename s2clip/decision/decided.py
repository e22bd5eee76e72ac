"""What the words came to on one picture."""

from typing import NamedTuple

from torch import Tensor

from s2clip.decision.scores import ScoreMaps


class Decision(NamedTuple):
    """What the words came to on one picture."""

    labels: Tensor
    """[H,W] int64 class numbers."""
    confidence: Tensor
    """[H,W] float32, the score of the label before any background was put in its place."""
    scores: ScoreMaps | None
    """P_c of all K classes where they were asked for."""
