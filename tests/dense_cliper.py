"""CLIPer restated in plain torch: levels, attention, windows and decision, a picture at a time."""

import torch
import torch.nn.functional as F
from dense import DenseBlock, softmaxed
from small_models import HEADS, LAYERS, picture

PICTURE = picture(50, 75)
SHORT = {"short_side": 40}
SIZE, GRID, PATCH = (40, 64), (5, 8), 8  # 40x60 to the nearest multiples of 8


def canvas(pixels=PICTURE):
    """Bicubic with antialias, a = -0.5: what Pillow does, without rounding to 8 bits."""
    image = pixels.double() / 255
    return F.interpolate(image[None], SIZE, mode="bicubic", antialias=True)[0].clamp(0, 1)


def first_tokens(clip, image):
    """X_0 [1+N,D] with positions resampled bilinearly by size."""
    visual = clip.model.visual
    patches = F.conv2d(
        ((image - clip.mean.reshape(3, 1, 1)) / clip.std.reshape(3, 1, 1))[None], visual.conv1.weight, stride=PATCH
    )[0]
    grid = patches.shape[1:]
    table = visual.positional_embedding
    positions = table[1:].T.reshape(1, -1, *clip.native_grid)
    positions = F.interpolate(positions, grid, mode="bilinear", align_corners=False)[0].flatten(1).T
    tokens = torch.cat([(visual.class_embedding + table[0])[None], patches.flatten(1).T + positions])
    return F.layer_norm(tokens, tokens.shape[1:], visual.ln_pre.weight, visual.ln_pre.bias, 1e-5), tuple(grid)


def divided(matrix, axis):
    return matrix / matrix.sum(axis, keepdim=True)


def dense_levels(clip, image):
    """(unit z_i [L][N,C], A_img [N,N], grid): the i-th feature sees i Sinkhorn steps, from the start each time."""
    x, grid = first_tokens(clip, image)
    inputs, summed = [], [0.0] * HEADS
    for module in clip.blocks[:-1]:
        block = DenseBlock(module)
        inputs.append(block.normed(x))
        summed = [total + attention for total, attention in zip(summed, softmaxed(block, x, "qk"), strict=True)]
        x = block.standard(x)
    inputs.append(x)
    last, units = DenseBlock(clip.blocks[-1]), []
    for steps, tokens in enumerate(inputs, start=1):
        fused = []
        for total in summed:
            for _ in range(steps):
                total = divided(divided(total, 0), 1)
            symmetric = (total + total.T) / 2
            fused.append(divided((symmetric - symmetric.mean(0, keepdim=True)).clamp(min=0), 1))
        joint = clip.head(last.mix(tokens, fused)[1:])
        units.append(joint / joint.norm(dim=1, keepdim=True))
    return units, sum(attention[1:, 1:] for attention in fused) / HEADS, grid


def dense_sliding(clip, image, rows, scale, crop=32, stride=16):
    """Logits [L,R,N] of overlapping windows: pasted, averaged, times the pasted, averaged, row-divided attention."""
    height, width = image.shape[1:]
    cells = torch.arange(GRID[0] * GRID[1]).view(GRID)
    logits = torch.zeros(LAYERS, len(rows), cells.numel(), dtype=image.dtype)
    attention = torch.zeros(cells.numel(), cells.numel(), dtype=image.dtype)
    hits, pair_hits = torch.zeros(cells.numel()), torch.zeros_like(attention)
    for top in sorted({min(t, height - crop) for t in range(0, height - crop + stride, stride)}):
        for left in sorted({min(x, width - crop) for x in range(0, width - crop + stride, stride)}):
            units, own, _ = dense_levels(clip, image[:, top : top + crop, left : left + crop])
            places = [
                int(cells[top // PATCH + row, left // PATCH + column])
                for row in range(crop // PATCH)
                for column in range(crop // PATCH)
            ]
            for i, place in enumerate(places):
                for level, unit in enumerate(units):
                    logits[level, :, place] += scale * rows @ unit[i]
                hits[place] += 1
                for j, other in enumerate(places):
                    attention[place, other] += own[i, j]
                    pair_hits[place, other] += 1
    attention = divided(torch.where(pair_hits > 0, attention / pair_hits, attention), 1)
    return (logits / hits) @ attention


def dense_rows(text, foreground):
    others = [row for row in range(len(text)) if row not in foreground]
    words = text[foreground]
    return torch.cat([words, text[others], F.normalize(words.mean(0, keepdim=True), dim=1)])


def dense_out(clip, pixels, text, foreground, *, scale, level, cut, sliding):
    """out [n,h,w] of the classes whose single word has a row in `foreground`."""
    units, attention, _ = dense_levels(clip, canvas(pixels))
    rows = dense_rows(text, foreground)
    kept = [torch.softmax(scale * rows @ unit.T, 0)[: len(foreground)] for unit in units]
    if sliding:
        logits = dense_sliding(clip, canvas(pixels), rows, scale)
        kept = [0.5 * s + 0.5 * torch.softmax(own, 0)[: len(foreground)] for s, own in zip(kept, logits, strict=True)]
    chosen = kept[level]
    for row in chosen:  # in place: the mean below sees the zeros
        row[row < cut * row.max()] = 0
    out = torch.zeros_like(chosen)
    for patch, weights in enumerate(attention):
        out += chosen[:, patch : patch + 1] * weights[None]
    return (out + sum(kept) / len(kept)).unflatten(1, GRID)


def dense_decision(out, refined, size, classes, background, *, threshold, score_threshold, normalise):
    """(labels, largest value) by 10.6, all classes at full size."""
    best = torch.full(size, -1.0, dtype=out.dtype)
    labels = torch.full(size, -1)
    for index, own, shape in zip(classes, out, refined, strict=True):
        score = 0.5 * float(shape.max()) + 0.5 * float(own.max())
        if score <= score_threshold:
            continue
        plane = F.interpolate(shape[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        plane = plane / (plane.max() + 1e-5) * score
        if normalise:
            plane = (plane - plane.min()) / (plane.max() - plane.min())
        labels = torch.where(plane > best, index, labels)
        best = torch.maximum(plane, best)
    if background is not None and threshold > 0:
        labels = torch.where(best < threshold, background, labels)
    elif background is not None:
        labels = torch.where((1 - best) ** 2 >= best, background, labels)
    return labels, best


class ShiftAffinity:
    """Stands for Stable Diffusion: a fixed matrix on a grid of 6x6, and what it was asked."""

    def __init__(self):
        self.matrix = torch.rand(36, 36, generator=torch.Generator().manual_seed(5)) / 18
        self.asked = []
        self.described = {"diffusion": "stub"}

    def refine(self, image, scores, *, threshold=None):
        self.asked.append((image, threshold))
        columns = F.interpolate(scores[None], (6, 6), mode="bilinear", align_corners=False)[0].flatten(1)
        return (columns @ self.matrix.T.to(columns)).unflatten(1, (6, 6))
