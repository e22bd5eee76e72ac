"""Coarse maps of real methods for training scenes: `python tools/coarse_maps.py FILE`, for train_sam.py --maps.

Scores uint8 [n,K,48,64] and labels uint8 [n,48,64] at half size, as the refinement reads them; the methods take turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from s2clip import Segmenter
from s2clip.pictures.windows import nearest
from s2clip.scenes import CLASSES, FIRST_TRAINING_SEED, generate

SOURCE = "s2clip-source"  # the method that the released SAM learnt from
TURNS = (SOURCE, "naclip", SOURCE, "clip", "proxyclip", "naclip", SOURCE, "maskclip", "sclip", SOURCE)
HALF = (48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    segmenters = {
        name: Segmenter.from_pretrained("tiny", method=name).set_classes(CLASSES) for name in dict.fromkeys(TURNS)
    }
    scores, labels = [], []
    for index in range(options.count):
        segmenter = segmenters[TURNS[index % len(TURNS)]]
        picture, _ = generate(FIRST_TRAINING_SEED + index)
        encoded = segmenter.encode(torch.from_numpy(picture).permute(2, 0, 1))
        scores.append((segmenter.scores(encoded).whole(HALF) * 255).round().to(torch.uint8).numpy())
        labels.append(nearest(segmenter.segment(encoded).segmentation, HALF).to(torch.uint8).numpy())
    np.savez(options.file, scores=np.stack(scores), labels=np.stack(labels))


if __name__ == "__main__":
    main()
