"""The confusion matrix of one Cityscapes picture, 1024x2048: 5 ms on one core are allowed, here is what it takes.

Painted regions are what label maps look like; noise is the worst that there is. Labels as a segmenter gives them are
int64, targets and label maps from files uint8. The rival is the usual formulation: mask, combine in 64 bits, count.
"""

import machine
import numpy as np
import pytest
import torch

from s2clip import scenes
from s2clip.evaluation.metrics import confusion_matrix

SIZE = (1024, 2048)


def published(prediction, target, classes):
    counted = target != 255
    code = target[counted].long() * classes + prediction[counted].long()
    return torch.bincount(code, minlength=classes**2).view(classes, classes)


def label_maps(kind, classes):
    if kind == "noise":
        return np.random.default_rng(0).integers(0, classes, (2, *SIZE))
    return np.stack([np.kron(scenes.generate(seed, (256, 512))[1], np.ones((4, 4), np.int64)) for seed in (1, 2)])


@pytest.mark.parametrize("provider", ["s2clip", "published"])
@pytest.mark.parametrize("labels", ["uint8", "int64"])
@pytest.mark.parametrize("classes", [19, 171])
@pytest.mark.parametrize("kind", ["regions", "noise"])
def test_confusion_matrix(benchmark, kind, classes, labels, provider):
    benchmark.group = f"confusion matrix 1024x2048, {kind}, {classes} classes, labels {labels}"
    benchmark.name = provider
    prediction, target = (torch.from_numpy(ids).to(machine.device()) for ids in label_maps(kind, classes))
    prediction, target = prediction.to(getattr(torch, labels)), target.to(torch.uint8)
    target[:64] = 255
    count = {"s2clip": confusion_matrix, "published": published}[provider]
    if provider == "s2clip":
        assert torch.equal(count(prediction, target, classes), published(prediction, target, classes))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def timed():
        count(prediction, target, classes)
        machine.finish()

    benchmark.extra_info["device"] = machine.name()
    benchmark.pedantic(timed, rounds=7 if provider == "s2clip" else 3, warmup_rounds=1)
    torch.set_num_threads(threads)
