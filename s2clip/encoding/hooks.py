"""The hooks of a picture's windows, and what passes through them. The defaults are the shared path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from s2clip.encoding import features
from s2clip.methods.method import Method
from s2clip.methods.needs import Needs
from s2clip.pictures import windows
from s2clip.stopwatch import Stopwatch

if TYPE_CHECKING:  # a model library is loaded with the first model
    from segment_anything.modeling import Sam

    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.backbones.diffusion_affinity import DiffusionAffinity
    from s2clip.backbones.sam import Embedding
    from s2clip.backbones.vision_features import VisionFeatures


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
    """[n,3,h,w] RGB in [0,1], padded with CLIP's mean colour to a multiple of the patch, or `Method.pad_multiple`."""
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
class WindowHooks(Needs):
    """From a picture to its patch features: the first three of the four hooks of `s2clip.published.extension`."""

    def prepare(self, picture: Tensor, method: Method, multiple: int) -> Tensor:
        """uint8 [3,H,W] → the picture that is cut into windows, float [3,h,w] in [0,1], on the same device.

        multiple: what its sides must be divisible by; 1 where windows are padded.
        """
        size = windows.resized_size(*picture.shape[1:], method.short_side, method.long_side, multiple)
        return windows.resize(picture, size, antialias=method.antialias, rounded=method.round_pixels)

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        """Patch features of each window, before LN_post."""
        flow: list[Tensor] | None = None if method.purification is None else []
        maps = features.patch_features(batch.images, method, models.clip, models.vfm, watch, flow)
        return WindowFeatures(maps, {} if flow is None else {"flow": flow[0]})

    def picture_features(
        self, maps: Tensor, picture: Tensor, models: Models, method: Method, watch: Stopwatch
    ) -> PictureFeatures:
        """Spliced features [D,r,c] fp32 and the picture uint8 [3,H,W] as it came → features of the picture."""
        return PictureFeatures(maps)


SHARED_HOOKS = WindowHooks()


def window_hooks(method: Method) -> WindowHooks:
    """The method's own hooks, or those of the shared path."""
    return method.extension if isinstance(method.extension, WindowHooks) else SHARED_HOOKS
