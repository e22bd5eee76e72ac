"""A data set of painted scenes small enough to evaluate in a second, and runs over it that other processes can make."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from small_models import small_clip

from s2clip import scenes
from s2clip.errors import DatasetError
from s2clip.evaluation.runner import evaluate_dataset
from s2clip.published.catalogue import get_method
from s2clip.segmenter import Segmenter

SIZE = (32, 40)
FIELDS = {"short_side": 32, "crop": 32, "stride": 16, "templates": "plain"}


@dataclass(frozen=True)
class Painted:
    """Pictures 0..count-1 in a folder, made where they are missing; ids in grey PNGs."""

    root: Path
    count: int
    name = "painted"
    classes = scenes.CLASSES
    background = None

    def make(self):
        for index in range(self.count):
            picture, labels = scenes.generate(index, SIZE)
            sample = self[index]
            Image.fromarray(picture).save(sample.image_path)
            labels = np.where(labels == index % 5, 255, labels)
            Image.fromarray(labels.astype(np.uint8)).save(sample.annotation_path)
        return self

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        name = f"scene-{index:03d}"
        return SimpleNamespace(
            name=name, image_path=self.root / f"{name}.bmp", annotation_path=self.root / f"{name}.png"
        )

    def annotation(self, index):
        path = self[index].annotation_path
        if not path.exists():
            raise DatasetError(f"{path}: no such annotation")
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image)).long()


def small_segmenter(method="clip", **fields):
    segmenter = Segmenter(small_clip(), method=get_method(method, **{**FIELDS, **fields}))
    return segmenter.set_classes(scenes.CLASSES)


class Reporting:
    """A progress bar that tells another process how far the run has come."""

    def __init__(self, pipe):
        self.pipe = pipe

    def __call__(self, **facts):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, count):
        self.pipe.send(count)


def run_and_report(dataset, output, pipe):
    """A run for another process, resumed where one stopped."""
    torch.set_num_threads(1)
    evaluate_dataset(small_segmenter(), dataset, output, resume=True, batch_size=2, progress=Reporting(pipe))


def run_as_rank(dataset, output, rank, world, port):
    """A run as torchrun starts it."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    from s2clip.evaluation.ranks import process_group

    with process_group():
        evaluate_dataset(small_segmenter(), dataset, output, batch_size=2)
