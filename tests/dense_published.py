"""CLIPSurgery, GEM and SC-CLIP restated in plain torch: one picture, head and token at a time.

Position tables are resized by the code that each paper publishes, in fp32, for the pictures' grid.
"""

import math

import torch
import torch.nn.functional as F
from dense import DenseBlock, cosine_matrix
from small_models import HEADS, PATCH, WIDTH

GRID = (6, 10)


def trained_states(clip, image, positions):
    """X_0..X_L of one picture, [1+N,D] each, with the position table [h·w,D] for its grid."""
    visual = clip.model.visual
    pixels = (image - clip.mean[:, None, None]) / clip.std[:, None, None]
    patches = F.conv2d(pixels[None], visual.conv1.weight, stride=PATCH)[0].flatten(1).T
    table = visual.positional_embedding
    tokens = torch.cat([(visual.class_embedding + table[0])[None], patches + positions])
    states = [F.layer_norm(tokens, (WIDTH,), visual.ln_pre.weight, visual.ln_pre.bias, 1e-5)]
    for block in clip.blocks:
        states.append(DenseBlock(block).standard(states[-1]))
    return states


def resized_positions(clip, **how):
    """The table of the training grid at the pictures' grid, fp32 as the published codes."""
    side = clip.native_grid[0]
    table = clip.model.visual.positional_embedding[1:].float().T.reshape(1, WIDTH, side, side)
    return F.interpolate(table, align_corners=False, **how)[0].flatten(1).T.double()


def bilinear_positions(clip):
    return resized_positions(clip, size=GRID, mode="bilinear")


def gem_positions(clip):
    return resized_positions(clip, size=GRID, mode="bicubic", antialias=True)


def meta_positions(clip):
    side = clip.native_grid[0]
    return resized_positions(clip, scale_factor=[(n + 0.1) / side for n in GRID], mode="bicubic")


def dense_surgery(clip, image):
    """S_L and X_L, both with CLS."""
    states = trained_states(clip, image, bilinear_positions(clip))
    modified = min(6, clip.layers)
    path = states[clip.layers - modified]
    for index in range(clip.layers - modified, clip.layers):
        block = DenseBlock(clip.blocks[index])
        mixed = []
        for value in block.heads(states[index], "v"):
            rows = [torch.softmax(value @ own / math.sqrt(WIDTH / HEADS), 0) for own in value]
            mixed.append(torch.stack([row @ value for row in rows]))
        path = path + block.output(mixed)
    return path, states[-1]


def dense_clipsurgery(clip, image):
    return dense_surgery(clip, image)[0][1:]


def dense_gem(clip, image, iterations=1):
    states = trained_states(clip, image, gem_positions(clip))
    modified = min(6, clip.layers)
    path = states[clip.layers - modified]
    for index in range(clip.layers - modified, clip.layers):
        block, tokens = DenseBlock(clip.blocks[index]), states[index]
        tau = sum(float(token.norm()) for token in block.normed(tokens)) / len(tokens) / math.sqrt(WIDTH / HEADS)
        values, mixed = block.heads(tokens, "v"), []
        for head in range(HEADS):
            total = 0
            for part in "qkv":
                vectors = block.heads(tokens, part)[head]
                for _ in range(iterations):
                    unit = vectors / vectors.norm(dim=1, keepdim=True)
                    vectors = torch.softmax(tau * unit @ unit.T, 1) @ unit
                unit = vectors / vectors.norm(dim=1, keepdim=True)
                total = total + torch.softmax(tau * unit @ unit.T, 1) @ values[head]
            mixed.append(total / 3)
        path = path + block.output(mixed)
    return path[1:]


def dense_anomalies(patches, neighbors=30, quantile=0.95):
    """Indices of the patches above the quantile of their neighbourhood score."""
    count = len(patches)
    neighbors = min(neighbors, count - 1)
    squares = [[float(((a - b) ** 2).sum()) for b in patches] for a in patches]
    near = [sorted((squares[i][j], j) for j in range(count) if j != i)[:neighbors] for i in range(count)]
    reach = [pairs[-1][0] for pairs in near]
    scores = [reach[i] * sum(1 / reach[j] for _, j in near[i]) / neighbors for i in range(count)]
    ordered, place = sorted(scores), quantile * (count - 1)
    low = math.floor(place)
    bound = ordered[low] + (place - low) * (ordered[min(low + 1, count - 1)] - ordered[low])
    return {i for i, score in enumerate(scores) if score > bound}


def dense_repair(patches, strange, grid=GRID):
    rows, columns = grid
    repaired = patches.clone()
    for index in strange:
        row, column = divmod(index, columns)
        around = [
            patches[other_row * columns + other]
            for other_row in range(max(row - 1, 0), min(row + 2, rows))
            for other in range(max(column - 1, 0), min(column + 2, columns))
            if other_row * columns + other not in strange
        ]
        if around:
            repaired[index] = sum(around) / len(around)
    return repaired


def dense_aggregation(similarity, patches, threshold=0.4):
    weights = torch.where(similarity >= threshold, similarity, 0.0)
    return torch.stack([row @ patches / (row.sum() + 1e-6) for row in weights])


def dense_scclip(clip, image, pre=None, post=None, multi=None, rho=0.3):
    """In the published order, `outputs[i]` as the published code counts: X_{i+1} of blocks 1..L-1."""
    defaults = {2: (0, 0, (0,)), 6: (3, 1, (1, 2, 3, 4)), 12: (8, 3, range(3, 10))}[clip.layers]
    pre, post, multi = pre or defaults[0], post or defaults[1], multi or defaults[2]
    outputs = trained_states(clip, image, meta_positions(clip))[1:-1]
    last = outputs[-1]
    strange = dense_anomalies(last[1:])
    u, v = dense_repair(last[1:], strange), dense_repair(outputs[pre][1:], strange)
    similarity = cosine_matrix(v)
    u = dense_aggregation(similarity, u)
    block = DenseBlock(clip.blocks[-1])

    def special(tokens):
        shifted = 3 * (similarity - similarity.mean())
        shared = torch.softmax(shifted.masked_fill(shifted < 0, -math.inf), 1)
        attention = [(shared + torch.softmax(scores, 1)) / 2 for scores in block.scores(tokens, "k", "k")]
        return block.mix(tokens, attention)

    late = cosine_matrix(outputs[post][1:])
    x = dense_aggregation(late, special(u) + rho * last[0])
    summed = sum(outputs[index] for index in multi)
    return x + dense_aggregation(late, special(summed[1:]) + rho * summed[0])
