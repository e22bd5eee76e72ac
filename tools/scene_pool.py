"""A pool of generated scenes held in memory, shared by the trainers of the tiny DINO and the tiny SAM."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s2clip.scenes import generate


def _scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    image, labels = generate(seed)
    return image, labels.astype(np.uint8)


def scene_pool(first_seed: int, count: int, workers: int = 2, cache: Path | None = None) -> tuple[Tensor, Tensor]:
    """-> images uint8 [n,3,H,W], labels uint8 [n,H,W] of seeds first_seed ... first_seed+count-1, at the default size.

    cache: a folder where a pool, once made, is kept for the next run.
    """
    file = cache / f"scenes_{first_seed}_{count}.npz" if cache else None
    if file and file.exists():
        with np.load(file) as stored:
            return _as_tensors(stored["images"], stored["labels"])
    with ProcessPoolExecutor(workers) as pool:
        scenes = pool.map(_scene, range(first_seed, first_seed + count), chunksize=32)
        images, labels = zip(*scenes, strict=True)
    images, labels = np.stack(images), np.stack(labels)
    if file:
        np.savez(file, images=images, labels=labels)
    return _as_tensors(images, labels)


def _as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def crop(images: Tensor, centre: Tensor, half: Tensor, out: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Rectangles of images [B,C,H,W], resampled to `out`, as [B,C,h,w]; reflection outside the image.

    centre, half: [B,2] as (x, y) in [-1,1] image coordinates (align_corners=False); a negative half extent flips.
    """
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = half[:, 0], half[:, 1]
    theta[:, :, 2] = centre
    grid = torch.nn.functional.affine_grid(theta, [len(images), images.shape[1], *out], align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)
