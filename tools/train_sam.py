"""Train the tiny promptable SAM on the masks of scenes: `python tools/train_sam.py`.

Prompts are those of the refinement stage (sam_batches.py), in all combinations of box, point and mask, many per encoded
picture. Loss per prompt: cross-entropy, heavier along borders, and dice of the single-mask output, (predicted IoU −
IoU)², and for points alone the best of the three masks (Kirillov et al. 2023, arXiv:2304.02643, trains the same way).
An empty target is right where a region stands for nothing. Beside them two losses on the encoder alone, both of masks:
pixel embeddings close to their segment's mean, and values of the last attention alike inside a segment.

One process of one thread. Master weights, their gradients and their moving average are fp32; pictures pass through
a copy in bf16 (sam_forward.py).
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sam_batches import SEGMENTS, Prompted, Sample, Scenes
from sam_forward import decode, embed_masks, encode, to_cells
from segment_anything.modeling import Sam
from torch import Tensor, nn

from s2clip.backbones.tiny_file import read_tensors, write_model
from s2clip.backbones.tiny_sam import build_sam

log = logging.getLogger("train_sam")
OUTPUT = Path(__file__).parents[1] / "s2clip" / "data" / "tiny" / "sam.safetensors"
ARCHITECTURE = {
    "image_encoder": {
        "img_size": 144,
        "patch_size": 6,
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
COMBINATIONS = (
    *[(True, True, True)] * 10,
    *[(True, False, False)] * 5,
    (True, True, False),
    *[(True, False, True)] * 2,
    (False, True, True),
    (False, True, False),
)


class EncoderLosses(nn.Module):
    """What the encoder is told of segments without a prompt; thrown away after training."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.up = nn.Conv2d(channels, 16 * patch * patch, 1)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.cosine = nn.Parameter(torch.tensor([4.0, -2.0]))  # log scale and offset

    def pixels(self, embeddings: Tensor, segments: Tensor) -> Tensor:
        """Cross-entropy of each pixel among its picture's segments by −|z − mean z|², small segments weighted up."""
        with torch.autocast("cpu", torch.bfloat16):
            z = F.pixel_shuffle(self.up(embeddings), self.patch).flatten(2)
        z = z.float()
        one_hot = F.one_hot(segments, SEGMENTS).permute(0, 3, 1, 2).flatten(2).float()
        area = one_hot.sum(2)
        mean = (one_hot @ z.mT) / area.clamp(min=1)[..., None]
        logits = 0.1 * self.log_scale.exp() * (2 * mean @ z - mean.square().sum(-1)[..., None])
        logits = logits.masked_fill((area < 1)[..., None], -1e4)
        target = segments.flatten(1)
        weight = area.gather(1, target).clamp(min=30).rsqrt()
        return (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()

    def values(self, value: Tensor, segments: Tensor) -> Tensor:
        """Logistic loss of "same segment" on cosines of [B,heads,n,d], segments [B,n]; each answer weighs half."""
        unit = F.normalize(value, dim=-1)
        cosine = unit @ unit.mT
        same = (segments[:, :, None] == segments[:, None])[:, None].float().expand_as(cosine)
        logits = 0.2 * self.cosine[0].exp().clamp(max=60) * cosine + self.cosine[1]
        loss = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
        return 0.5 * ((loss * same).sum() / same.sum() + (loss * (1 - same)).sum() / (1 - same).sum())


def prompt_tokens(sam: Sam, half: Sam, prompts: Prompted, box: bool, point: bool) -> Tensor:
    """Positions by fp32's table, in which neighbouring pixels differ, the learned tokens by the bf16 copy."""
    encoder, learned, tokens = sam.prompt_encoder, half.prompt_encoder, []
    side = encoder.input_image_size
    if point:
        place = encoder.pe_layer.forward_with_coords(prompts.points[:, None] + 0.5, side).bfloat16()
        tokens.append(place + learned.point_embeddings[1].weight)
        if not box:
            tokens.append(learned.not_a_point_embed.weight.expand(len(place), 1, -1))
    if box:
        corners = encoder.pe_layer.forward_with_coords(prompts.boxes.view(-1, 2, 2) + 0.5, side).bfloat16()
        tokens.append(corners + torch.cat([learned.point_embeddings[2].weight, learned.point_embeddings[3].weight]))
    return torch.cat(tokens, 1)


def prompt_loss(
    sam: Sam, half: Sam, embedding: Tensor, prompts: Prompted, combination: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor]:
    """One picture's embedding [1,g²,C] in bf16 -> loss, IoU of the single mask [R]."""
    box, point, mask = combination
    encoder = half.prompt_encoder
    tokens = prompt_tokens(sam, half, prompts, box, point)
    dense = embed_masks(encoder, prompts.masks[:, 0].bfloat16()) if mask else encoder.no_mask_embed.weight[:, None]
    source = (embedding + dense).expand(len(tokens), -1, -1)
    position = sam.prompt_encoder.get_dense_pe()[0].flatten(1).mT.bfloat16()
    height, width = prompts.targets.shape[1:]
    beyond = (0, -width % 4, 0, -height % 4)
    target, weights = (to_cells(F.pad(one, beyond))[:, None] for one in (prompts.targets, prompts.weights))
    size = (-(-height // 4), -(-width // 4))
    logits, predicted = decode(half, source, position, tokens, size, 1 if box else 4)
    logits, predicted = logits.float(), predicted.float()[:, : logits.shape[1]]
    target = target.expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 20) / (p.sum((2, 3)) + target.sum((2, 3)) + 20)
    losses = 2 * (entropy * weights).sum((2, 3)) / (height * width) + dice
    with torch.no_grad():
        guess, truth = logits > 0, target > 0.5
        union = (guess | truth).sum((2, 3))
        iou = torch.where(union > 0, (guess & truth).sum((2, 3)) / union.clamp(min=1), 1.0)  # nothing for nothing: 1
    error = (predicted - iou).square()
    loss = losses[:, 0].mean() + error[:, 0].mean()
    if not box:
        loss = loss + 0.5 * losses[:, 1:].min(1).values.mean() + 0.3 * error[:, 1:].mean()
    return loss, iou[:, 0]


def gradients(
    sam: Sam, half: Sam, extra: EncoderLosses, sample: Sample, combinations: list, share: float
) -> tuple[list, dict]:
    """Of all parameters of half and extra; the encoder runs once per picture and the decoder once per prompt."""
    embeddings, values = encode(half, sample.images.bfloat16())
    patch, grid = extra.patch, int(embeddings.shape[1] ** 0.5)
    rows, columns = (side // patch for side in sample.segments.shape[1:])
    maps = embeddings.float().mT.unflatten(2, (grid, grid))[:, :, :rows, :columns]
    pixels = extra.pixels(maps, sample.segments[:, : rows * patch, : columns * patch])
    cells = torch.randperm(rows * columns)[:160]
    middle = sample.segments[:, patch // 2 :: patch, patch // 2 :: patch][:, :rows, :columns].flatten(1)[:, cells]
    seen = values.float().unflatten(2, (grid, grid))[:, :, :rows, :columns].flatten(2, 3)
    alike = extra.values(seen[:, :, cells], middle)
    inner = [p for name, p in half.named_parameters() if not name.startswith("image_encoder")]
    outer = [p for name, p in half.named_parameters() if name.startswith("image_encoder")] + list(extra.parameters())
    leaf = embeddings.detach().requires_grad_()
    total, ious, loss_sum = [None] * (len(inner) + 1), [], 0.0
    for index, (prompts, combination) in enumerate(zip(sample.prompts, combinations, strict=True)):
        loss, iou = prompt_loss(sam, half, leaf[index : index + 1], prompts, combination)
        own = torch.autograd.grad(loss / len(leaf), [leaf, *inner], allow_unused=True)
        own = [own[0], *(None if one is None else one.float() for one in own[1:])]
        total = [a if b is None else b if a is None else a + b for a, b in zip(total, own, strict=True)]
        loss_sum += loss.item() / len(leaf)
        ious.append(iou.mean().item())
    encoder = torch.autograd.grad(
        [embeddings, share * (pixels + 0.5 * alike)], outer, [total[0], None], allow_unused=True
    )
    found = dict(zip(map(id, [*inner, *outer]), [*total[1:], *encoder], strict=True))
    figures = {"loss": loss_sum, "iou": float(np.mean(ious)), "pixels": pixels.item(), "values": alike.item()}
    return [found[id(p)] for p in (*half.parameters(), *extra.parameters())], figures


def start_from(sam: Sam, path: Path) -> None:
    """Another file's weights; tables and the patch's kernel are resampled where its grid was another."""
    own = sam.state_dict()
    for name, tensor in read_tensors(path).items():
        size = own[name].shape
        if tensor.shape != size and "pos_embed" in name:
            tensor = F.interpolate(tensor.permute(0, 3, 1, 2), size=size[1:3], mode="bicubic").permute(0, 2, 3, 1)
        elif tensor.shape != size and "rel_pos" in name:
            tensor = F.interpolate(tensor.T[None], size=size[0], mode="linear")[0].T
        elif tensor.shape != size:
            ratio = (tensor.shape[-1] / size[-1]) ** 2
            tensor = F.interpolate(tensor, size=size[2:], mode="bicubic", antialias=True) * ratio
        with torch.no_grad():
            own[name].copy_(tensor)


class Trainer:
    """The weights, their copy in bf16, their moving average, and two optimizers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.step, self.seen = options, 0, 0
        torch.set_num_threads(1)
        self.generator = np.random.default_rng(options.seed)
        torch.manual_seed(options.seed)
        self.sam = build_sam(ARCHITECTURE)
        with torch.no_grad():
            # 0.005·P must be seen: the first mask convolution starts 200 times larger, its bias small
            first = self.sam.prompt_encoder.mask_downscaling[0]
            first.weight.mul_(200)
            first.bias.mul_(0.1)
        if options.initial:
            start_from(self.sam, options.initial)
        encoder = ARCHITECTURE["image_encoder"]
        self.extra = EncoderLosses(encoder["out_chans"], encoder["patch_size"])
        side = self.sam.prompt_encoder.mask_input_size[0]
        self.scenes = Scenes(options.scenes, encoder["img_size"], side, options.maps, options.cache, self.generator)
        self.half = copy.deepcopy(self.sam).bfloat16()
        self.average = copy.deepcopy(self.sam).requires_grad_(False)
        self.parameters = [*self.sam.parameters(), *self.extra.parameters()]
        self.optimizers = self._optimizers()
        self.start = self.saved = time.perf_counter()
        self.recent: list[dict] = []
        if options.state and options.state.exists():
            stored = torch.load(options.state)
            for name, part in self._parts().items():
                part.load_state_dict(stored[name])

    def _optimizers(self) -> list:
        """Muon for the matrices inside blocks (its orthogonal steps learn faster), AdamW for the rest."""
        inside, matrices, others = [], [], []
        for name, parameter in self.sam.named_parameters():
            block = any(part in name for part in ("blocks", "transformer.layers", "final_attn"))
            if parameter.ndim == 2 and block and "rel_pos" not in name:
                inside.append(parameter)
            elif parameter.ndim >= 2 and not any(part in name for part in ("pos", "token", "embed.weight")):
                matrices.append(parameter)
            else:
                others.append(parameter)
        groups = [
            {"params": matrices, "weight_decay": 0.05},
            {"params": [*others, *self.extra.parameters()], "weight_decay": 0.0},
        ]
        muon = torch.optim.Muon(inside, lr=3e-3, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))]

    def _parts(self) -> dict:
        first, second = self.optimizers
        return {"sam": self.sam, "average": self.average, "extra": self.extra, "muon": first, "adam": second}

    def run(self) -> None:
        options = self.options
        mean, std = self.sam.pixel_mean, self.sam.pixel_std
        while (progress := (time.perf_counter() - self.start) / 60 / options.minutes) < 1:
            for _ in range(options.accumulate):
                with torch.no_grad():
                    torch._foreach_copy_(list(self.half.parameters()), list(self.sam.parameters()))
                sample = self.scenes.sample(options.batch, options.prompts, mean, std)
                drawn = [COMBINATIONS[self.generator.integers(len(COMBINATIONS))] for _ in sample.prompts]
                found, figures = gradients(self.sam, self.half, self.extra, sample, drawn, options.encoder_share)
                for parameter, gradient in zip(self.parameters, found, strict=True):
                    if gradient is not None:
                        gradient = gradient.float() / options.accumulate
                        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
                self.recent.append(figures)
                self.seen += options.batch
            self._advance(progress)
        self.save()

    def _advance(self, progress: float) -> None:
        options = self.options
        rate = max(0.005, min(1.0, (1 - progress) / (1 - options.constant), (self.step + 1) / options.warm_up))
        for optimizer, base in zip(self.optimizers, (3e-3, 1e-3), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        kept = min(options.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.sam.parameters()), 1 - kept)
        if self.step % 50 == 0:
            means = {name: round(float(np.mean([one[name] for one in self.recent])), 4) for name in self.recent[0]}
            self.recent.clear()
            log.info("step %d, %d pictures, rate %.2f: %s", self.step, self.seen, rate, means)
        if time.perf_counter() - self.saved > 60 * options.save_every:
            self.save()

    def save(self) -> None:
        self.saved = time.perf_counter()
        settings = {name: str(value) for name, value in vars(self.options).items() if value is not None}
        write_model(self.options.output, self.average, ARCHITECTURE, settings | {"steps_done": self.step})
        if self.options.state:
            torch.save({name: part.state_dict() for name, part in self._parts().items()}, self.options.state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=66, help="of wall clock; the rate falls to 0 by then")
    parser.add_argument("--batch", type=int, default=4, help="pictures of one size")
    parser.add_argument("--prompts", type=int, default=12, help="per picture")
    parser.add_argument("--accumulate", type=int, default=2, help="batches a step")
    parser.add_argument("--warm-up", type=int, default=60, help="steps")
    parser.add_argument("--constant", type=float, default=0.5, help="share of the time before the rate falls")
    parser.add_argument("--average", type=float, default=0.998, help="of the weights that are saved, over steps")
    parser.add_argument("--encoder-share", type=float, default=0.7, help="weight of the losses on the encoder alone")
    parser.add_argument("--scenes", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--initial", type=Path, help="file to start from")
    parser.add_argument("--state", type=Path, help="file to go on from where it exists, and to save to")
    parser.add_argument("--maps", type=Path, help="coarse maps of real methods, by coarse_maps.py")
    parser.add_argument("--cache", type=Path, help="folder to keep generated scenes in")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
