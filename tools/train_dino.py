"""Train the tiny DINO on scenes by self-distillation, without labels: `python tools/train_dino.py`.

Two global views and local views of each scene. A student predicts, from a view with masked patches, the prototypes
that its moving average (the teacher) gives
  * to the whole other view               (class token; DINO, Caron et al. 2021, arXiv:2104.14294),
  * to the same patch, unmasked           (masked patches; iBOT, Zhou et al. 2022, arXiv:2111.07832),
  * to the same place in the other view   (dense: both crops are known, so the teacher map is resampled).
Targets are balanced over the batch by Sinkhorn-Knopp steps (SwAV, Caron et al. 2020, arXiv:2006.09882). Prototypes
alone start slowly (targets of a fresh teacher follow colours, which the views change), so the main term works on
cosines: a patch token should agree with the teacher's token at about the same place of the other view, while squared
cosines within a scene and over the batch stay small (spectral contrast, HaoChen et al. 2021, arXiv:2106.04156).
What the method needs is patch tokens whose cosines tell which patches are of one kind.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from dino_quality import dino_quality
from scene_pool import crop, scene_pool
from torch import Tensor, nn

from s2clip.backbones.tiny_dino import MEAN, STD, build_dino
from s2clip.backbones.tiny_file import write_model
from s2clip.scenes import FIRST_TRAINING_SEED

log = logging.getLogger("train_dino")
OUTPUT = Path(__file__).parents[1] / "s2clip" / "data" / "tiny" / "dino.safetensors"
ARCHITECTURE = {"img_size": 64, "patch_size": 4, "embed_dim": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0}


@dataclass(frozen=True)
class Settings:
    steps: int = 2400
    batch: int = 16
    scenes: int = 8000
    global_sizes: tuple[int, int] = (48, 64)  # sides of global views, pixels; the larger in every fourth step
    local_size: int = 32
    patch_prototypes: int = 96
    class_prototypes: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    student_temperature: float = 0.1
    teacher_temperature: float = 0.05
    warm_up: int = 60  # steps; then the rate falls with 1/sqrt(step), so that a longer run begins like a shorter one
    mask_share: float = 0.25  # of the patches of a student view
    jitter: float = 1.5  # patches between a place and the place in the other view whose target it gets
    spread_in_image: float = 0.8  # weights of the mean squared cosines within a scene and over the batch
    spread_over_all: float = 1.2
    seed: int = 0


class PrototypeHead(nn.Module):
    """Tokens [...,D] -> cosines to prototypes [...,K].

    No layers of its own: what the method uses are cosines of the tokens themselves, so these are what is trained.
    Standardised over the batch. Without that all cosines of a fresh network are alike, targets start near uniform and a
    run this short ends there (class loss 5.54 = log 256 after 250 steps).
    """

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.standardise = nn.BatchNorm1d(width, affine=False, track_running_stats=False)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, width), dim=-1))

    def forward(self, tokens: Tensor) -> Tensor:
        z = self.standardise(tokens.float().flatten(0, -2)).view_as(tokens)
        return F.linear(F.normalize(z, dim=-1), F.normalize(self.prototypes, dim=-1)).float()


class Network(nn.Module):
    """Backbone, mask token and the two heads; the teacher is a copy of it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.vit = build_dino(ARCHITECTURE)
        for block in self.vit.blocks:
            block.attn.fused_attn = False  # the fused backward was half of a step's time on the CPU
        width = ARCHITECTURE["embed_dim"]
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.patch_head = PrototypeHead(width, settings.patch_prototypes)
        self.class_head = PrototypeHead(width, settings.class_prototypes)

    def tokens(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """images [B,3,H,W] in [0,1], mask bool [B,h,w] -> tokens after the last norm [B,1+h·w,D]."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        with torch.autocast("cpu", torch.bfloat16):
            x = self.vit.patch_embed((images - mean) / std)  # [B,h,w,D]
            if mask is not None:
                x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
            x = self.vit._pos_embed(x).bfloat16()
            return self.vit.norm(self.vit.blocks(x))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """-> class-token cosines [B,K], patch cosines [B,h,w,P], unit patch tokens [B,h,w,D]."""
        tokens = self.tokens(images, mask)
        grid = (images.shape[-2] // ARCHITECTURE["patch_size"], images.shape[-1] // ARCHITECTURE["patch_size"])
        patches = tokens[:, 1:].unflatten(1, grid)
        return self.class_head(tokens[:, 0]), self.patch_head(patches), F.normalize(patches.float(), dim=-1)


def photometric(images: Tensor) -> Tensor:
    """Random brightness, contrast, saturation and colour balance per image, some noise; [B,3,H,W] in [0,1]."""
    b = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, 1, 1)

    grey = images.mean(1, keepdim=True)
    images = grey + uniform(0.3, 1.5, 1) * (images - grey)
    images = images * uniform(0.85, 1.15, 3)
    centre = images.mean((1, 2, 3), keepdim=True)
    images = (images - centre) * uniform(0.7, 1.3, 1) + centre + uniform(-0.12, 0.12, 1)
    noise = uniform(0.0, 0.03, 1) * torch.randn_like(images)
    return (images + noise).clamp(0, 1)


@dataclass(frozen=True)
class View:
    images: Tensor  # [B,3,s,s]
    centre: Tensor  # [B,2] of the crop in image coordinates [-1,1]
    half: Tensor  # [B,2], negative where mirrored


def random_view(scenes: Tensor, size: int) -> View:
    """A square crop of every scene, enlarged 0.9 to 2 times to `size`, mirrored half of the time, recoloured."""
    b = len(scenes)
    height, width = scenes.shape[-2:]
    side = size * 0.9 ** torch.rand(b, 1) * 2 ** -torch.rand(b, 1)  # in scene pixels
    mirror = torch.where(torch.rand(b, 1) < 0.5, -1.0, 1.0)
    share = torch.cat([side / width, side / height], dim=1)
    centre = (2 * torch.rand(b, 2) - 1) * (1 - share)
    half = share * torch.cat([mirror, torch.ones(b, 1)], dim=1)
    return View(photometric(crop(scenes, centre, half, (size, size))), centre, half)


def block_mask(batch: int, grid: int, share: float) -> Tensor:
    """Bool [B,grid,grid]: rough blobs cover `share` of a view's patches; half of the views stay whole."""
    field = torch.rand(batch, 1, grid // 2, grid // 2)
    field = F.interpolate(field, size=(grid, grid), mode="bilinear", align_corners=False)[:, 0]
    level = field.flatten(1).quantile(1 - share, dim=1)
    return (field > level[:, None, None]) & (torch.rand(batch, 1, 1) < 0.5)


@torch.no_grad()
def sinkhorn(cosines: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Rows of cosines [T,K] -> distributions [T,K] whose mean over the batch is near uniform."""
    q = torch.exp((cosines - cosines.max()) / temperature)
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def cross_entropy(cosines: Tensor, target: Tensor, temperature: float) -> Tensor:
    """-Σ target · log softmax(cosines / temperature) over the last axis; [...]."""
    return -(target * F.log_softmax(cosines / temperature, dim=-1)).sum(-1)


def places(source: View, destination: View, grid: int, jitter: float) -> tuple[Tensor, Tensor]:
    """Where the patches of `destination` lie in `source`: [B,grid,grid,2] in [-1,1], and which lie inside.

    jitter: each place is moved by up to this many patches. Neighbours are mostly of one kind, and what they share is
    the kind, not the phase of a ripple.
    """
    line = (torch.arange(grid) + 0.5) * 2 / grid - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([x, y], -1).expand(len(source.half), -1, -1, -1)
    place = place + jitter * 2 / grid * (2 * torch.rand(place.shape) - 1)
    place = place * destination.half[:, None, None] + destination.centre[:, None, None]
    place = (place - source.centre[:, None, None]) / source.half[:, None, None]
    return place, (place.abs() < 1).all(-1)


def sample(values: Tensor, place: Tensor) -> Tensor:
    """values [B,h,w,C] at places [B,h',w',2] -> [B,h',w',C], bilinear."""
    sampled = F.grid_sample(values.permute(0, 3, 1, 2), place, align_corners=False, padding_mode="border")
    return sampled.permute(0, 2, 3, 1)


def spread(unit: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of unit tokens [...,T,D]: ‖mean of u uᵀ‖², 1 where all are alike; [...]."""
    return (unit.mT @ unit / unit.shape[-2]).square().sum((-2, -1))


class Distiller:
    """Student and teacher; `loss(scenes)` is one step's objective."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.student = Network(settings)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def loss(self, scenes: Tensor) -> tuple[Tensor, dict[str, float]]:
        s = self.settings
        size = s.global_sizes[int(torch.rand(()) < 0.25)]
        views = [random_view(scenes, size) for _ in range(2)]
        both = torch.cat([view.images for view in views])
        grid = size // ARCHITECTURE["patch_size"]
        with torch.no_grad():
            class_cosines, patch_cosines, unit_target = self.teacher(both)
            class_target = sinkhorn(class_cosines, s.teacher_temperature).chunk(2)
            patch_target = sinkhorn(patch_cosines.flatten(0, 2), s.teacher_temperature).view_as(patch_cosines)

        mask = block_mask(len(both), grid, s.mask_share)
        class_student, patch_student, unit = self.student(both, mask)
        local = random_view(scenes, s.local_size).images
        class_student = (*class_student.chunk(2), self.student(local)[0])
        pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]  # student view, teacher view
        class_loss = [cross_entropy(class_student[i], class_target[j], s.student_temperature) for i, j in pairs]

        masked = cross_entropy(patch_student, patch_target, s.student_temperature)[mask]
        image_tokens = torch.cat([view.flatten(1, 2) for view in unit.chunk(2)], dim=1)  # [B,2·h·w,D]
        spread_in_image, spread_over_all = spread(image_tokens).mean(), spread(image_tokens.flatten(0, 1))
        patch_target, patch_student = patch_target.chunk(2), patch_student.chunk(2)
        unit, unit_target = unit.chunk(2), unit_target.chunk(2)
        dense, agreement = [], []
        for i, j in ((0, 1), (1, 0)):
            place, inside = places(views[j], views[i], grid, s.jitter)
            target = sample(patch_target[j], place)[inside]
            dense.append(cross_entropy(patch_student[i][inside], target, s.student_temperature))
            agreement.append((unit[i] * sample(unit_target[j], place)).sum(-1)[inside])
        parts = {
            "class": torch.stack(class_loss).mean(),
            "dense": torch.cat(dense).mean(),
            "masked": masked.mean(),
            "agreement": torch.cat(agreement).mean(),
            "in_image": spread_in_image,
            "over_all": spread_over_all,
        }
        distillation = 0.1 * (parts["class"] + parts["dense"] + parts["masked"])
        spectral = s.spread_in_image * spread_in_image + s.spread_over_all * spread_over_all - 2 * parts["agreement"]
        total = distillation + spectral
        return total, {name: part.item() for name, part in parts.items()}

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - momentum)


def train(settings: Settings, output: Path, cache: Path | None, minutes: float, save_every: int) -> None:
    torch.manual_seed(settings.seed)
    images, _ = scene_pool(FIRST_TRAINING_SEED, settings.scenes, cache=cache)
    distiller = Distiller(settings)
    decayed = [p for p in distiller.student.parameters() if p.ndim > 1]
    plain = [p for p in distiller.student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    )
    start, seen = time.perf_counter(), 0
    for step in range(settings.steps):
        spent = (time.perf_counter() - start) / 60
        schedule = min((step + 1) / settings.warm_up, math.sqrt(settings.warm_up / (step + 1)))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule
        batch = images[torch.randint(len(images), (settings.batch,))].float() / 255
        loss, parts = distiller.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(distiller.student.parameters(), 1.0)
        optimizer.step()
        distiller.follow(1 - 0.4 / math.sqrt(step + 100))  # 0.96 at first, 0.992 after 2,400 steps
        seen += settings.batch
        if step % 50 == 0:
            rate = seen / (time.perf_counter() - start)
            log.info("step %d %s %.1f scenes/s", step, {k: round(v, 3) for k, v in parts.items()}, rate)
        last = step + 1 == settings.steps
        if last or (step + 1) % save_every == 0 or spent > minutes:
            summary = asdict(settings) | {"scenes_seen": seen, "steps_done": step + 1, "minutes": round(spent, 1)}
            summary["quality"] = dino_quality(distiller.teacher.vit)
            write_model(output, distiller.teacher.vit, ARCHITECTURE, summary)
            log.info("saved %s", summary["quality"])
        if spent > minutes:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = {name: value for name, value in asdict(Settings()).items() if isinstance(value, int | float)}
    for name, value in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--cache", type=Path, help="folder to keep generated scenes in")
    parser.add_argument("--minutes", type=float, default=1e9, help="save and stop after this time")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = vars(parser.parse_args())
    output, cache, minutes, save_every, threads = (
        options.pop(k) for k in ("output", "cache", "minutes", "save_every", "threads")
    )
    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    train(Settings(**options), output, cache, minutes, save_every)


if __name__ == "__main__":
    main()
