"""The seam for methods that do more than the fields of `Method` say: four hooks, in the order a picture meets them.

    picture uint8 [3,H,W] ─ prepare ─► I [3,h,w] ─ windows ─► window_features ─► F_i [D,r,c]
      ─ merge="splice": F = mean of the F_i on the patch grid ─► picture_features ─► LN_post(F)·P, normalised ─┐
      └ merge="pixel": LN_post(F_i)·P, normalised ─────────────────────────────────────────────────────────────┤
                                                            `Encoded` (no words yet) ◄─────────────────────────┘
    Encoded, words ─ decide ─► label map, confidence, score maps

The defaults are the shared path, so a method overrides what it changes and inherits the rest:

    prepare           I = picture/255, bilinear to `short_side` and `long_side` (`windows.resized_size`)
    window_features   F = R(X_{L-1}) + μ R(M), aggregated by the affinity: the formula of `s2clip.methods`
    picture_features  the identity; called for merge="splice" only
    decide            cos(z, t) [, PAMR], softmax over the words times α, largest word of a class, threshold

To write one: a frozen dataclass with `kw_only=True` in this package that derives from `Extension`, its `kind` (a field
with `init=False`, so that run.json names it), the paper's settings as fields with `_require` in `__post_init__`, the
hooks, which models it `needs_`, and which fields of `Method` it `requires` to be what. Then a value in `METHODS` with
`extension=`, and a dense re-statement in the tests.

What a hook may rely on and must keep: every window is computed on its own, results never depend on what else is in the
batch; a method whose windows depend on each other sets `whole_picture` and is given all windows of one picture at once,
never of two. A hook keeps no state: the value is shared by threads and pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from s2clip import decision, features, windows
from s2clip.errors import reject

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.backbones.vfm import VisionFeatures
    from s2clip.decision import Decision
    from s2clip.diffusion import DiffusionAffinity
    from s2clip.encoder import Encoded
    from s2clip.methods import Method
    from s2clip.refinement.sam import Embedding
    from s2clip.stopwatch import Stopwatch


OWN_LAST_BLOCK: Mapping[str, Any] = MappingProxyType(
    {
        "terms": ("qq", "kk", "vv"),
        "weights": None,
        "residual": False,
        "feed_forward": False,
        "cls_token": True,
        "gaussian_sigma": None,
        "levels": (),
        "tau": 1.0,
        "mu": 1.0,
        "progressive": True,
        "vfm_weight": None,
        "vfm_scale": 1.0,
        "beta": 1.2,
        "gamma": 3.0,
    }
)
"""`Extension.requires` of a method with a last block of its own: fields that would do nothing stay at their defaults,
so that to change one is refused and not ignored. A method leaves out those that it does heed."""


class Models(NamedTuple):
    """The loaded models, on one device; those that no part of the method needs are None."""

    clip: CLIPBackbone
    vfm: VisionFeatures | None = None
    sam: Sam | None = None
    """The same one that a refinement uses."""
    diffusion: DiffusionAffinity | None = None


class Windows(NamedTuple):
    """Windows of one size, of one picture or of several."""

    images: Tensor
    """[n,3,h,w] RGB in [0,1], padded to a multiple of the patch with CLIP's mean colour."""
    regions: Tensor | None = None
    """[n,h,w] int64 ids of a method that `needs_regions`, nearest neighbour; -1 in the padding."""
    max_batch: int = 8
    """How many may go through a backbone at once; matters to `whole_picture` methods alone, else n is at most this."""


class WindowFeatures(NamedTuple):
    """What a batch of windows came to, window by window."""

    maps: Tensor
    """[n,D,r,c] before the vision head, or [n,S,D,r,c] for S of them, where the method decides for itself."""
    extra: Mapping[str, Tensor] = MappingProxyType({})
    """Anything else the decision needs, each [n,...]: `Encoded.extra` has it for all windows of the picture."""
    joint: bool = False
    """maps are in the joint space already, [n,C,r,c], and need no head; for merge="pixel" only."""


class PictureFeatures(NamedTuple):
    """What a picture came to."""

    maps: Tensor
    """[D,r,c] before the vision head, on any grid that covers the picture."""
    sam: Embedding | None = None
    """SAM's view of the picture if it was made on the way, so that the refinement needs not look again."""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The shared path. Hooks take what they need of (data, models, method, watch) and change none of it."""

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
    extra_words: ClassVar[tuple[str, ...]] = ()
    """Words that belong to no class: their rows come last in the `text` that `decide` is given."""
    requires: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields of `Method` that must have these values, because the hooks rely on them."""
    default_vfm: ClassVar[str] = "dino-b8"
    """The published vision foundation model, for who names none."""

    def prepare(self, picture: Tensor, method: Method, multiple: int) -> Tensor:
        """uint8 [3,H,W] → the picture that is cut into windows, float [3,h,w] in [0,1], on the same device.

        multiple: what its sides must be divisible by; 1 where windows are padded.
        """
        size = windows.resized_size(*picture.shape[1:], method.short_side, method.long_side, multiple)
        return windows.resize(picture, size, antialias=method.antialias)

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        """Patch features of each window, before LN_post."""
        return WindowFeatures(features.patch_features(batch.images, method, models.clip, models.vfm, watch))

    def picture_features(
        self, maps: Tensor, picture: Tensor, models: Models, method: Method, watch: Stopwatch
    ) -> PictureFeatures:
        """Spliced features [D,r,c] fp32 and the picture uint8 [3,H,W] as it came → features of the picture."""
        return PictureFeatures(maps)

    def decide(
        self,
        encoded: Encoded,
        text: Tensor,
        class_index: tuple[int, ...],
        background: int | None,
        models: Models,
        method: Method,
        *,
        with_scores: bool,
    ) -> Decision:
        """Labels of an encoded picture. text [Q,C] unit rows; class_index: the class of each of the Q words. With E
        `extra_words`, text is [Q+E,C].

        with_scores: whether class scores are wanted too, for a refinement.
        """
        return decision.decide_picture(encoded, text, class_index, background, method, with_scores=with_scores)

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            reject(f"{type(self).__name__}.{field}", expected, repr(getattr(self, field)))


SHARED_PATH = Extension()


def resolve_extension(method: Method) -> Extension:
    """The method's extension, or the shared path."""
    return method.extension or SHARED_PATH


def replace_fields(extension: Extension | None, fields: Mapping[str, Any]) -> Extension | None:
    """The extension with `fields` replaced; `ValueError` for a field it does not have."""
    if not fields:
        return extension
    valid = [] if extension is None else [field.name for field in dataclasses.fields(extension) if field.init]
    for field in fields:
        if field not in valid:
            expected = f"extension.{', extension.'.join(valid)}" if valid else "no field of an extension"
            reject("method", expected, repr(f"extension.{field}"))
    return dataclasses.replace(extension, **fields)
