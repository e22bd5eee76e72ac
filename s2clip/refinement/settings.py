"""What the refinement may be, by name, and its numbers as one value."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2clip.errors import reject
from s2clip.names import match_name, meant

REFINEMENTS = ("none", "trident", "sam", "sam+sd")


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Settings of the SAM stage. The defaults are Trident's (arXiv:2411.09219) for SAM ViT-B at frames of 1024."""

    coarse_threshold: float = 0.1
    """[τ_c] 0..1: half-resolution pixels whose best score is lower belong to no region, classes that never reach it
    have none, and the mask prompt is zero up to it. Trident has 0.10, 0.0 and 0.2 as defaults in three places, and sets
    0.05 (many classes) to 0.25 by data set; 0.1 is its class's own default and the geometric middle of these."""
    minimal_area: int = 225
    """[A_min] pixels at half resolution: smaller regions are no prompts."""
    sam_iou_threshold: float = 0.8
    """[τ_iou] a region counts if SAM predicts an IoU above this for its mask."""
    mask_scale: float = 0.005
    """[τ_m] factor of the class scores as mask prompt: SAM expects logits, and a hint should not outvote the box."""
    use_components: bool = True
    """False: all of a class is one region (w/o CCA)."""
    use_box: bool = True
    use_point: bool = True
    use_mask: bool = True
    split_last: bool = True
    """False: the last class is no prompt."""
    faithful: bool = False
    """Trident's code: the mask prompt as a 3-D tensor, which SAM normalises along image rows (B-23); failed regions
    that change no label (B-24); boxes scaled by the half picture's own frame; scores made at full size first; the mask
    prompt sized by the picture as it is, and masks resized twice, where SAM saw it rounded to CLIP's patches."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    reject(f"Refinement.{field.name}", "True or False", repr(value))
            elif isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
                reject(f"Refinement.{field.name}", "a finite number", repr(value))
            elif field.name != "sam_iou_threshold" and value < 0:  # SAM's estimate of an IoU has no bounds
                reject(f"Refinement.{field.name}", "a number of at least 0", value)
        if self.coarse_threshold > 1:
            reject("Refinement.coarse_threshold", "0 to 1", self.coarse_threshold)
        if not (self.use_box or self.use_point or self.use_mask):
            reject("Refinement", "at least one of use_box, use_point, use_mask", "none")


# The tiny SAM sees pictures of about 128x96: 10 of its 64x48 half pixels are what 225 of 256x187 are to VOC's.
# Its estimate of an IoU is rough: on scenes 300 to 331 naclip reads 89.6 with 0.4, 0.4 less with 0.6, 1.4 with 0.8.
RECIPES = {"sam-tiny": Refinement(minimal_area=10, sam_iou_threshold=0.4)}

ABLATIONS: dict[str, dict[str, bool]] = {
    "w/o components": {"use_components": False},
    "w/o box": {"use_box": False},
    "w/o mask": {"use_mask": False},
    "w/o point": {"use_point": False},
}
"""The bottom rows of the source's Table 4, and one for the point."""


def refinement_name(settings: Mapping[str, Any]) -> str:
    """`refine` of the settings, with what is switched off: "sam w/o box"."""
    chosen = settings.get("refinement", {})
    off = [name for name, switches in ABLATIONS.items() if all(chosen.get(key) == off for key, off in switches.items())]
    return " ".join([settings.get("refine", "none"), *off])


def check_refinement(refine: str) -> str:
    """The refinement that is meant. `ValueError` listing the valid names where it is none of them."""
    return match_name("refine", refine, REFINEMENTS)


def resolve_settings(sam: str, options: Refinement | Mapping[str, Any] | None) -> Refinement:
    """The settings as given, or the SAM's recipe with some fields replaced. `ValueError` for unknown fields."""
    if isinstance(options, Refinement):
        return options
    valid = [field.name for field in dataclasses.fields(Refinement)]
    for name in options or ():
        if name not in valid:
            reject("refine_options", f"the fields {', '.join(valid)}", repr(name) + meant(name, valid))
    return dataclasses.replace(RECIPES.get(sam, Refinement()), **(options or {}))
