"""CLIPer (Sun et al. 2024, arXiv:2411.13836): all blocks of CLIP read by the last one, attention kept for the decision.

With z_i the features of block i (`levels_attention`), t the rows foreground words, background words, mean foreground:

    s_i  = softmax over all rows of α·cos(z_i, t), the foreground's maps      i = 1..L
    out  = s_sel·A + mean_i s_i       A the attention of all blocks; s_sel below θ_A times a map's largest is 0
    R    = Stable Diffusion's affinity times out, where it is loaded (`s2clip.refinement.diffusion`), else out
    v_c  = R_c/(max R_c + 1e-5)·(max R_c + max out_c)/2,  at the picture's size

The zeros enter the mean too, and A multiplies from the right of s_sel [n,N], so that patch i hands its score out by row
i of A, whose columns do not sum to 1: both as published. With `sliding_crop`, s_i is averaged with what windows give.
v may pass 1, which the confidence does not. A class with a height (max R_c + max out_c)/2 of at most `score_threshold`
is dropped. The label is the largest v_c; with a background class it is that one where v stays under
`Method.threshold`, or, where the threshold is 0, where (1 - max v)² is not smaller than max v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.decision.decided import Decision
from s2clip.decision.full_size import best_class, extremes
from s2clip.decision.scores import DenseScores, take
from s2clip.encoding.hooks import WindowFeatures
from s2clip.errors import reject
from s2clip.pictures.windows import resized_size
from s2clip.published.extension import OWN_LAST_BLOCK, Extension
from s2clip.published.levels_attention import crop_features, level_features
from s2clip.values import is_real, is_whole

if TYPE_CHECKING:
    from s2clip.encoding.encoded import Encoded
    from s2clip.encoding.hooks import Models, Windows
    from s2clip.methods.method import Method
    from s2clip.stopwatch import Stopwatch

EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Cliper(Extension):
    """`Method.threshold` is the published bkg_thre, `Method.logit_scale` the α of the cosines."""

    kind: str = field(default="cliper", init=False)

    attention_threshold: float = 0.1
    """[θ_A, attention_thr] 0..1: scores and Stable Diffusion's attention below this share of a largest one are cut."""
    score_threshold: float = 0.0
    """0..1: classes that reach no more anywhere are dropped."""
    level: int = -1
    """[sel] the block whose scores the attention spreads, from the end; ViT-L/14 takes -2 on most data sets."""
    normalise: bool = False
    """[is_normalize] Stretch every class to 0..1, as on VOC21."""
    background_words: tuple[str, ...] = ()
    """Rows beside those of the background class, that take scores from the foreground and are no class themselves."""
    sliding_crop: int | None = None
    """Pixels of windows whose scores are averaged with those of the whole picture; None: no windows."""
    sliding_stride: int = 112
    """Pixels between them."""
    stable_diffusion: bool = False
    """Smooth by Stable Diffusion, as published (extra `diffusion`); refine="sam+sd" does so too, and asks SAM after."""

    requires: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            **OWN_LAST_BLOCK,
            "merge": "pixel",
            "crop": None,
            "area_threshold": None,
            "pamr_iterations": 0,
            "propagation": None,
        }
    )
    aligned: ClassVar[bool] = True
    smooths_itself: ClassVar[bool] = True
    keeps_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.background_words, list):
            object.__setattr__(self, "background_words", tuple(self.background_words))
        for name in ("attention_threshold", "score_threshold"):
            value = getattr(self, name)
            self._require(is_real(value) and 0 <= value <= 1, name, "0 to 1")
        self._require(is_whole(self.level) and self.level < 0, "level", "-1 for the last block, -2 for the one before")
        words = self.background_words
        named = isinstance(words, tuple) and all(isinstance(word, str) and word.strip() for word in words)
        self._require(named, "background_words", "a tuple of words")
        crop, stride = self.sliding_crop, self.sliding_stride
        self._require(crop is None or (is_whole(crop) and crop >= 1), "sliding_crop", "None or at least 1 (pixels)")
        most = "" if crop is None else f", at most the crop, {crop}"
        fits = is_whole(stride) and stride >= 1 and (crop is None or stride <= crop)
        self._require(fits, "sliding_stride", f"at least 1 (pixels){most}")
        for name in ("normalise", "stable_diffusion"):
            self._require(isinstance(getattr(self, name), bool), name, "True or False")

    @property
    def needs_diffusion(self) -> bool:
        return self.stable_diffusion

    @property
    def extra_words(self) -> tuple[str, ...]:
        return self.background_words

    def prepare(self, picture: Tensor, method: Method, multiple: int) -> Tensor:
        """Both sides to the nearest multiple of the patch, bicubic with antialias: Pillow's. `round_pixels` has its
        rounding, too, of columns and then of rows."""
        size = resized_size(*picture.shape[1:], method.short_side, method.long_side, multiple)
        image = picture.float() / 255
        if size == tuple(picture.shape[1:]):
            return image
        if not method.round_pixels:
            return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        for part in ((image.shape[1], size[1]), size):
            image = F.interpolate(image[None], part, mode="bicubic", antialias=True)[0].clamp(0, 1)
            image = (image * 255).round() / 255
        return image

    def window_features(self, batch: Windows, models: Models, method: Method, watch: Stopwatch) -> WindowFeatures:
        """z_1..z_L of each picture before the head, its attention, and the windows' features if there are any."""
        with watch("clip"):
            features, attention = level_features(models.clip, batch.images)
        extra = {"attention": attention}
        if self.sliding_crop is not None:
            with watch("sliding"):
                geometry = (self.sliding_crop, self.sliding_stride, batch.max_batch)
                extra["crops"] = torch.stack([crop_features(models.clip, one, *geometry) for one in batch.images])
        return WindowFeatures(features, extra)

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
        classes = [index for index in dict.fromkeys(class_index) if index != background]
        if not classes:
            reject("classes", "one beside the background", "none")
        levels, grid = encoded.features[0].flatten(2), encoded.features.shape[-2:]
        if -self.level > len(levels):
            reject("Cliper.level", f"-1 to -{len(levels)} for this model", self.level)
        scores = foreground_scores(levels, text, class_index, background, method.logit_scale)
        if "crops" in encoded.extra:
            windows = encoded.extra["crops"][0]
            scores = (scores + foreground_scores(windows, text, class_index, background, method.logit_scale)) / 2
        maps = self.pool(scores, encoded.extra["attention"][0]).unflatten(1, grid)
        shape = maps
        if models.diffusion is not None:
            image = encoded.picture.float() / 255
            shape = models.diffusion.refine(image, maps, threshold=self.attention_threshold)
        values = DenseScores(self.heights(maps, shape, encoded.size, keep_best=background is None))
        labels, confidence, planes = choose(values, encoded.size, classes, background, method.threshold)
        return Decision(labels, confidence.clamp(max=1), DenseScores(planes) if with_scores else None)

    def pool(self, scores: Tensor, attention: Tensor) -> Tensor:
        """out [n,N] of the scores s [L,n,N], which are changed: the selected level's low entries become zeros."""
        base = scores[self.level]
        base.masked_fill_(base < self.attention_threshold * base.amax(1, keepdim=True), 0)
        return base @ attention + scores.mean(0)

    def heights(self, maps: Tensor, shape: Tensor, size: tuple[int, int], *, keep_best: bool) -> Tensor:
        """v [n,·,·] of out [n,h,w] and R on any grid, with zeros for what is dropped; extremes are those at `size`.

        keep_best: the highest class stays in any case, as every pixel must have one.
        """
        height = (shape.flatten(1).amax(1) + maps.flatten(1).amax(1)) / 2
        low, high = extremes(DenseScores(shape), size)
        factor = height / (high + EPSILON)
        values = shape * factor[:, None, None]
        if self.normalise:
            span = ((high - low) * factor).clamp_min(EPSILON)
            values = (values - (low * factor)[:, None, None]) / span[:, None, None]
        dropped = height <= self.score_threshold
        if keep_best:
            dropped[height.argmax()] = False
        return values.masked_fill(dropped[:, None, None], 0)


def foreground_scores(
    features: Tensor, text: Tensor, class_index: Sequence[int], background: int | None, scale: float
) -> Tensor:
    """s [L,n,N]: unit features [L,C,N] against unit rows [Q+E,C], of which the last E belong to no class.

    Rows are put as published: the foreground's words, the others, the normalised mean of the foreground's. The softmax
    is over all of them; a class has its largest word's share.
    """
    foreground = [row for row, index in enumerate(class_index) if index != background]
    others = [row for row in range(len(text)) if row not in set(foreground)]
    words = take(text, foreground)
    rows = torch.cat([words, take(text, others), F.normalize(words.mean(0, keepdim=True), dim=1)])
    shares = (scale * (rows @ features)).softmax(1)[:, : len(words)]
    owners = [class_index[row] for row in foreground]
    counts = [owners.count(index) for index in dict.fromkeys(owners)]
    return torch.stack([own.amax(1) for own in shares.split(counts, 1)], 1)


def choose(
    values: DenseScores, size: tuple[int, int], classes: Sequence[int], background: int | None, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """v of the foreground's classes → labels [H,W], the largest value [H,W] and planes [K,·,·] of all classes."""
    first, confidence = best_class(values, size)
    labels = torch.tensor(classes).to(first.device, non_blocking=True)[first]
    count = len(classes) + (background is not None)
    planes = values.scores.new_zeros(count, *values.scores.shape[1:])
    planes.index_copy_(0, torch.tensor(classes).to(planes.device, non_blocking=True), values.scores)
    if background is None:
        return labels, confidence, planes
    planes[background] = (1 - values.scores.amax(0)).square()
    if threshold > 0:
        return labels.masked_fill(confidence < threshold, background), confidence, planes
    rest = (1 - confidence).square()
    return labels.masked_fill(rest >= confidence, background), torch.maximum(rest, confidence), planes
