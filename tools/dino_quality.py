"""How well patch features tell which patches are of one kind, on held-out scenes: `python tools/dino_quality.py`.

Two figures, no CLIP involved. `ap`: average precision of "same class" over pairs of patches of a window, by cosine.
`smoothed`: a patch's class is known for 60 % of the patches and random for the rest; share of patches right after
smoothing by the method's affinity (beta 1.2, gamma 3.0). Baselines: mean colour and raw pixels of the patch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scene_pool import scene_pool
from torch import Tensor, nn

from s2clip.backbones.tiny_dino import MEAN, STD, load_dino_model
from s2clip.scenes import CLASSES

HELD_OUT_SEED, SCENES, WINDOW, PATCH = 500_000, 64, 64, 4


@cache
def _windows(scale: float) -> tuple[Tensor, Tensor]:
    """Windows [n,3,64,64] in [0,1] of held-out scenes enlarged `scale` times, majority class per patch [n,256]."""
    images, labels = scene_pool(HELD_OUT_SEED, SCENES, workers=1)
    cut = round(WINDOW / scale)
    generator = np.random.default_rng(0)
    windows, classes = [], []
    for image, label in zip(images.float() / 255, labels.long(), strict=True):
        y, x = (int(generator.integers(0, side - cut + 1)) for side in label.shape)
        window = image[:, y : y + cut, x : x + cut][None]
        windows.append(F.interpolate(window, size=(WINDOW, WINDOW), mode="bilinear", align_corners=False)[0])
        onehot = F.one_hot(label[y : y + cut, x : x + cut], len(CLASSES)).permute(2, 0, 1).float()
        classes.append(F.adaptive_avg_pool2d(F.interpolate(onehot[None], (WINDOW, WINDOW)), WINDOW // PATCH)[0])
    return torch.stack(windows), torch.stack(classes).argmax(1).flatten(1)


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    precision = hits / np.arange(1, len(order) + 1)
    return float((precision * truth[order]).sum() / max(1, truth.sum()))


def _smooth(cosines: Tensor, value: Tensor, beta: float = 1.2, gamma: float = 3.0) -> Tensor:
    r = gamma * (cosines - beta * cosines.mean((1, 2), keepdim=True))
    keep = (r >= 0) | torch.eye(r.shape[1], dtype=torch.bool)
    return r.masked_fill(~keep, -torch.inf).softmax(-1) @ value


@torch.no_grad()
def quality(features: Callable[[Tensor], Tensor], scale: float) -> dict[str, float]:
    """features: windows [n,3,64,64] -> [n,T,D]; the mean over held-out windows of both figures."""
    windows, classes = _windows(scale)
    unit = F.normalize(features(windows).float(), dim=-1)
    cosines = unit @ unit.mT
    same = classes[:, :, None] == classes[:, None, :]
    upper = torch.triu(torch.ones_like(same[0]), diagonal=1)
    ap = [average_precision(c[upper].numpy(), s[upper].numpy()) for c, s in zip(cosines, same, strict=True)]
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(classes.shape, generator=generator) < 0.4
    noisy = torch.where(wrong, torch.randint(len(CLASSES), classes.shape, generator=generator), classes)
    smoothed = _smooth(cosines, F.one_hot(noisy, len(CLASSES)).float()).argmax(-1)
    return {
        "ap": round(float(np.mean(ap)), 4),
        "smoothed": round(float((smoothed == classes).float().mean()), 4),
    }


def _pixels(windows: Tensor) -> Tensor:
    x = F.unfold(windows, PATCH, stride=PATCH).mT
    return x - x.mean((1, 2), keepdim=True)


def _colour(windows: Tensor) -> Tensor:
    x = F.avg_pool2d(windows, PATCH).flatten(2).mT
    return x - x.mean(1, keepdim=True)


def dino_quality(model: nn.Module) -> dict[str, dict[str, float]]:
    """Both figures of a tiny DINO at windows of scenes enlarged 1 and 2 times."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    training = model.training
    model.eval()
    result = {
        f"x{scale:g}": quality(lambda x: model.forward_features((x - mean) / std)[:, 1:], scale) for scale in (1.0, 2.0)
    }
    model.train(training)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, help="file to measure instead of the embedded one")
    options = parser.parse_args()
    for scale in (1.0, 2.0):
        print("pixels", scale, quality(_pixels, scale), "colour", quality(_colour, scale))
    print("dino  ", dino_quality(load_dino_model(path=options.weights)))
    print("random", dino_quality(load_dino_model(random=True, path=options.weights)))


if __name__ == "__main__":
    main()
