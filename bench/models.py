"""Models, words and pictures for benches that run whole pipelines.

Weights are the embedded ones, or random ones of a real architecture: speed does not depend on their values. Random
networks give nearly the same vector for every patch, so that a label map would be one colour and an affinity would keep
nothing. `spread` moves the bias of the last norms until vectors point in many directions, and `OwnWords` takes vectors
of the picture itself as the words': maps then have many regions, and margins that rounding seldom reaches.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from s2clip import Segmenter, scenes
from s2clip.backbones.clip import CLIPBackbone, load_clip
from s2clip.backbones.sam import load_sam
from s2clip.backbones.vfm import load_vfm
from s2clip.backbones.vision_features import VisionFeatures
from s2clip.methods.method import Method
from s2clip.methods.recipe import RECIPES
from s2clip.published.catalogue import get_method
from s2clip.refinement.refiner import Refiner
from s2clip.refinement.settings import RECIPES as REFINEMENTS
from s2clip.refinement.settings import Refinement
from s2clip.words.text import TextEncoder, vocabulary

MEAN_COSINE = 0.3
"""Of DINO's tokens in a window, roughly."""


class Setting(NamedTuple):
    """Pictures of a data set as a pipeline sees them: their size, classes, words, and the published windows."""

    size: tuple[int, int]
    classes: int
    words: int
    windows: dict[str, dict]
    """By method: fields of `Method` that differ from its defaults."""


REDUCED = "reduced"
"""A third of VOC's sides, for architectures of full size on a CPU."""
SMALL_WINDOWS = {"short_side": 112, "crop": 112, "stride": 56}
SETTINGS = {
    "VOC": Setting((375, 500), 21, 46, {"trident": {"short_side": 336}}),
    "ADE": Setting((512, 683), 150, 150, {"proxyclip": {"short_side": 448}, "trident": {"short_side": 448}}),
    "Cityscapes": Setting(
        (1024, 2048),
        19,
        19,
        {"proxyclip": {"short_side": 448, "crop": 224}, "trident": {"short_side": 688, "extension.halves": True}},
    ),
    REDUCED: Setting((125, 167), 21, 46, dict.fromkeys(("proxyclip", "trident", "s2clip"), SMALL_WINDOWS)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """What s2clip and a baseline share."""

    clip: CLIPBackbone
    vfm: VisionFeatures
    sam: torch.nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def segmenter(self, method: Method, refinement: Refinement | None = None) -> Segmenter:
        """s2clip with these models; with a refinement, its own way of running SAM."""
        refiner = Refiner(self.sam, refinement) if refinement else None
        return Segmenter(self.clip, vfm=self.vfm, sam=self.sam, refiner=refiner, method=method)


def load(model: str, vfm: str, sam: str | None, weights: str, device: torch.device) -> Models:
    """The models by name; random ones are spread on a painted scene."""
    options = {"weights": "pretrained" if model == "tiny" else weights, "device": device}
    models = Models(load_clip(model, **options), load_vfm(vfm, **options), sam and load_sam(sam, **options))
    if options["weights"] == "random":
        spread(models)
    return models


@torch.inference_mode()
def spread(models: Models) -> None:
    """Shift the last norms' biases so that the vectors of a scene have a mean cosine of about `MEAN_COSINE`."""
    images = torch.from_numpy(scenes.generate(0, (112, 112))[0]).permute(2, 0, 1)[None].to(models.device) / 255
    tokens = models.clip.hidden_states(images)[0][-1][:, 1:]
    visual = models.clip.model.visual
    _shift(visual.ln_post, visual.ln_post(models.clip.block(tokens, -1)))
    _shift(models.vfm.model.norm, models.vfm.features(images))


def _shift(norm: torch.nn.Module, output: Tensor) -> None:
    """Of v = m + d with mean m, take away so much of m that the rest is `MEAN_COSINE` of |v|²."""
    vectors = output.float().flatten(0, -2)
    mean = vectors.mean(0)
    spread_ = (vectors - mean).square().sum(1).mean()
    kept = (spread_ * MEAN_COSINE / (1 - MEAN_COSINE) / mean.square().sum()).sqrt()
    norm.bias.data -= ((1 - kept) * mean).to(norm.bias)


class OwnWords:
    """Stands in for a text encoder: the vector of "patch 7 of ..." is that of a cell of a picture."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.stack([self.vectors[int(re.search(r"patch (\d+)", text)[1])] for text in texts])


def set_words(models: Models, setting: Setting, path: Path) -> list[str]:
    """Class entries: the painted classes for the embedded models, else cells of the picture.

    Every class has one word but the first, which has what is left over.
    """
    if models.clip.name == "tiny":
        return list(scenes.CLASSES)
    method = get_method("maskclip", short_side=224, crop=224, stride=224)
    cells = Segmenter(models.clip, method=method).encode(path).features.permute(0, 2, 3, 1).flatten(0, 2)
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(0)).to(cells.device)]
    models.clip.encode_text = OwnWords(farthest(cells, setting.words))
    words = [f"patch {index} of {path.stem}" for index in range(setting.words)]
    first = setting.words - setting.classes + 1
    return ["; ".join(words[:first]), *words[first:]]


def farthest(vectors: Tensor, count: int) -> Tensor:
    """`count` of the unit rows, each the farthest from those before; repeated where there are too few."""
    chosen = [0]
    nearest = vectors @ vectors[0]
    while len(chosen) < min(count, len(vectors)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, vectors @ vectors[chosen[-1]])
    return vectors[chosen].repeat(-(-count // len(chosen)), 1)[:count]


def text_vectors(models: Models, method: Method, entries: list[str]) -> tuple[Tensor, tuple[int, ...]]:
    """What a baseline is given: unit rows [Q,C] of the words, and how many words each class has."""
    words = vocabulary(entries)
    sizes = tuple(words.class_index.count(index) for index in range(len(words.classes)))
    return TextEncoder(models.clip)(words.words, method.templates), sizes


def method_for(models: Models, name: str, setting: Setting) -> Method:
    """A method with the setting's windows, or with those that the embedded models need."""
    method = get_method(name, templates="plain", **setting.windows.get(name, {}))
    if models.clip.name != "tiny":
        return method
    adapted = RECIPES["tiny"].adapt(method)
    # Enlarged windows for the embedded DINO are s2clip's own; no published formulation has them.
    return adapted if name == "s2clip" else dataclasses.replace(adapted, vfm_scale=1.0)


def refinement_for(models: Models) -> Refinement:
    """Trident's settings; masks of random weights are all accepted, or there would be nothing to merge."""
    return REFINEMENTS["sam-tiny"] if models.clip.name == "tiny" else Refinement(sam_iou_threshold=-1e6)


def paint(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """`count` painted scenes as JPEG files: both sides decode what they are given."""
    paths = []
    for seed in range(count):
        paths.append(folder / f"scene{seed}.jpg")
        Image.fromarray(scenes.generate(seed, size)[0]).save(paths[-1], quality=95)
    return paths
