"""Train the tiny promptable SAM on the masks of scenes: `python tools/train_sam.py`.

Prompts are those of the refinement stage (sam_batches.py), in all combinations of box, point and mask, many per encoded
picture. Loss per prompt: cross-entropy, heavier along borders, and dice of the single-mask output, (predicted IoU −
IoU)², and for points alone the best of the three masks (Kirillov et al. 2023, arXiv:2304.02643, trains the same way).
An empty target is right where a region stands for nothing. Beside them two losses on the encoder alone, both of masks:
pixel embeddings close to their segment's mean, and values of the last attention alike inside a segment.

Threads take pictures each with a copy of the weights; their gradients meet in no fixed order, so that a run with more
than one is not repeated to the bit.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sam_batches import SEGMENTS, Prompted, Sample, Scenes
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
    *[(True, False, False)] * 4,
    *[(True, True, False)] * 2,
    *[(True, False, True)] * 2,
    (False, True, True),
    *[(False, True, False)] * 2,
)


def encode(sam: Sam, images: Tensor) -> tuple[Tensor, Tensor]:
    """-> embeddings [B,C,g,g], values of the last attention [B,heads,g,g,d], fp32."""
    encoder = sam.image_encoder
    with torch.autocast("cpu", torch.bfloat16):
        x = encoder.patch_embed(images) + encoder.pos_embed
        for block in encoder.blocks[:-1]:
            x = block(x)
        last = encoder.blocks[-1]
        width, qkv = x.shape[-1], last.attn.qkv
        value = F.linear(last.norm1(x), qkv.weight[2 * width :], qkv.bias[2 * width :])
        embeddings = encoder.neck(last(x).permute(0, 3, 1, 2))
    value = value.float().unflatten(-1, (last.attn.num_heads, -1))
    return embeddings.float(), value.permute(0, 3, 1, 2, 4)


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


def prompt_tokens(sam: Sam, prompts: Prompted, box: bool, point: bool) -> Tensor:
    encoder = sam.prompt_encoder
    side, tokens = encoder.input_image_size, []
    if point:
        place = encoder.pe_layer.forward_with_coords(prompts.points[:, None] + 0.5, side)
        tokens.append(place + encoder.point_embeddings[1].weight)
        if not box:
            tokens.append(encoder.not_a_point_embed.weight.expand(len(place), 1, -1))
    if box:
        corners = encoder.pe_layer.forward_with_coords(prompts.boxes.view(-1, 2, 2) + 0.5, side)
        tokens.append(corners + torch.cat([encoder.point_embeddings[2].weight, encoder.point_embeddings[3].weight]))
    return torch.cat(tokens, 1)


def prompt_loss(sam: Sam, embedding: Tensor, prompts: Prompted, combination: tuple[bool, bool, bool]) -> tuple:
    """One picture's embedding [1,C,g,g] -> loss, IoU of the single mask [R]."""
    box, point, mask = combination
    encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    prompted = prompt_tokens(sam, prompts, box, point)
    rows, grid = len(prompted), embedding.shape[-1]
    dense = encoder.mask_downscaling(prompts.masks) if mask else encoder.no_mask_embed.weight[:, :, None, None]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(rows, -1, -1), prompted], 1)
    multi = not box
    height, width = prompts.targets.shape[1:]
    with torch.autocast("cpu", torch.bfloat16):
        source = (embedding + dense).expand(rows, -1, -1, -1).bfloat16()
        position = encoder.get_dense_pe().bfloat16().expand(rows, -1, -1, -1)
        hidden, source = decoder.transformer(source, position, tokens.bfloat16())
        source = source.mT.reshape(rows, -1, grid, grid)[:, :, : -(-height // 4), : -(-width // 4)]
        upscaled = decoder.output_upscaling(source)[..., :height, :width]
        networks = list(decoder.output_hypernetworks_mlps)[: 4 if multi else 1]
        weights = torch.stack([network(hidden[:, 1 + i]) for i, network in enumerate(networks)], 1)
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[-2:]).float()
        predicted = decoder.iou_prediction_head(hidden[:, 0]).float()[:, : len(networks)]
    target = prompts.targets[:, None].expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 20) / (p.sum((2, 3)) + target.sum((2, 3)) + 20)
    losses = 2 * (entropy * prompts.weights[:, None]).mean((2, 3)) + dice
    with torch.no_grad():
        guess, truth = logits > 0, target > 0.5
        union = (guess | truth).sum((2, 3))
        iou = torch.where(union > 0, (guess & truth).sum((2, 3)) / union.clamp(min=1), 1.0)  # nothing for nothing: 1
    error = (predicted - iou).square()
    loss = losses[:, 0].mean() + error[:, 0].mean()
    if multi:
        loss = loss + 0.5 * losses[:, 1:].min(1).values.mean() + 0.3 * error[:, 1:].mean()
    return loss, iou[:, 0]


def gradients(sam: Sam, extra: EncoderLosses, sample: Sample, combinations: list, share: float) -> tuple[list, dict]:
    """Of all parameters of sam and extra; the encoder runs once per picture and the decoder once per prompt."""
    embeddings, values = encode(sam, sample.images)
    patch = extra.patch
    rows, columns = (side // patch for side in sample.segments.shape[1:])
    pixels = extra.pixels(embeddings[:, :, :rows, :columns], sample.segments[:, : rows * patch, : columns * patch])
    cells = torch.randperm(rows * columns)[:192]
    middle = sample.segments[:, patch // 2 :: patch, patch // 2 :: patch][:, :rows, :columns].flatten(1)[:, cells]
    alike = extra.values(values[:, :, :rows, :columns].flatten(2, 3)[:, :, cells], middle)
    inner = [p for name, p in sam.named_parameters() if not name.startswith("image_encoder")]
    outer = [p for name, p in sam.named_parameters() if name.startswith("image_encoder")] + list(extra.parameters())
    leaf = embeddings.detach().requires_grad_()
    total, ious, loss_sum = [None] * (len(inner) + 1), [], 0.0
    for index, (prompts, combination) in enumerate(zip(sample.prompts, combinations, strict=True)):
        loss, iou = prompt_loss(sam, leaf[index : index + 1], prompts, combination)
        own = torch.autograd.grad(loss / len(leaf), [leaf, *inner], allow_unused=True)
        total = [a if b is None else b if a is None else a + b for a, b in zip(total, own, strict=True)]
        loss_sum += loss.item() / len(leaf)
        ious.append(iou.mean().item())
    encoder = torch.autograd.grad(
        [embeddings, share * (pixels + 0.5 * alike)], outer, [total[0], None], allow_unused=True
    )
    found = dict(zip(map(id, [*inner, *outer]), [*total[1:], *encoder], strict=True))
    figures = {"loss": loss_sum, "iou": float(np.mean(ious)), "pixels": pixels.item(), "values": alike.item()}
    return [found[id(p)] for p in (*sam.parameters(), *extra.parameters())], figures


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
    """The weights, their moving average, two optimizers, and threads that bring gradients."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.lock, self.step, self.count, self.done = options, threading.Lock(), 0, 0, False
        self.generator = np.random.default_rng(options.seed)
        torch.manual_seed(options.seed)
        self.sam = build_sam(ARCHITECTURE)
        with (
            torch.no_grad()
        ):  # 0.005·P must be seen: the first mask convolution starts 200 times larger, its bias small
            first = self.sam.prompt_encoder.mask_downscaling[0]
            first.weight.mul_(200)
            first.bias.mul_(0.1)
        if options.initial:
            start_from(self.sam, options.initial)
        encoder = ARCHITECTURE["image_encoder"]
        self.extra = EncoderLosses(encoder["out_chans"], encoder["patch_size"])
        side = self.sam.prompt_encoder.mask_input_size[0]
        self.scenes = Scenes(options.scenes, encoder["img_size"], side, options.maps, options.cache, self.generator)
        self.average = copy.deepcopy(self.sam).requires_grad_(False)
        self.parameters = [*self.sam.parameters(), *self.extra.parameters()]
        self.optimizers = self._optimizers()
        self.start = self.saved = time.perf_counter()
        self.recent: list[dict] = []

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

    def run(self) -> None:
        workers = [threading.Thread(target=self._work) for _ in range(self.options.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.save()

    def _work(self) -> None:
        torch.set_num_threads(1)
        sam, extra, options = copy.deepcopy(self.sam), copy.deepcopy(self.extra), self.options
        mine = [parameter.data for parameter in (*sam.parameters(), *extra.parameters())]
        try:
            while not self.done:
                with self.lock:
                    mean, std = self.sam.pixel_mean, self.sam.pixel_std
                    sample = self.scenes.sample(options.batch, options.prompts, mean, std)
                    drawn = [COMBINATIONS[self.generator.integers(len(COMBINATIONS))] for _ in sample.prompts]
                    torch._foreach_copy_(mine, [parameter.data for parameter in self.parameters])
                found, figures = gradients(sam, extra, sample, drawn, options.encoder_share)
                with self.lock:
                    self._add(found, figures)
        finally:
            self.done = True  # an error in one thread ends the others

    def _add(self, found: list, figures: dict) -> None:
        for parameter, gradient in zip(self.parameters, found, strict=True):
            if gradient is not None:
                gradient = gradient / self.options.accumulate
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.recent.append(figures)
        self.count += 1
        if self.count % self.options.accumulate == 0:
            self._advance()

    def _advance(self) -> None:
        options = self.options
        spent = (time.perf_counter() - self.start) / 60
        progress, self.done = spent / options.minutes, spent >= options.minutes
        tail = min(1.0, max(0.0, (progress - options.constant) / (1 - options.constant)))
        rate = max(0.01, 0.5 + 0.5 * math.cos(math.pi * tail)) * min(1, (self.step + 1) / options.warm_up)
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
        if self.step % 25 == 0:
            means = {name: round(float(np.mean([one[name] for one in self.recent])), 4) for name in self.recent[0]}
            self.recent.clear()
            log.info("step %d, %.1f minutes, rate %.2f: %s", self.step, spent, rate, means)
        if time.perf_counter() - self.saved > 60 * options.save_every:
            self.save()

    def save(self) -> None:
        self.saved = time.perf_counter()
        settings = {name: str(value) for name, value in vars(self.options).items() if value is not None}
        write_model(self.options.output, self.average, ARCHITECTURE, settings | {"steps_done": self.step})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=75, help="of wall clock; the rate falls to 0 by then")
    parser.add_argument("--batch", type=int, default=2, help="pictures that a thread takes")
    parser.add_argument("--prompts", type=int, default=20, help="per picture")
    parser.add_argument("--accumulate", type=int, default=3, help="batches a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=60, help="steps")
    parser.add_argument("--constant", type=float, default=0.45, help="share of the time before the rate falls")
    parser.add_argument("--average", type=float, default=0.995, help="of the weights that are saved, over steps")
    parser.add_argument("--encoder-share", type=float, default=1.0, help="weight of the losses on the encoder alone")
    parser.add_argument("--scenes", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--initial", type=Path, help="file to start from")
    parser.add_argument("--maps", type=Path, help="coarse maps of real methods, by coarse_maps.py")
    parser.add_argument("--cache", type=Path, help="folder to keep generated scenes in")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    Trainer(parser.parse_args()).run()


if __name__ == "__main__":
    main()
