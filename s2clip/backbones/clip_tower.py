"""CLIP's vision tower opened up: tokens of every block, q, k, v and the parts of the last block, on any grid.

A wrapper around `open_clip.model.CLIP` that reads its modules and changes none of them, so the same code runs the
released models and the embedded tiny one. Notation: B images, N = rows·columns patches, T = 1+N tokens with the class
token first, D width, L blocks, C embedding size.

    X_0 = LN_pre(embedding + positions)        X_l = X' + FFN(LN2 X'),  X' = X_{l−1} + MHA(LN1 X_{l−1})
    features = LN_post(X_L)·P
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from torch import Tensor, nn

from s2clip.backbones import weights as weight_files
from s2clip.backbones.positions import PosEmbedInterp, check_pos_embed_interp, resample_positions
from s2clip.backbones.precision import check_images, normalise

PROMPTS_PER_BATCH = 256  # 256 prompts of 77 tokens in ViT-L/14's text tower: about 0.5 GB in fp32


class CLIPBackbone(nn.Module):
    """A frozen CLIP whose vision tower can be run block by block on images of any size.

    name: as in `s2clip.backbones.clip.CLIP_NAMES`.  patch_size p, layers L, width D, heads, embed_dim C: ints.
    prefix_tokens: before the patches, the class token alone.
    native_size: side in pixels of the training images.  logit_scale: exp of the learned temperature.
    weights_sha256: of the file that was loaded, "random" for random weights.
    """

    prefix_tokens = 1

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: CLIP,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        name: str,
        pos_embed_interp: PosEmbedInterp = "meta",
        fingerprint: weight_files.Fingerprint | None = None,
    ) -> None:
        super().__init__()
        check_pos_embed_interp(pos_embed_interp)
        self.model = model
        if self._words.attn_mask is None or self._end_rule[0] not in ("argmax", "eos"):
            raise ValueError(f"model: expected a causal text tower that ends in its end token for {name}")
        self.tokenizer = tokenizer
        self.name = name
        self.pos_embed_interp = pos_embed_interp
        self._describe_tower()
        self.logit_scale = float(model.logit_scale.detach().exp())
        mean = getattr(model.visual, "image_mean", None) or OPENAI_DATASET_MEAN
        std = getattr(model.visual, "image_std", None) or OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self._fingerprint = fingerprint or weight_files.Fingerprint(model)
        self.eval().requires_grad_(False)

    def _describe_tower(self) -> None:
        visual = self.model.visual
        self.patch_size: int = visual.patch_size[0]
        self.native_size: int = visual.image_size[0]
        self.native_grid: tuple[int, int] = tuple(visual.grid_size)
        self.blocks: nn.ModuleList = visual.transformer.resblocks
        self.layers = len(self.blocks)
        self.width: int = visual.conv1.out_channels
        self.heads: int = self.blocks[0].attn.num_heads
        self.embed_dim: int = visual.output_dim

    @property
    def _stem(self) -> Tensor:
        """The weight that sees pixels."""
        return self.model.visual.conv1.weight

    @property
    def _words(self) -> nn.Module:
        """What holds the modules of the text tower."""
        return self.model

    @property
    def _end_rule(self) -> tuple[str, int]:
        """How a text's last token is known: "argmax", the largest id, or "eos", this id."""
        return self.model.text_pool_type, self.model.text_eos_id

    @property
    def dtype(self) -> torch.dtype:
        return self._stem.dtype

    @property
    def device(self) -> torch.device:
        return self._stem.device

    @property
    def weights_sha256(self) -> str:
        return self._fingerprint.sha256

    def hidden_states(
        self, images: Tensor, *, pos_embed_interp: PosEmbedInterp | None = None
    ) -> tuple[list[Tensor], tuple[int, int]]:
        """images [B,3,H,W] in [0,1] -> ([X_0, …, X_{L−1}], each [B,1+N,D], class token first), (rows, columns).

        X_{L−1} is the last block's input: methods differ in the last block, so it is left to them.
        H and W must be multiples of the patch size (ValueError). pos_embed_interp: in place of the backbone's own.
        """
        x, grid = self.embed(images, pos_embed_interp=pos_embed_interp)
        return self._run_blocks(x), grid

    def _run_blocks(self, x: Tensor) -> list[Tensor]:
        states = [x]
        for index in range(self.layers - 1):
            states.append(self.block(states[-1], index))
        return states

    def compile_blocks(self, **options: Any) -> None:
        """As `s2clip.backbones.vfm.VisionFeatures.compile_blocks`, for the blocks of `hidden_states`."""
        self._run_blocks = torch.compile(self._run_blocks, **options)

    def embed(
        self, images: Tensor, *, pos_embed_interp: PosEmbedInterp | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """X_0 and the grid, for who runs the blocks himself; as `hidden_states`."""
        self._check_size(images)
        visual = self.model.visual
        patches = visual.conv1(normalise(images, self.mean, self.std).to(self.dtype))
        grid = (patches.shape[2], patches.shape[3])
        table = visual.positional_embedding
        interp = pos_embed_interp or self.pos_embed_interp
        positions = resample_positions(table[1:], self.native_grid, grid, interp)
        patches = patches.flatten(2).transpose(1, 2) + positions  # the table is fp32, and so is the sum
        class_token = (visual.class_embedding + table[0]).to(patches.dtype).expand(len(images), 1, -1)
        return visual.ln_pre(torch.cat([class_token, patches], dim=1).to(self.dtype)), grid

    def _check_size(self, images: Tensor) -> None:
        check_images(images)
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images: expected height and width to be multiples of {self.patch_size} for {self.name}, "
                f"received {height}×{width}"
            )

    def first_norm(self, x: Tensor, index: int = -1) -> Tensor:
        """LN1(x) of block `index`, what its attention reads."""
        return self.blocks[index].ln_1(x)

    def block(self, x: Tensor, index: int) -> Tensor:
        """Block `index` (from 0) as trained: X' = x + MHA(LN1 x); X' + FFN(LN2 X'). x [B,T,D] -> [B,T,D]."""
        query, key, value = self.project_qkv(x, index)
        x = x + self.project_attention(F.scaled_dot_product_attention(query, key, value), index)
        return x + self.feed_forward(x, index)

    def project_qkv(self, x: Tensor, index: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of LN1(x) in block `index`: x [B,T,D] -> three times [B,heads,T,D/heads], not scaled."""
        block = self.blocks[index]
        batch, tokens, _ = x.shape
        qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        return qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def project_value(self, x: Tensor, index: int = -1) -> Tensor:
        """v of `project_qkv` alone, at a third of the cost: x [B,T,D] -> [B,heads,T,D/heads]."""
        block = self.blocks[index]
        rows = slice(2 * self.width, None)
        value = F.linear(block.ln_1(x), block.attn.in_proj_weight[rows], block.attn.in_proj_bias[rows])
        return value.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def project_attention(self, heads_out: Tensor, index: int = -1) -> Tensor:
        """W_o·heads + b_o in block `index`: heads_out [B,heads,T,D/heads] -> [B,T,D], without the residual."""
        block = self.blocks[index]
        batch, _, tokens, _ = heads_out.shape
        joined = heads_out.transpose(1, 2).reshape(batch, tokens, -1).to(self.dtype)
        return block.ls_1(block.attn.out_proj(joined))

    def scaled(self, x: Tensor, index: int = -1) -> Tensor:
        """What block `index` adds of an attention's output: `project_attention` has scaled it already."""
        return x

    def feed_forward(self, x: Tensor, index: int = -1) -> Tensor:
        """FFN(LN2 x) in block `index`: x [B,T,D] -> [B,T,D], without the residual."""
        block = self.blocks[index]
        return block.ls_2(block.mlp(block.ln_2(x)))

    def head(self, x: Tensor) -> Tensor:
        """LN_post(x)·P: x [...,D] -> [...,C], not normalised."""
        visual = self.model.visual
        return visual.ln_post(x.to(self.dtype)) @ visual.proj

    def encode_text(self, texts: list[str]) -> Tensor:
        """Text features, not normalised: n strings -> [n,C]. The tokenizer cuts after 77 tokens.

        A batch is as long as its longest text, not 77 tokens: attention is causal, so nothing after a text's end token,
        whose state is the feature, has a part in it. A template around a word has 6 to 20 tokens.
        """
        if not texts:
            return torch.empty(0, self.embed_dim, dtype=self.dtype, device=self.device)
        return self._encode_tokens(self.tokenizer(texts))

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids [n,T] on the CPU -> [n,C].

        On the CPU texts of one length go together, as there a token that is only padding costs as much as any other.
        """
        lengths = self._ends(tokens)
        order = lengths.argsort(stable=True) if self.device.type == "cpu" else torch.arange(len(tokens))
        features = [self._encode_batch(tokens[rows]) for rows in _batches(order, lengths, self.device.type == "cpu")]
        return torch.cat(features)[order.argsort().to(self.device)]

    def _ends(self, tokens: Tensor) -> Tensor:
        rule, number = self._end_rule
        return tokens.argmax(1) if rule == "argmax" else (tokens == number).int().argmax(1)

    def _encode_batch(self, tokens: Tensor) -> Tensor:
        model, dtype = self._words, self._words.transformer.get_cast_dtype()
        end = self._ends(tokens)
        length = int(end.max()) + 1
        x = model.token_embedding(tokens[:, :length].to(self.device)).to(dtype)
        x = x + model.positional_embedding[:length].to(dtype)
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        rows = torch.arange(len(x), device=self.device)
        return model.ln_final(x[rows, end.to(self.device)]) @ model.text_projection

    def unknown_words(self, texts: list[str]) -> list[str]:
        """Words the tokenizer cannot express, first occurrence first; published codes of pieces know them all."""
        unknown_words = getattr(self.tokenizer, "unknown_words", None)
        return [] if unknown_words is None else list(unknown_words(texts))


def _batches(order: Tensor, lengths: Tensor, by_length: bool) -> Iterator[Tensor]:
    """Rows of texts to encode at once, at most PROMPTS_PER_BATCH; by length, none over a third longer than another."""
    start, ends = 0, lengths[order].tolist()  # numbers: an element of a tensor costs 2 µs, thrice a prompt
    for place in range(1, len(order) + 1):
        whole = place - start == PROMPTS_PER_BATCH or place == len(order)
        if whole or (by_length and ends[place] + 1 > 1.34 * (ends[start] + 1)):
            yield order[start:place]
            start = place
