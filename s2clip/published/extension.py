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

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from s2clip.decision import pixels
from s2clip.decision.decided import Decision
from s2clip.encoding.encoded import Encoded
from s2clip.encoding.hooks import Models, PictureFeatures, WindowFeatures, WindowHooks, Windows
from s2clip.methods.method import Method

__all__ = [
    "OWN_LAST_BLOCK",
    "SHARED_PATH",
    "Extension",
    "Models",
    "PictureFeatures",
    "WindowFeatures",
    "Windows",
    "resolve_extension",
]

OWN_LAST_BLOCK: Mapping[str, Any] = MappingProxyType(
    {
        "terms": ("qq", "kk", "vv"),
        "weights": None,
        "residual": False,
        "feed_forward": False,
        "cls_token": True,
        "gaussian_sigma": None,
        "key_rotation": None,
        "levels": (),
        "tau": 1.0,
        "mu": 1.0,
        "progressive": True,
        "vfm_weight": None,
        "vfm_scale": 1.0,
        "beta": 1.2,
        "gamma": 3.0,
        "pad_multiple": None,
    }
)
"""`Extension.requires` of a method with a last block of its own: fields that would do nothing stay at their defaults,
so that to change one is refused and not ignored. A method leaves out those that it does heed."""


@dataclass(frozen=True, kw_only=True)
class Extension(WindowHooks):
    """The shared path. Hooks take what they need of (data, models, method, watch) and change none of it."""

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
        canvas = None
        if method.purification is not None:
            multiple = models.clip.patch_size if method.merge == "splice" else 1
            canvas = self.prepare(encoded.picture.to(text.device), method, multiple)
        more = {"with_scores": with_scores, "clip": models.clip, "canvas": canvas}
        return pixels.decide_picture(encoded, text, class_index, background, method, **more)


SHARED_PATH = Extension()


def resolve_extension(method: Method) -> Extension:
    """The method's extension, or the shared path."""
    return method.extension if isinstance(method.extension, Extension) else SHARED_PATH
