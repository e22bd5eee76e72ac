"""Options that would do nothing with the method that was asked for: refused, because their giver expects an effect."""

from collections.abc import Sequence
from typing import Any


def refuse_without_effect(
    pairs: Sequence[tuple[str, str]],
    model_settings: dict[str, Any],
    *,
    threshold: float | None = None,
    background: str | None = None,
) -> None:
    """ValueError naming the first option that none of the (method, refine) pairs has a use for."""
    from s2clip.published.catalogue import get_method
    from s2clip.refinement.settings import check_refinement

    methods = [get_method(method) for method, _ in pairs]
    refined = any(check_refinement(refine) != "none" for _, refine in pairs)
    names = ", ".join(dict.fromkeys(method.name for method in methods))
    regions = model_settings.get("regions")
    takes_regions = any(method.uses_regions for method in methods)
    if regions is not None and not takes_regions:
        raise ValueError(f"--regions: has no effect, {names} takes no regions; --method corrclip does")
    if model_settings.get("vfm") is not None and not any(method.uses_vfm for method in methods):
        raise ValueError(f"--vfm: has no effect, {names} uses no vision foundation model")
    asks_sam = refined or any(method.uses_sam for method in methods) or (takes_regions and regions in (None, "sam"))
    if model_settings.get("sam") is not None and not asks_sam:
        raise ValueError(f"--sam: has no effect on {names} without --refine sam")
    if background is not None and not threshold:
        heeds = any(method.threshold or method.area_threshold for method in methods)
        if not heeds and not any(_reads_background(method.extension) for method in methods):
            raise ValueError("--background: has no effect without --threshold")
    stride, crop = model_settings.get("stride"), model_settings.get("crop")
    if stride is not None and crop == 0:
        raise ValueError("--stride: has no effect with --crop 0, which takes the whole picture at once")


def _reads_background(extension: object) -> bool:
    """Methods with a decision of their own may look at the background without a threshold, as CLIPer does."""
    return getattr(extension, "kind", "") == "cliper"
