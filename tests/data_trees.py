"""Miniature trees of the eight benchmarks, in the layouts that people have; written by hand, not from the facts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from s2clip import scenes

SIZE = (32, 48)

COCO_MISSING = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)


@dataclass(frozen=True)
class Tree:
    """`root`: the data set's own folder. `names` in the data set's order, `values`: what the label files hold."""

    root: Path
    names: tuple[str, ...]
    values: dict[str, np.ndarray]
    pictures: dict[str, Path]
    annotations: dict[str, Path]


# name: (root, pictures, annotations, split file, highest label, names)
_VOC = ("2007_000033", "2007_000042", "2007_000061")
_CONTEXT = ("2008_000002", "2008_000003", "2008_000007")
_COCO = ("000000000139", "000000000285", "000000000632")
_CITY = ("frankfurt_000000_000294", "lindau_000000_000019", "munster_000000_000019")
LAYOUTS = {
    "voc21": ("VOCdevkit/VOC2012", "JPEGImages/{}.jpg", "SegmentationClass/{}.png", "Segmentation", 20, _VOC),
    "voc20": ("VOCdevkit/VOC2012", "JPEGImages/{}.jpg", "SegmentationClass/{}.png", "Segmentation", 20, _VOC),
    "context60": (
        "VOCdevkit/VOC2010",
        "JPEGImages/{}.jpg",
        "SegmentationClassContext/{}.png",
        "SegmentationContext",
        59,
        _CONTEXT,
    ),
    "context59": (
        "VOCdevkit/VOC2010",
        "JPEGImages/{}.jpg",
        "SegmentationClassContext/{}.png",
        "SegmentationContext",
        59,
        _CONTEXT,
    ),
    "coco_object": (
        "coco_object",
        "images/val2017/{}.jpg",
        "annotations/val2017/{}_instanceTrainIds.png",
        None,
        80,
        _COCO,
    ),
    "coco_stuff": (
        "coco_stuff164k",
        "images/val2017/{}.jpg",
        "annotations/val2017/{}_labelTrainIds.png",
        None,
        170,
        _COCO,
    ),
    "ade20k": (
        "ADEChallengeData2016",
        "images/validation/{}.jpg",
        "annotations/validation/{}.png",
        None,
        150,
        ("ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"),
    ),
    "cityscapes": (
        "cityscapes",
        "leftImg8bit/val/{city}/{}_leftImg8bit.png",
        "gtFine/val/{city}/{}_gtFine_labelTrainIds.png",
        None,
        18,
        _CITY,
    ),
}


def make_tree(name: str, parent: Path, *, count: int = 3, size: tuple[int, int] = SIZE, seed: int = 0) -> Tree:
    """Write `count` pictures of the data set below `parent`; labels in blocks of 4x4, every one of them allowed."""
    folder, picture, annotation, split, highest, names = LAYOUTS[name]
    names = tuple(_numbered(names, count))
    root = parent / folder
    generator = np.random.default_rng(seed)
    values, pictures, annotations = {}, {}, {}
    for number, stem in enumerate(names):
        city = stem.split("_")[0]
        pictures[stem] = root / picture.format(stem, city=city)
        annotations[stem] = root / annotation.format(stem, city=city)
        values[stem] = label_blocks(generator, size, [*range(highest + 1), 255])
        save(pictures[stem], scenes.generate(seed + number, size)[0])
        save(annotations[stem], values[stem], palette=folder.startswith("VOC"))
    if split:
        save_lines(root / "ImageSets" / split / "val.txt", names)
    return Tree(root, names, values, pictures, annotations)


def label_blocks(generator: np.random.Generator, size: tuple[int, int], allowed: list[int]) -> np.ndarray:
    """uint8 [H,W] of 4x4 blocks drawn from `allowed`, its lowest and highest among them."""
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    blocks = generator.choice(np.array(allowed, np.uint8), (rows, columns))
    blocks.flat[:2] = allowed[0], allowed[-2]
    return np.kron(blocks, np.ones((4, 4), np.uint8))[: size[0], : size[1]]


def save(path: Path, pixels: np.ndarray, *, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putpalette([channel for value in range(256) for channel in (value, 255 - value, value // 2)])
    image.save(path)
    return path


def save_lines(path: Path, lines) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _numbered(names: tuple[str, ...], count: int) -> list[str]:
    """The first `count` names; beyond those that are written down, the last one with its number raised."""
    stem, last = names[-1].rsplit("_", 1) if "_" in names[-1] else ("", names[-1])
    more = (int(last) + step for step in range(1, count - len(names) + 1))
    return [*names[:count], *(f"{stem}{'_' if stem else ''}{number:0{len(last)}d}" for number in more)]
