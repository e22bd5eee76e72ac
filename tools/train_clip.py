"""Train the embedded CLIP from pictures and captions: `python tools/train_clip.py`, half an hour on two CPU cores.

A caption names some of what is visible in its crop; that is all the model is told. No masks, no boxes, no positions.
What the dense use later rests on is one rule of training: in half of the pictures the last block's residual and
feed-forward are dropped for the class token, so that what it reads must stand in the values it attends to.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from open_clip.model import CLIP
from torch import Tensor

from s2clip import scenes
from s2clip.backbones import tiny
from s2clip.backbones.tiny_file import write_model
from s2clip.backbones.tiny_tokenizer import WordTokenizer, read_vocabulary

OUTPUT = Path(__file__).parent.parent / "s2clip" / "data" / "tiny" / "clip.safetensors"
CONTEXT_LENGTH = 24
CROP = 64
PATCH = 8
MINIMUM_SHARE = 0.03  # of a crop's pixels, for a class to count as visible
WARMUP = 200  # steps
DECAY_FROM = 0.75  # share of the run after which the rate falls to zero and more patches are kept
POOLS = (((96, 128), 0.6), ((160, 160), 0.25), ((192, 144), 0.15))  # painted sizes and their shares of the batches

# What a caption may call a class, beside the words in `scenes.CLASSES`.
OTHER_WORDS = {
    scenes.WATER: ("lake", "ocean", "waves"),
    scenes.GRASS: ("lawn", "pasture"),
    scenes.SAND: ("desert", "dunes"),
    scenes.ROCK: ("rocks", "stone", "cliff", "mountains"),
    scenes.FIELD: ("fields", "crops"),
    scenes.HOUSE: ("houses", "cottage", "building"),
    scenes.TREE: ("trees",),
    scenes.BOAT: ("boats", "ships", "sailboat"),
    scenes.CAR: ("cars", "vehicle", "automobile"),
    scenes.BALLOON: ("balloons", "hot-air balloon"),
    scenes.SHEEP: ("lambs",),
}


def configuration(width: int, layers: int) -> dict:
    return {
        "embed_dim": 128,
        "vision_cfg": {"layers": layers, "width": width, "head_width": 32, "patch_size": PATCH, "image_size": CROP},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": tokenizer().vocab_size,
            "width": 96,
            "heads": 3,
            "layers": 2,
        },
    }


def tokenizer() -> WordTokenizer:
    return WordTokenizer(read_vocabulary(), CONTEXT_LENGTH)


# --- pictures --------------------------------------------------------------------------------------------------------


def _paint(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    image, labels = scenes.generate(seed, size)
    return image, labels.astype(np.uint8)


def paint_pool(first_seed: int, count: int, size: tuple[int, int], cache: Path | None) -> tuple[Tensor, Tensor]:
    """images uint8 [n,3,H,W], labels uint8 [n,1,H,W] of `count` seeds from `first_seed`.

    cache: a folder where a pool, once painted, is kept for the next run.
    """
    kept = cache / f"clip_{first_seed}_{count}_{size[0]}x{size[1]}.pt" if cache else None
    if kept and kept.exists():
        return torch.load(kept, weights_only=True)
    images = torch.empty(count, 3, *size, dtype=torch.uint8)
    labels = torch.empty(count, 1, *size, dtype=torch.uint8)
    with ProcessPoolExecutor(2) as pool:
        seeds = range(first_seed, first_seed + count)
        for index, (image, label) in enumerate(pool.map(_paint, seeds, [size] * count, chunksize=64)):
            images[index] = torch.from_numpy(image).permute(2, 0, 1)
            labels[index, 0] = torch.from_numpy(label)
    if kept:
        torch.save((images, labels), kept)
    return images, labels


def random_patches(
    images: Tensor, labels: Tensor, keep: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """`keep` random patches of one square crop of each scene: its side 1/4 to all of the short side, half mirrored.

    images uint8 [B,3,H,W], labels uint8 [B,1,H,W] -> patches in [0,1] [B,keep,3·p·p], their places on the 8×8 grid
    [B,keep], the classes visible in the whole crop bool [B,K]. Only the kept patches are sampled.
    """
    count, _, height, width = images.shape
    short = min(height, width)
    side = 0.25 * 4 ** torch.rand(count, generator=generator) * short  # log-uniform
    half = torch.stack([side / width, side / height], dim=1)
    centre = (1 - half) * (2 * torch.rand(count, 2, generator=generator) - 1)
    mirror = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = half[:, 0] * mirror, half[:, 1]
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, [count, 1, CROP, CROP], align_corners=False)

    classes = F.grid_sample(labels.float(), grid[:, 1::3, 1::3], mode="nearest", align_corners=False)
    visible = F.one_hot(classes.long().flatten(1), len(scenes.CLASSES)).float().mean(dim=1) >= MINIMUM_SHARE

    places = torch.rand(count, (CROP // PATCH) ** 2, generator=generator).topk(keep, dim=1).indices
    grid = (
        grid.view(count, CROP // PATCH, PATCH, CROP // PATCH, PATCH, 2)
        .transpose(2, 3)
        .reshape(count, -1, PATCH, PATCH, 2)
    )
    grid = grid[torch.arange(count)[:, None], places].reshape(count, keep * PATCH, PATCH, 2)
    pixels = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    brightness = (0.85 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)) / 255
    patches = (pixels * brightness).clamp(0, 1).view(count, 3, keep, PATCH * PATCH)
    return patches.transpose(1, 2).flatten(2), places, visible


# --- captions --------------------------------------------------------------------------------------------------------


def caption(visible: list[int], rng: np.random.Generator) -> str:
    """One of the 80 templates around some of the visible classes, each by any of its words."""
    count = len(visible) if rng.random() < 0.4 else int(rng.integers(1, len(visible) + 1))
    names = []
    for index in rng.permutation(visible)[:count]:
        words = scenes.CLASSES[index].split("; ")
        if rng.random() < 0.2:
            words = list(OTHER_WORDS.get(int(index), words))
        names.append(str(rng.choice(words)))
    separator = " and " if rng.random() < 0.5 else " "
    template = OPENAI_IMAGENET_TEMPLATES[rng.integers(len(OPENAI_IMAGENET_TEMPLATES))]
    return template(separator.join(names))


# --- model -----------------------------------------------------------------------------------------------------------


def encode_image(model: CLIP, patches: Tensor, places: Tensor, residual: float, generator: torch.Generator) -> Tensor:
    """The vision tower on some patches, the last block for the class token only, its residual in a share only."""
    visual = model.visual
    mean, std = (torch.tensor(value).repeat_interleave(PATCH**2) for value in (tiny.IMAGE_MEAN, tiny.IMAGE_STD))
    positions = F.embedding(places, visual.positional_embedding[1:])
    count = len(patches)
    x = F.linear((patches - mean) / std, visual.conv1.weight.flatten(1)) + positions
    cls = (visual.class_embedding + visual.positional_embedding[0]).expand(count, 1, -1)
    x = visual.ln_pre(torch.cat([cls, x], dim=1))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        normal = block.ln_1(x)
        x = x + attend(block.attn, normal, normal)
        x = x + block.mlp(block.ln_2(x))
    normal = last.ln_1(x)
    attended = attend(last.attn, normal[:, :1], normal)[:, 0]
    stays = (torch.rand(count, 1, generator=generator) < residual).float()
    x = stays * x[:, 0] + attended
    x = x + stays * last.mlp(last.ln_2(x))
    return visual.ln_post(x) @ visual.proj


def attend(attention: torch.nn.MultiheadAttention, query: Tensor, context: Tensor, causal: bool = False) -> Tensor:
    """Multi-head attention with the module's weights.

    Written out: on 33 tokens torch's fused CPU attention spent more than half of a training step in its backward pass.
    """
    width, heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if query is context:
        q, k, v = F.linear(context, weight, bias).chunk(3, dim=-1)
    else:
        q = F.linear(query, weight[:width], bias[:width])
        k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    mixed = scores.softmax(dim=-1).to(v.dtype) @ v
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """`CLIP.encode_text` on the positions that any caption of the batch uses."""
    end = tokens.argmax(dim=1)
    tokens = tokens[:, : int(end.max()) + 1]
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    for block in model.transformer.resblocks:
        normal = block.ln_1(x)
        x = x + attend(block.attn, normal, normal, causal=True)
        x = x + block.mlp(block.ln_2(x))
    return model.ln_final(x)[torch.arange(len(tokens)), end] @ model.text_projection


# --- training --------------------------------------------------------------------------------------------------------


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)

    config = configuration(arguments.width, arguments.layers)
    model = tiny.build_clip(config).train()
    tokenize = tokenizer()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.0, betas=(0.9, 0.98)
    )

    started = time.perf_counter()
    pools, seed = [], scenes.FIRST_TRAINING_SEED + arguments.first_seed
    for size, share in POOLS:
        count = round(arguments.scenes * share)
        pools.append(paint_pool(seed, count, size, arguments.cache))
        seed += count
    print(f"painted {arguments.scenes} scenes in {time.perf_counter() - started:.0f} s", flush=True)

    steps, first = arguments.pictures // arguments.batch, 0
    state_file = arguments.output.with_suffix(".state")
    if arguments.resume:
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        rng.bit_generator.state = state["rng"]
        first = state["step"]
    accuracy = 0.0
    for step in range(first, steps):
        progress = step / steps
        images, labels = pools[rng.choice(len(POOLS), p=[share for _, share in POOLS])]
        chosen = torch.randint(len(images), (arguments.batch,), generator=generator)
        keep = arguments.keep if progress < DECAY_FROM else 2 * arguments.keep
        patches, places, visible = random_patches(images[chosen], labels[chosen], keep, generator)
        tokens = tokenize(caption(row.nonzero()[:, 0].tolist(), rng) for row in visible)

        rate = arguments.rate * min(1, (step + 1) / WARMUP, (1 - progress) / (1 - DECAY_FROM))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            image = encode_image(model, patches, places, arguments.residual, generator)
            text = encode_text(model, tokens)
        logits = model.logit_scale.exp() * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        target = torch.arange(arguments.batch)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(50))
        accuracy = 0.95 * accuracy + 0.05 * (logits.argmax(1) == target).float().mean().item()

        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - started
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  accuracy {accuracy:.3f}  "
                f"scale {model.logit_scale.exp().item():.1f}  {seconds:.0f} s",
                flush=True,
            )
        if (step + 1) % arguments.save_every == 0 or step == steps - 1:
            summary = {
                "pictures": (step + 1) * arguments.batch,
                "of_pictures": arguments.pictures,
                "scenes": arguments.scenes,
                "first_seed": scenes.FIRST_TRAINING_SEED + arguments.first_seed,
                "batch": arguments.batch,
                "seed": arguments.seed,
                "seconds": round(time.perf_counter() - started),
                "classes": list(scenes.CLASSES),
            }
            write_model(arguments.output, model, config, summary)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state | {"generator": generator.get_state(), "rng": rng.bit_generator.state}, state_file)
    state_file.unlink()
    print(json.dumps(summary))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--pictures", type=int, default=716_800)
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--keep", type=int, default=16, help="patches of 64 seen in training; twice as many at its end")
    parser.add_argument("--residual", type=float, default=0.5, help="share of pictures that keep it in the last block")
    parser.add_argument("--resume", action="store_true", help="go on from the state beside the output")
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first-seed", type=int, default=0, help="offset of the first scene in the training range")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="folder to keep the painted scenes in")
    parser.add_argument("--save-every", type=int, default=100)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
