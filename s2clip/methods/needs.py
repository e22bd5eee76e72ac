"""What a method asks for beyond its fields, as data: models, words, and fields that must not change.

The hooks that rely on it stand above: those of a picture's windows in `s2clip.encoding.hooks`, all of them in
`s2clip.published.extension`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from s2clip.errors import reject


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Nothing beyond CLIP."""

    kind: str = dataclasses.field(default="", init=False)

    needs_vfm: ClassVar[bool] = False
    needs_sam: ClassVar[bool] = False
    needs_diffusion: ClassVar[bool] = False
    needs_regions: ClassVar[bool] = False
    """`Segmenter(regions=...)`: a function that gives the ids of a picture."""
    whole_picture: ClassVar[bool] = False
    """`window_features` is given all windows of one picture at once and keeps to `max_batch` itself."""
    aligned: ClassVar[bool] = False
    """`prepare` is given the patch as `multiple`, though windows are not spliced: none of them is padded then."""
    smooths_itself: ClassVar[bool] = False
    """`decide` smooths by `models.diffusion` where it is loaded: a refinement by Stable Diffusion leaves that to it."""
    any_prefix: ClassVar[bool] = False
    """Runs on towers with other tokens before the patches than one CLS: those of C-RADIO with language."""
    extra_words: ClassVar[tuple[str, ...]] = ()
    """Words that belong to no class: their rows come last in the `text` that `decide` is given."""
    requires: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields of `Method` that must have these values, because the hooks rely on them."""
    default_vfm: ClassVar[str] = "dino-b8"
    """The published vision foundation model, for who names none."""

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            reject(f"{type(self).__name__}.{field}", expected, repr(getattr(self, field)))


def replace_fields(extension: Needs | None, fields: Mapping[str, Any]) -> Needs | None:
    """The extension with `fields` replaced; `ValueError` for a field it does not have."""
    if not fields:
        return extension
    valid = [] if extension is None else [field.name for field in dataclasses.fields(extension) if field.init]
    for field in fields:
        if field not in valid:
            expected = f"extension.{', extension.'.join(valid)}" if valid else "no field of an extension"
            reject("method", expected, repr(f"extension.{field}"))
    return None if extension is None else dataclasses.replace(extension, **fields)
