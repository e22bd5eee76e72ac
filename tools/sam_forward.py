"""The forward passes of a Sam over tokens in rows, for training the tiny one on a CPU (train_sam.py).

segment_anything's modules give the weights and the formulas; tests/test_sam_forward.py holds both to the same numbers.
What is other: every map is [rows, tokens, channels], so that a strided convolution is a product and a channel norm a
layer norm; the projections of positions, the same for all prompts, are made once; a model in bf16 is run as it is,
without autocast's casts. On one core with AMX: 5.2 instead of 8 ms for a prompt of 576 tokens, forward and backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def _block_attention(attention: nn.Module, x: Tensor) -> Tensor:
    """Windows [n,r,c,D] of the encoder's attention with relative positions."""
    windows, rows, columns, width = x.shape
    heads, count = attention.num_heads, rows * columns
    qkv = attention.qkv(x).view(windows, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = (one.flatten(0, 1) for one in qkv)
    apart = [torch.arange(side)[:, None] - torch.arange(side) + side - 1 for side in (rows, columns)]
    down, across = attention.rel_pos_h[apart[0]], attention.rel_pos_w[apart[1]]
    grid = query.unflatten(1, (rows, columns))
    down = torch.matmul(grid, down.mT)
    across = torch.matmul(grid.transpose(1, 2), across.mT).transpose(1, 2)
    bias = (down[..., :, None] + across[..., None, :]).reshape(-1, count, count)
    scores = torch.baddbmm(bias, query * attention.scale, key.mT)
    mixed = torch.bmm(scores.softmax(-1), value).unflatten(0, (windows, heads))
    return attention.proj(mixed.transpose(1, 2).reshape(windows, rows, columns, width))


def encode(sam: Sam, images: Tensor) -> tuple[Tensor, Tensor]:
    """[B,3,S,S] → embeddings [B,g²,C] and the values of the last attention [B,heads,g²,d]; g a multiple of windows."""
    encoder, side = sam.image_encoder, images.shape[-1]
    kernel = encoder.patch_embed.proj
    patch = kernel.kernel_size[0]
    grid = side // patch
    cells = images.view(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5).flatten(3)
    x = F.linear(cells, kernel.weight.flatten(1), kernel.bias) + encoder.pos_embed
    for block in encoder.blocks:
        normed, window = block.norm1(x), block.window_size or grid
        if block is encoder.blocks[-1]:
            rows = slice(2 * x.shape[-1], None)
            value = F.linear(normed, block.attn.qkv.weight[rows], block.attn.qkv.bias[rows]).flatten(1, 2)
        count = grid // window
        windows = normed.unflatten(2, (count, window)).unflatten(1, (count, window)).transpose(2, 3)
        mixed = _block_attention(block.attn, windows.flatten(0, 2)).unflatten(0, (-1, count, count))
        x = x + mixed.transpose(2, 3).flatten(1, 2).flatten(2, 3)
        x = x + block.mlp(block.norm2(x))
    narrow, first, mix, second = encoder.neck
    x = _norm(F.linear(x, narrow.weight.flatten(1)), first)
    x = F.conv2d(x.permute(0, 3, 1, 2), mix.weight, padding=1).permute(0, 2, 3, 1)
    heads = encoder.blocks[-1].attn.num_heads
    return _norm(x, second).flatten(1, 2), value.unflatten(-1, (heads, -1)).transpose(1, 2)


def embed_masks(encoder: PromptEncoder, masks: Tensor) -> Tensor:
    """Mask prompts [R,4g,4g] → [R,g²,C]."""
    first, norm, _, second, second_norm, _, last = encoder.mask_downscaling
    x = F.gelu(_norm(F.linear(to_cells(masks).unflatten(2, (4, 4)), first.weight.flatten(1), first.bias), norm))
    x = F.linear(x.flatten(2), second.weight.permute(0, 2, 3, 1).flatten(1), second.bias)
    return F.linear(F.gelu(_norm(x, second_norm)), last.weight.flatten(1), last.bias)


def to_cells(maps: Tensor) -> Tensor:
    """[R,4r,4c] → [R,r·c,16]: the 16 cells of a token in the order of two convolutions of stride 2 (outer, inner)."""
    split = maps.unflatten(2, (-1, 2, 2)).unflatten(1, (-1, 2, 2))
    return split.permute(0, 1, 4, 2, 5, 3, 6).flatten(3).flatten(1, 2)


def _heads(x: Tensor, attention: nn.Module) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def _attend(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of projections [R,n,E]: what the attention adds, [R,n,C]."""
    query, key, value = (_heads(one, attention) for one in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    return attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def transform(transformer: nn.Module, keys: Tensor, position: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The two-way transformer: keys [R,n,C], position [n,C], tokens [R,t,C] → tokens, keys."""
    queries = tokens
    for index, layer in enumerate(transformer.layers):
        own = layer.self_attn
        placed = queries if index == 0 else queries + tokens
        added = _attend(own, own.q_proj(placed), own.k_proj(placed), own.v_proj(queries))
        queries = layer.norm1(added if index == 0 else queries + added)
        there, back = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        weight = torch.cat([there.k_proj.weight, back.q_proj.weight, there.v_proj.weight])
        bias = torch.cat([there.k_proj.bias, back.q_proj.bias, there.v_proj.bias])
        inner = there.internal_dim
        projected = F.linear(keys, weight, bias)
        placed_keys = projected[..., : 2 * inner] + F.linear(position, weight[: 2 * inner])
        value = projected[..., 2 * inner :]
        added = _attend(there, there.q_proj(queries + tokens), placed_keys[..., :inner], value)
        queries = layer.norm2(queries + added)
        queries = layer.norm3(queries + layer.mlp(queries))
        added = _attend(back, placed_keys[..., inner:], back.k_proj(queries + tokens), back.v_proj(queries))
        keys = layer.norm4(keys + added)
    last = transformer.final_attn_token_to_image
    key = last.k_proj(keys) + F.linear(position, last.k_proj.weight)
    added = _attend(last, last.q_proj(queries + tokens), key, last.v_proj(keys))
    return transformer.norm_final_attn(queries + added), keys


def upscale(upscaling: nn.Module, x: Tensor) -> Tensor:
    """[R,n,C] → [R,n,16,C/8], the cells as in `to_cells`."""
    first, norm, _, second, _ = upscaling
    for layer in (first, second):
        channels = layer.weight.shape[1]
        weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
        x = F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (4, channels))
        x = F.gelu(_norm(x, norm) if layer is first else x)
    return x.flatten(2, 3)


def decode(
    sam: Sam, source: Tensor, position: Tensor, tokens: Tensor, size: tuple[int, int], masks: int
) -> tuple[Tensor, Tensor]:
    """Source [R,g²,C] (embedding and mask prompt), position [g²,C], prompts' tokens [R,t,C] → logits [R,masks,r·c,16]
    of the first `size` = (r, c) tokens of the frame, in the order of `to_cells`, and predicted IoU [R,4]."""
    decoder, (rows, columns) = sam.mask_decoder, size
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(tokens), -1, -1), tokens], 1)
    hidden, keys = transform(decoder.transformer, source, position, tokens)
    grid = int(keys.shape[1] ** 0.5)
    seen = keys.unflatten(1, (grid, grid))[:, :rows, :columns].flatten(1, 2)
    cells = upscale(decoder.output_upscaling, seen).flatten(1, 2)
    networks = list(decoder.output_hypernetworks_mlps)[:masks]
    weights = torch.stack([network(hidden[:, 1 + index]) for index, network in enumerate(networks)], -1)
    return torch.matmul(cells, weights).mT.unflatten(-1, (-1, 16)), decoder.iou_prediction_head(hidden[:, 0])
