"""FLOSS's choice of templates (Benigmim et al., ICCV 2025; yasserben/FLOSS): each class by those that are sure of it.

P_t(x) = probabilities of the words by template t alone. Of a class k,

    H_t,k = mean entropy of the classes' probabilities over the pixels that t calls k
    T_k   = the `count` templates of lowest H_t,k, of those that call any pixel k
    P^k   = probabilities of all words by the mean vectors of T_k: the expert of k

A pixel that P^k itself calls k is claimed by k's expert, and P^k holds there; where several claim it, the surest of
them; where none does, P of all templates. Published with H over a training set without labels, which is
`Segmenter.choose_templates(pictures)`; else over the picture itself, 80 decisions more. Fused window by window where
windows are not spliced, after a softmax on CLIP's grid, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip import ops
from s2clip.decision.decided import Decision
from s2clip.decision.pixels import cosine_maps
from s2clip.decision.scores import DenseScores, largest, merge_words
from s2clip.encoding.encoded import Encoded
from s2clip.errors import reject
from s2clip.methods.method import Method
from s2clip.methods.stages import TemplateChoice
from s2clip.pictures.windows import WindowMean

SMALL = 1e-10


def decide(
    encoded: Encoded,
    text: Tensor,
    by_template: Tensor,
    classes: Sequence[str],
    class_index: tuple[int, ...],
    background: int | None,
    method: Method,
    *,
    with_scores: bool,
) -> Decision:
    """Unit rows: text [Q,C] of all templates, by_template [T,Q,C] of each; classes: `TemplateChoice.chosen`'s."""
    stage = method.template_choice
    assert stage is not None, "who calls has looked"
    if stage.chosen is None:
        chosen = lowest(*entropies(encoded, by_template, class_index, method), stage.count)
    else:
        known = dict(stage.chosen)
        chosen = [known.get(name, ()) for name in classes]
    experts = {index: expert(by_template, numbers) for index, numbers in enumerate(chosen) if numbers}
    owner = torch.tensor(class_index, device=text.device)
    settings = (text, experts, owner, method.logit_scale)
    if encoded.spliced:
        maps = fuse(encoded.features[0], encoded.size, *settings)
    else:
        mean, inner = WindowMean(encoded.boxes, encoded.canvas), encoded.inner
        for features in encoded.features:
            whole = fuse(features.to(text.device, non_blocking=True), encoded.padded, *settings)[None]
            mean.add(whole[:, :, inner.top : inner.bottom, inner.left : inner.right])
        maps = mean.result()
    scores = DenseScores(merge_words(maps, class_index))
    labels, confidence = largest(scores, encoded.size)
    labels = labels.masked_fill(~confidence.isfinite(), -1)
    if method.threshold and background is not None:
        labels = labels.masked_fill(confidence < method.threshold, background)
    return Decision(labels, confidence, scores if with_scores else None)


def entropies(
    encoded: Encoded, by_template: Tensor, class_index: tuple[int, ...], method: Method
) -> tuple[Tensor, Tensor]:
    """(Σ entropy [T,K], pixels [T,K]) of the pixels of one picture, by template and by the class that it gives them."""
    count = max(class_index) + 1
    sums, pixels = (torch.zeros(len(by_template), count, dtype=torch.float64) for _ in range(2))
    for number, rows in enumerate(by_template):
        cosines = cosine_maps(encoded, rows)
        scores = ops.class_scores(cosines, encoded.size, scale=method.logit_scale, class_index=class_index)[0]
        labels = scores.argmax(0).flatten()
        entropy = -(scores * (scores + SMALL).log()).sum(0).flatten()
        sums[number] = torch.bincount(labels, entropy.double(), minlength=count).cpu()
        pixels[number] = torch.bincount(labels, minlength=count).cpu()
    return sums, pixels


def lowest(sums: Tensor, pixels: Tensor, count: int) -> list[tuple[int, ...]]:
    """Per class the numbers of the `count` templates of lowest mean entropy, first number first on ties; () where no
    template gives any pixel to it."""
    mean = torch.where(pixels > 0, sums / pixels.clamp_min(1), float("inf"))
    order = mean.argsort(dim=0, stable=True)[:count]
    found = mean.gather(0, order).isfinite()
    return [tuple(own[kept].tolist()) for own, kept in zip(order.T, found.T, strict=True)]


def expert(by_template: Tensor, numbers: Sequence[int]) -> Tensor:
    """Unit rows [Q,C]: the mean of some templates' unit rows."""
    return F.normalize(by_template[list(numbers)].mean(0), dim=-1)


def fuse(
    features: Tensor, size: tuple[int, int], text: Tensor, experts: dict[int, Tensor], owner: Tensor, scale: float
) -> Tensor:
    """features [C,h,w], text [Q,C], experts: class → [Q,C], owner [Q]: a word's class → P [Q,*size]."""

    def probabilities(rows: Tensor) -> Tensor:
        maps = (scale * (rows @ features.flatten(1))).softmax(0).unflatten(1, features.shape[1:])
        return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]

    fused = probabilities(text)
    best = torch.zeros_like(fused[0])
    for index, rows in experts.items():
        own = probabilities(rows)
        sure, word = own.max(0)
        claimed = (owner[word] == index) & (sure > best)
        best = torch.where(claimed, sure, best)
        fused = torch.where(claimed, own, fused)
    return fused


class Ranking:
    """Entropies over several pictures."""

    def __init__(self, classes: Sequence[str], class_index: tuple[int, ...], method: Method) -> None:
        self.classes, self.class_index, self.method = classes, class_index, method
        self.sums: Tensor | float = 0.0
        self.pixels: Tensor | float = 0.0

    def add(self, encoded: Encoded, by_template: Tensor) -> None:
        sums, pixels = entropies(encoded, by_template, self.class_index, self.method)
        self.sums, self.pixels = self.sums + sums, self.pixels + pixels

    def choice(self, count: int) -> TemplateChoice:
        """What they say; a class that no template saw has no expert. `ValueError` before the first picture."""
        if not isinstance(self.sums, Tensor) or not isinstance(self.pixels, Tensor):
            reject("images", "at least one picture", "none")
        numbers = lowest(self.sums, self.pixels, count)
        return TemplateChoice(count=count, chosen=tuple(zip(self.classes, numbers, strict=True)))
