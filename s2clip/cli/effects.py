"""Options that would do nothing with the method that was asked for: refused, because their giver expects an effect."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import say

if TYPE_CHECKING:
    from s2clip.methods.method import Method

Pair = tuple["Method", str]


def refuse_without_effect(
    pairs: Sequence[tuple[str, str]],
    model_settings: dict[str, Any],
    *,
    threshold: float | None = None,
    background: str | None = None,
) -> None:
    """ValueError naming the first option that none of the (method, refine) pairs has a use for; what only some of them
    use is said."""
    from s2clip.published.catalogue import get_method
    from s2clip.refinement.settings import check_refinement

    chosen = [(get_method(method), check_refinement(refine)) for method, refine in pairs]
    names = ", ".join(dict.fromkeys(method.name for method, _ in chosen))
    regions = model_settings.get("regions")
    uses: dict[str, tuple[Callable[[Pair], bool], str]] = {
        "regions": (
            lambda pair: pair[0].uses_regions,
            f"has no effect, {names} {_verb(chosen, 'take')} no regions; --method corrclip does",
        ),
        "vfm": (
            lambda pair: pair[0].uses_vfm,
            f"has no effect, {names} {_verb(chosen, 'use')} no vision foundation model",
        ),
        "sam": (lambda pair: _asks_sam(pair, regions), f"has no effect on {names} without --refine sam"),
    }
    for option, (used, otherwise) in uses.items():
        if model_settings.get(option) is None:
            continue
        idle = [_title(pair) for pair in chosen if not used(pair)]
        if len(idle) == len(chosen):
            raise ValueError(f"--{option}: {otherwise}")
        if idle:
            say(f"--{option}: has no effect on {', '.join(idle)}", err=True)
    if background is not None and not threshold:
        heeds = any(method.threshold or method.area_threshold for method, _ in chosen)
        if not heeds and not any(_reads_background(method.extension) for method, _ in chosen):
            raise ValueError("--background: has no effect without --threshold")
    stride, crop = model_settings.get("stride"), model_settings.get("crop")
    if stride is not None and crop == 0:
        raise ValueError("--stride: has no effect with --crop 0, which takes the whole picture at once")


def refuse_beside(option: str, names: Sequence[str]) -> None:
    """ValueError for the first of these options of the running command that was given, where `option` makes it idle."""
    context = click.get_current_context()
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if param.name in names and source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"{param.opts[-1]}: has no effect with {option}")


def _asks_sam(pair: Pair, regions: object) -> bool:
    method, refine = pair
    return refine != "none" or method.uses_sam or (method.uses_regions and regions in (None, "sam"))


def _verb(chosen: Sequence[Pair], verb: str) -> str:
    return verb if len({method.name for method, _ in chosen}) > 1 else f"{verb}s"


def _title(pair: Pair) -> str:
    method, refine = pair
    return method.name if refine == "none" else f"{method.name}+{refine}"


def _reads_background(extension: object) -> bool:
    """Methods with a decision of their own may look at the background without a threshold, as CLIPer does."""
    return getattr(extension, "kind", "") == "cliper"
