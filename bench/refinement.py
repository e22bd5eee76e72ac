"""The refinement stage without SAM's networks: `refine="sam"` against `refine="trident"`, the published way.

    python bench/refinement.py [--rounds 3] [--small]

SAM's answers are made beforehand, one soft ellipse for each region's box, so that both sides get the same masks and
what is timed is all of the stage but the networks: regions, prompts, merging. Rounds alternate between the two; a row
has the medians in milliseconds and the median ratio. Labels are compared before anything is timed.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

# Last: this folder's profile.py must not hide the standard library's.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import machine
import torch
from torch import Tensor, nn

from s2clip import ops
from s2clip.backbones.sam import Embedding, input_size
from s2clip.decision.scores import DenseScores, LogitScores, ScoreMaps
from s2clip.refinement import sam, trident
from s2clip.refinement.prompts import find_regions, make_prompts
from s2clip.refinement.settings import Refinement
from s2clip.results.refined import Refined
from s2clip.stopwatch import Stopwatch
from s2clip.testing import normal

FRAME, SIDE = 1024, 256
SETTINGS = Refinement(sam_iou_threshold=0.5)
SIDES = {"s2clip": sam.refine, "published": trident.refine}


@dataclass(frozen=True)
class Setting:
    """A picture of random blobs: cells of noise, enlarged, are its cosines."""

    name: str
    size: tuple[int, int]
    classes: int
    cells: tuple[int, int]
    scores: str
    """"cosines", of which planes are made as needed, or "dense": all planes at full size, given."""


SETTINGS_OF_PICTURES = [
    Setting(f"{name}, {scores}", size, classes, cells, scores)
    for name, size, classes, cells in (
        ("VOC", (375, 500), 21, (2, 4)),
        ("Cityscapes, large regions", (1024, 2048), 19, (2, 4)),
        ("Cityscapes", (1024, 2048), 19, (5, 9)),
        ("Cityscapes, small regions", (1024, 2048), 19, (13, 26)),
    )
    for scores in ("dense", "cosines")
]


class Answers(nn.Module):
    """In SAM's place for both sides: prompts in the order of regions, masks in the same order."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.asked = logits, 0
        self.image_encoder = nn.Module()
        self.image_encoder.img_size = FRAME
        self.prompt_encoder = self
        self.mask_input_size = (SIDE, SIDE)

    def forward(self, points, boxes: Tensor, masks) -> tuple[Tensor, Tensor]:
        return boxes, boxes

    def get_dense_pe(self) -> None:
        return None

    def mask_decoder(self, features, position, boxes: Tensor, dense, multimask_output) -> tuple[Tensor, Tensor]:
        self.asked += len(boxes)
        logits = self.logits[self.asked - len(boxes) : self.asked]
        return logits[:, None], torch.ones(len(logits), 1, device=logits.device)

    def decode(self, model, features, prompts, *, faithful: bool) -> tuple[Tensor, Tensor]:
        return self.logits, torch.ones(len(self.logits), device=self.logits.device)


def ellipses(boxes: Tensor) -> Tensor:
    """Boxes [R,4] in the frame → mask logits [R,SIDE,SIDE]: positive inside the ellipse of the box."""
    x0, y0, x1, y1 = (boxes * (SIDE / FRAME)).T[:, :, None]
    place = torch.arange(SIDE, device=boxes.device) + 0.5
    across = ((place - (x0 + x1) / 2) / ((x1 - x0) / 2 + 1)) ** 2
    down = ((place - (y0 + y1) / 2) / ((y1 - y0) / 2 + 1)) ** 2
    radius = torch.minimum(x1 - x0, y1 - y0)[..., None] / 2 + 1
    return ((1 - (down[:, :, None] + across[:, None]).sqrt()) * radius).clamp(-30, 30)


@dataclass
class Stage:
    """One picture, ready to be refined by either side."""

    name: str
    regions: int
    labels: Tensor
    scores: Callable[[], ScoreMaps]
    logits: Tensor

    def run(self, side: str) -> tuple[Refined, dict[str, float]]:
        """(result, milliseconds of each part but the networks)."""
        answers, watch = Answers(self.logits), Stopwatch(self.labels.device)
        embedding = Embedding(torch.zeros(1, 1, 1, 1, device=self.labels.device), input_size(self.labels.shape, FRAME))
        with torch.inference_mode(), patch.object(sam, "decode", answers.decode):
            (refined,) = SIDES[side](answers, [embedding], [self.labels], [self.scores()], SETTINGS, watch)
        milliseconds = watch.milliseconds()
        del milliseconds["decoder"]
        return refined, milliseconds

    def differing(self) -> float:
        """Share of labels in which the sides differ. AssertionError if their regions do."""
        ours, theirs = (self.run(side)[0] for side in SIDES)
        for name in ("class_index", "area", "box", "point"):
            assert torch.equal(getattr(ours.regions, name), getattr(theirs.regions, name)), name
        assert (ours.labels != self.labels).any(), "no mask changed a label"
        return (ours.labels != theirs.labels).float().mean().item()


@torch.inference_mode()
def build(setting: Setting, device: torch.device) -> Stage:
    cosines = 0.25 * normal(setting.classes, *setting.cells, device=device)
    labels = ops.classify_pixels(cosines[None], setting.size)[0][0].long()
    if setting.scores == "dense":
        planes = ops.class_scores(cosines[None], setting.size)[0]
    make = {
        "dense": lambda: DenseScores(planes),
        "cosines": lambda: LogitScores(cosines, 40.0, range(setting.classes), setting.size),
    }[setting.scores]
    regions = find_regions(labels, make(), SETTINGS)
    prompts = make_prompts(regions, make(), setting.size, FRAME, SIDE, SETTINGS)
    name = f"{setting.name}: {setting.size[0]}x{setting.size[1]} R{len(regions)} K{setting.classes}"
    return Stage(name, len(regions), labels, make, ellipses(prompts.boxes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="VOC only")
    options = parser.parse_args()
    print(f"{machine.name()}, {torch.get_num_threads()} threads\n")
    print("| picture | s2clip: components, prompts, merge | all | published | ratio |\n|---|---|---:|---:|---:|")
    for setting in SETTINGS_OF_PICTURES[: 2 if options.small else None]:
        stage = build(setting, machine.device())
        assert stage.differing() < 2e-3
        rounds = [[stage.run(side)[1] for side in SIDES] for _ in range(options.rounds)]
        ours, theirs = zip(*rounds, strict=True)
        parts = [statistics.median(one[part] for one in ours) for part in ("components", "prompts", "merge")]
        totals = [statistics.median(sum(one.values()) for one in side) for side in (ours, theirs)]
        ratio = statistics.median(sum(two.values()) / sum(one.values()) for one, two in rounds)
        shown = ", ".join(f"{part:.3g}" for part in parts)
        print(f"| {stage.name} | {shown} | {totals[0]:.3g} | {totals[1]:.4g} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
