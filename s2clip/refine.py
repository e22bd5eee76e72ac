"""What may follow the coarse label map, by name."""

from s2clip.errors import reject

REFINEMENTS = ("none",)


def check_refinement(refine: str) -> None:
    """`ValueError` listing the valid names unless `refine` is one of them."""
    if refine not in REFINEMENTS:
        reject("refine", f"one of {', '.join(REFINEMENTS)}", repr(refine))
