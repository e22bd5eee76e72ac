"""Train the tiny promptable SAM on the masks of scenes: `python tools/train_sam.py`.

Prompts are those of the refinement stage (coarse_prompts.py), in all combinations of box, point and mask. Loss per
prompt: cross-entropy and dice of the single-mask output, (predicted IoU - IoU)², and the best of the three masks of
the multi-mask output (Kirillov et al. 2023, arXiv:2304.02643, trains the same way).
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from coarse_prompts import coarse_probabilities, mask_prompt, training_prompts
from sam_quality import sam_quality
from scene_pool import crop, scene_pool
from segment_anything.modeling import Sam
from torch import Tensor, nn

from s2clip.backbones.tiny_file import read_tensors, write_model
from s2clip.backbones.tiny_sam import build_sam
from s2clip.scenes import CLASSES, FIRST_TRAINING_SEED

log = logging.getLogger("train_sam")
OUTPUT = Path(__file__).parents[1] / "s2clip" / "data" / "tiny" / "sam.safetensors"
ARCHITECTURE = {
    "image_encoder": {
        "img_size": 128,
        "patch_size": 8,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "mlp_ratio": 4.0,
        "out_chans": 64,
        "use_rel_pos": True,
        "window_size": 8,
        "global_attn_indexes": [1, 3],
    },
    "mask_in_chans": 8,
    "decoder": {"depth": 2, "mlp_dim": 128, "num_heads": 4, "iou_head_hidden_dim": 64},
}
# (box, point, mask) given or not, and how often
COMBINATIONS = {
    (True, True, True): 0.5,
    (True, True, False): 0.12,
    (True, False, True): 0.12,
    (False, True, True): 0.08,
    (True, False, False): 0.1,
    (False, True, False): 0.08,
}
ASPECTS = (
    (96, 128),
    (96, 128),
    (96, 128),
    (128, 128),
    (128, 96),
    (72, 128),
    (112, 128),
)  # valid area, height and width


@dataclass(frozen=True)
class Settings:
    steps: int = 4500
    batch: int = 8
    prompts: int = 5  # per scene
    scenes: int = 8000
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warm_up: int = 100  # steps; then the rate falls to 0 along a line
    average: float = 0.99  # of the weights that are saved, over steps
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    images: Tensor  # [B,3,S,S] in 0..255, zeros right and bottom
    image_index: Tensor  # [R]
    boxes: Tensor  # [R,4]
    points: Tensor  # [R,1,2]
    masks: Tensor  # [R,1,m,m]
    targets: Tensor  # [R,h,w] bool, of the valid area


def sample_batch(images: Tensor, labels: Tensor, settings: Settings, sam: Sam, generator: np.random.Generator) -> Batch:
    """Crops of random scenes with prompts; one valid area per batch."""
    size = sam.image_encoder.img_size
    h, w = ASPECTS[generator.integers(len(ASPECTS))]
    chosen = torch.randint(len(images), (settings.batch,))
    height, width = images.shape[-2:]
    largest = min(height / h, width / w)
    zoom = largest * torch.where(
        torch.rand(settings.batch) < 0.5, torch.ones(()), 0.6 + 0.4 * torch.rand(settings.batch)
    )
    share = torch.stack([zoom * w / width, zoom * h / height], dim=1)
    centre = (2 * torch.rand(settings.batch, 2) - 1) * (1 - share)
    half = share.clone()
    half[:, 0] *= torch.where(torch.rand(settings.batch) < 0.5, -1.0, 1.0)
    pictures = crop(images[chosen].float(), centre, half, (h, w))
    gain = 0.85 + 0.3 * torch.rand(settings.batch, 3, 1, 1)
    pictures = (pictures * gain).clamp(0, 255)
    truth = crop(labels[chosen, None].float(), centre, half, (h, w), mode="nearest")[:, 0].long()
    probability = coarse_probabilities(
        truth,
        len(CLASSES),
        cell=int(generator.choice([3, 4, 6, 8, 12])),
        sharpness=generator.uniform(4.5, 10),
        noise=generator.uniform(0, 1.2),
        drift=generator.uniform(0, 1.5),
        missing=0.08,
    )
    index, boxes, points, classes, targets = [], [], [], [], []
    for i in range(settings.batch):
        for prompt in training_prompts(truth[i].numpy(), probability[i].numpy(), settings.prompts, generator):
            index.append(i)
            boxes.append(prompt.box)
            points.append(prompt.point)
            classes.append(prompt.class_index)
            targets.append(prompt.target)
    image_index = torch.tensor(index)
    threshold = generator.uniform(0.02, 0.4)
    masks = mask_prompt(probability[image_index, classes], sam.prompt_encoder.mask_input_size[0], threshold)
    return Batch(
        F.pad(pictures, (0, size - w, 0, size - h)),
        image_index,
        torch.from_numpy(np.stack(boxes)),
        torch.from_numpy(np.stack(points))[:, None],
        masks,
        torch.from_numpy(np.stack(targets)),
    )


def embed_images(sam: Sam, images: Tensor, valid: tuple[int, int]) -> Tensor:
    """Images [B,3,S,S] in 0..255 -> [B,C,g,g]; zero padding after normalisation as in Sam.preprocess."""
    normalised = (images - sam.pixel_mean) / sam.pixel_std
    inside = torch.zeros(images.shape[-2:])
    inside[: valid[0], : valid[1]] = 1
    return sam.image_encoder(normalised * inside)


def decode(sam: Sam, embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """MaskDecoder.predict_masks for prompts of several images at once: embeddings [R,C,g,g], one row per prompt.

    -> logits [R,4,m,m] (single mask, then three), predicted IoU [R,4].
    """
    decoder = sam.mask_decoder
    rows = len(sparse)
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(rows, -1, -1), sparse], dim=1)
    position = sam.prompt_encoder.get_dense_pe().expand(rows, -1, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        image, position, tokens = ((embeddings + dense).bfloat16(), position.bfloat16(), tokens.bfloat16())
        hidden, source = decoder.transformer(image, position, tokens)
        upscaled = decoder.output_upscaling(source.mT.reshape(embeddings.shape))
        weights = torch.stack([mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:])
        iou = decoder.iou_prediction_head(hidden[:, 0])
    return logits.float(), iou.float()


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """2 · cross-entropy + dice of logits [..,h,w] to target in [0,1]; [..]."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 2 * cross_entropy + dice


def training_loss(sam: Sam, batch: Batch, combination: tuple[bool, bool, bool]) -> tuple[Tensor, dict[str, float]]:
    box, point, mask = combination
    h, w = batch.targets.shape[-2:]
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = embed_images(sam, batch.images, (h, w)).float()
    points = (batch.points, torch.ones(len(batch.points), 1)) if point else None
    # fp32: the position code of a box turns by several radians per image side, bf16 would lose pixels
    sparse, dense = sam.prompt_encoder(points, batch.boxes if box else None, batch.masks if mask else None)
    logits, iou = decode(sam, embeddings[batch.image_index], sparse, dense)
    size = sam.image_encoder.img_size
    low_h, low_w = h * logits.shape[-2] // size, w * logits.shape[-1] // size
    logits = logits[..., :low_h, :low_w]
    # a pixel half covered by the target has logit 0, so that enlarged logits cross zero at the true border
    target = F.adaptive_avg_pool2d(batch.targets[:, None].float(), (low_h, low_w)).expand_as(logits)
    losses = mask_loss(logits, target)
    with torch.no_grad():
        guess, truth = logits > 0, target > 0.5
        true_iou = (guess & truth).sum((-2, -1)) / (guess | truth).sum((-2, -1)).clamp(min=1)
    errors = (iou - true_iou).square().mean(0)
    iou_error = errors[0] + 0.3 * errors[1:].mean()
    loss = losses[:, 0].mean() + 0.3 * losses[:, 1:].min(1).values.mean() + iou_error
    true_iou = true_iou[:, 0]
    return loss, {"loss": loss.item(), "iou": true_iou.mean().item(), "iou_error": iou_error.item()}


def prepare(sam: Sam) -> None:
    """Start where 0.005·P can be seen: the first mask convolution's weights are 200 times larger, its bias small."""
    first = sam.prompt_encoder.mask_downscaling[0]
    with torch.no_grad():
        first.weight.mul_(200)
        first.bias.mul_(0.1)


def train(
    settings: Settings, output: Path, cache: Path | None, initial: Path | None, minutes: float, save_every: int
) -> None:
    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    images, labels = scene_pool(FIRST_TRAINING_SEED, settings.scenes, cache=cache)
    sam = build_sam(ARCHITECTURE)
    prepare(sam)
    if initial:
        sam.load_state_dict(read_tensors(initial))
    average = copy.deepcopy(sam).requires_grad_(False)
    optimizer = torch.optim.AdamW(sam.parameters(), weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    combinations = list(COMBINATIONS)
    shares = np.array(list(COMBINATIONS.values()))
    start, seen, recent = time.perf_counter(), 0, []
    for step in range(settings.steps):
        spent = (time.perf_counter() - start) / 60
        schedule = min((step + 1) / settings.warm_up, 1.01 - max(step / settings.steps, min(1.0, spent / minutes)))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule
        batch = sample_batch(images, labels, settings, sam, generator)
        combination = combinations[generator.choice(len(combinations), p=shares / shares.sum())]
        loss, parts = training_loss(sam, batch, combination)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mine, latest in zip(average.parameters(), sam.parameters(), strict=True):
                mine.lerp_(latest, 1 - min(settings.average, (step + 1) / (step + 10)))
        seen += settings.batch
        recent.append(list(parts.values()))
        if (step + 1) % 100 == 0:
            means = dict(zip(parts, np.mean(recent, axis=0).round(4).tolist(), strict=True))
            recent.clear()
            log.info("step %d %s %.1f scenes/s", step + 1, means, seen / (time.perf_counter() - start))
        last = step + 1 == settings.steps or spent > minutes
        if last or (step + 1) % save_every == 0:
            summary = asdict(settings) | {"scenes_seen": seen, "steps_done": step + 1, "minutes": round(spent, 1)}
            summary["quality"] = sam_quality(average)
            write_model(output, average, ARCHITECTURE, summary)
            log.info("saved %s", summary["quality"])
        if last:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--cache", type=Path, help="folder to keep generated scenes in")
    parser.add_argument("--initial", type=Path, help="file to start from")
    parser.add_argument("--minutes", type=float, default=1e9, help="finish the schedule, save and stop by this time")
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    files = {key: options.pop(key) for key in ("output", "cache", "initial", "minutes", "save_every")}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    train(Settings(**options), **files)


if __name__ == "__main__":
    main()
