"""Restatements in plain torch that the methods are held to: no ops, one picture and one head at a time."""

import math

import torch
import torch.nn.functional as F
from small_models import HEADS, WIDTH


class DenseBlock:
    """One residual attention block of CLIP on [T,D], written out from its weights."""

    def __init__(self, block):
        self.block = block
        self.in_weight, self.in_bias = block.attn.in_proj_weight, block.attn.in_proj_bias

    def normed(self, x):
        return F.layer_norm(x, (WIDTH,), self.block.ln_1.weight, self.block.ln_1.bias, 1e-5)

    def heads(self, x, part):
        index = "qkv".index(part)
        rows = slice(index * WIDTH, (index + 1) * WIDTH)
        full = self.normed(x) @ self.in_weight[rows].T + self.in_bias[rows]
        return [full[:, head * WIDTH // HEADS : (head + 1) * WIDTH // HEADS] for head in range(HEADS)]

    def scores(self, x, left, right):
        size = math.sqrt(WIDTH // HEADS)
        return [a @ b.T / size for a, b in zip(self.heads(x, left), self.heads(x, right), strict=True)]

    def output(self, per_head):
        joined = torch.cat(per_head, 1)
        return joined @ self.block.attn.out_proj.weight.T + self.block.attn.out_proj.bias

    def mix(self, x, attention):
        return self.output([a @ v for a, v in zip(attention, self.heads(x, "v"), strict=True)])

    def ffn(self, x):
        y = F.layer_norm(x, (WIDTH,), self.block.ln_2.weight, self.block.ln_2.bias, 1e-5)
        hidden = F.gelu(y @ self.block.mlp.c_fc.weight.T + self.block.mlp.c_fc.bias)
        return hidden @ self.block.mlp.c_proj.weight.T + self.block.mlp.c_proj.bias

    def standard(self, x):
        x = x + self.mix(x, [torch.softmax(s, -1) for s in self.scores(x, "q", "k")])
        return x + self.ffn(x)


def token_states(clip, image):
    """X_0..X_{L-1} of one picture, [1+N,D] each."""
    states = [clip.hidden_states(image[None])[0][0][0]]
    for block in clip.blocks[:-1]:
        states.append(DenseBlock(block).standard(states[-1]))
    return states


def softmaxed(block, x, term):
    return [torch.softmax(scores, -1) for scores in block.scores(x, *term)]


def as_columns(tokens, grid, size):
    """[N,D] on a grid → [M,D] on another, bilinear."""
    folded = tokens.T.reshape(1, -1, *grid)
    return F.interpolate(folded, size, mode="bilinear", align_corners=False)[0].flatten(1).T


def cosine_matrix(tokens):
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    return unit @ unit.T


def mean_shift(similarity, beta=1.2, gamma=3.0, mean=None):
    shifted = gamma * (similarity - beta * (similarity.mean() if mean is None else mean))
    cut = (shifted < 0) & ~torch.eye(len(shifted), dtype=torch.bool)
    return torch.softmax(shifted.masked_fill(cut, -math.inf), -1)
