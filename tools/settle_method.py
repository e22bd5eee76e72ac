"""Settle s2clip's free choices on two disjoint sets of scenes: `python tools/settle_method.py run.npz`.

Every variant sees the same scenes, of sets A (seeds 20000..) and B (30000..) in turn, so that an interrupted run has as
many of both; it goes on where `run.npz` ends. `--only A` runs one set, so that two processes share the work; `--report
a.npz b.npz` prints what both hold, and runs nothing. Printed: mIoU of each variant, and its difference to the first, or
to `--against`, with the 95 % interval of 2,000 resamplings of the scenes, the same for all. A choice is taken if both
intervals lie above 0. The backbones run once a scene for all variants.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2clip import Segmenter, scenes
from s2clip.backbones.clip import load_clip
from s2clip.backbones.vfm import load_vfm
from s2clip.evaluation.metrics import confusion_matrix
from s2clip.files import whole_file
from s2clip.methods.recipe import RECIPES
from s2clip.methods.stages import STAGES
from s2clip.published.catalogue import METHODS, get_method

LIKELY = {"vfm_weight": 1.0, "mu": 2.0, "progressive": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "the source's outline: λ 0.5, μ 1, progressive": {},
    "λ 0.75": {"vfm_weight": 0.75},
    "λ 1": {"vfm_weight": 1.0},
    "μ 2": {"mu": 2.0},
    "not progressive": {"progressive": False},
    "λ 1, μ 2": {**LIKELY, "progressive": True},
    "λ 1, μ 2, not progressive": LIKELY,
    "λ 1, μ 2, not progressive, pearl": {**LIKELY, **STAGES["pearl"]},
}
"""What was tried and left out: docs/scenes.md."""
SETS = {"A": 20_000, "B": 30_000}
RESAMPLINGS = 2000


def remember(call: Any, known: list[tuple[Tensor, Any]]) -> Any:
    """`call` of the same images, computed once until `known` is cleared."""

    def answer(images: Tensor, **options: Any) -> Any:
        for seen, value in known:
            if torch.equal(seen, images):
                return value
        known.append((images, call(images, **options)))
        return known[-1][1]

    return answer


def run(path: Path, scenes_each: int, sets: Sequence[str]) -> SimpleNamespace:
    """Confusion matrices [variant,K,K] of every scene, kept in `path` as they come."""
    done = load([path]) if path.exists() else SimpleNamespace(seeds=[], matrices=[])
    clip, vfm = load_clip("tiny"), load_vfm("tiny-dino")
    states: list[tuple[Tensor, Any]] = []
    features: list[tuple[Tensor, Any]] = []
    clip.hidden_states = remember(clip.hidden_states, states)
    vfm.features = remember(vfm.features, features)
    outline = RECIPES["tiny"].adapt(METHODS["s2clip-source"])
    segmenters = [
        Segmenter(clip, vfm=vfm, method=get_method(outline, **fields)).set_classes(scenes.CLASSES)
        for fields in VARIANTS.values()
    ]
    for seed in (first + index for index in range(scenes_each) for first in map(SETS.__getitem__, sets)):
        if seed in done.seeds:
            continue
        states.clear()
        features.clear()
        image, labels = scenes.generate(seed)
        target = torch.from_numpy(labels)
        answers = [segmenter(image).segmentation for segmenter in segmenters]
        count = len(scenes.CLASSES)
        done.matrices.append(torch.stack([confusion_matrix(answer, target, count) for answer in answers]).numpy())
        done.seeds.append(seed)
        with whole_file(path) as file:
            np.savez(file, names=list(VARIANTS), seeds=done.seeds, matrices=np.stack(done.matrices).astype(np.int32))
    return done


def load(paths: Sequence[Path]) -> SimpleNamespace:
    """What the files hold, one after the other; a scene that two of them hold is taken once."""
    found: dict[int, np.ndarray] = {}
    for path in paths:
        with np.load(path) as file:
            if list(file["names"]) != list(VARIANTS):
                raise SystemExit(f"{path}: of other variants; name another file")
            found |= dict(zip(file["seeds"].tolist(), file["matrices"], strict=True))
    return SimpleNamespace(seeds=list(found), matrices=list(found.values()))


def mean_ious(matrices: np.ndarray) -> np.ndarray:
    """[...,K,K] → per cent [...]; a class that occurs nowhere does not count."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1).astype(float)
    union = matrices.sum(-1) + matrices.sum(-2) - hits
    return 100 * np.nanmean(np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0), -1)


def report(done: SimpleNamespace, against: int = 0) -> str:
    """Markdown: a row per variant; for each set its mIoU and the difference to variant `against` with its interval."""
    columns = []
    for first in SETS.values():
        own = [matrix for seed, matrix in zip(done.seeds, done.matrices, strict=True) if 0 <= seed - first < 10_000]
        if not own:
            continue
        matrices = np.stack(own).astype(np.int64)
        figures = mean_ious(matrices.sum(0))
        counts = np.random.default_rng(first).multinomial(len(own), [1 / len(own)] * len(own), RESAMPLINGS)
        resampled = mean_ious(np.tensordot(counts, matrices, 1))
        low, high = np.percentile(resampled - resampled[:, against, None], [2.5, 97.5], axis=0)
        cells = [
            f"{figure:.2f} | {figure - figures[against]:+.2f} ({a:+.2f} to {b:+.2f})"
            for figure, a, b in zip(figures, low, high, strict=True)
        ]
        columns.append((f"{len(own)} scenes from {first} | difference", cells))
    lines = ["| s2clip with | " + " | ".join(head for head, _ in columns) + " |", "|---" * (1 + 2 * len(columns)) + "|"]
    cells = zip(VARIANTS, *(cells for _, cells in columns), strict=True)
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="where the confusion matrices are kept; several to report")
    parser.add_argument("--limit", type=int, default=200, help="scenes of each set")
    parser.add_argument("--only", choices=SETS, help="run this set")
    parser.add_argument("--report", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--against", type=int, default=0, help="variant that the others are compared with, 0 the first")
    arguments = parser.parse_args()
    if len(arguments.files) > 1 and not arguments.report:
        parser.error("one file to run; several go with --report")
    if arguments.report:
        done = load(arguments.files)
    else:
        done = run(arguments.files[0], arguments.limit, [arguments.only] if arguments.only else list(SETS))
    print(report(done, arguments.against))


if __name__ == "__main__":
    main()
