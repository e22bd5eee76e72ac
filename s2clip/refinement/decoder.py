"""Prompts to low-resolution masks: SAM's prompt encoder and mask decoder for prompts of several pictures at once.

segment_anything's own forward repeats one picture's embedding for all prompts and makes four masks of which one is
used. Here every prompt picks its embedding, and only the masks that are asked for. Its submodules do the work; those of
SAM 2: `s2clip.refinement.sam2_decoder`.
"""

import logging
from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor

from s2clip.backbones.sam import AnySam
from s2clip.backbones.sam2 import Sam2
from s2clip.refinement.prompts import Prompts
from s2clip.refinement.sam2_decoder import Sam2Networks

logger = logging.getLogger(__name__)

PROMPTS_ON_CPU = 8
MOST_PROMPTS = 256
MAPS_PER_PROMPT = 24
"""Activations of one prompt at their peak, in maps of the embedding's size: the transformer's and the upscaling's."""


def embed_prompts(encoder: PromptEncoder, prompts: Prompts) -> Tensor:
    """Boxes and points → tokens [R,k,C], as `PromptEncoder.forward` without its boolean indexing, which waits for CUDA.

    Without a box the point is followed by the token for "no point".
    """
    sides = encoder.input_image_size
    tokens = []
    if prompts.points is not None:
        place = encoder.pe_layer.forward_with_coords(prompts.points[:, None] + 0.5, sides)
        tokens.append(place + encoder.point_embeddings[1].weight)
        if prompts.boxes is None:
            tokens.append(encoder.not_a_point_embed.weight.expand(len(prompts), 1, -1))
    if prompts.boxes is not None:
        corners = encoder.pe_layer.forward_with_coords(prompts.boxes.view(-1, 2, 2) + 0.5, sides)
        tokens.append(corners + torch.cat([encoder.point_embeddings[2].weight, encoder.point_embeddings[3].weight]))
    return (
        torch.cat(tokens, 1) if tokens else encoder.no_mask_embed.weight.new_empty(len(prompts), 0, encoder.embed_dim)
    )


def embed_masks(encoder: PromptEncoder, masks: Tensor, faithful: bool = False) -> Tensor:
    """Mask prompts [n,m,m] → dense embeddings [n,C,g,g].

    faithful: each as the published code hands it over, a 3-D tensor [1,m,m]: SAM's channel norm then averages over
    image rows (B-23 of the ledger), and the embedding is another one.
    """
    if faithful:
        return torch.stack([encoder.mask_downscaling(mask[None]) for mask in masks])
    return encoder.mask_downscaling(masks[:, None])


ONE_MASK, THREE_MASKS = slice(0, 1), slice(1, 4)
"""Of SAM's mask tokens: the one for prompts that leave no doubt, and those for whole, part and part of a part."""


def decode(sam: AnySam, embeddings: Tensor, prompts: Prompts, *, faithful: bool = False) -> tuple[Tensor, Tensor]:
    """Embeddings [B,C,g,g] of the pictures and R prompts → (mask logits [R,m,m], predicted IoU [R]), fp32.

    One mask a prompt; faithful: see `embed_masks`.
    """
    logits, predicted_iou = decode_masks(sam, embeddings, prompts, ONE_MASK, faithful=faithful)
    return logits[:, 0], predicted_iou[:, 0]


def decode_masks(
    sam: AnySam, embeddings: Tensor, prompts: Prompts, masks: slice, *, faithful: bool = False
) -> tuple[Tensor, Tensor]:
    """As `decode`, for these of SAM's mask tokens: (logits [R,k,m,m], predicted IoU [R,k]).

    In batches of what memory allows, or of `sam.most_prompts` where a memory cap set it; a batch that does not fit
    after all is halved.
    """
    networks = Sam2Networks(sam) if isinstance(sam, Sam2) else SamNetworks(sam, faithful)
    if not len(prompts):
        count, side = masks.stop - masks.start, networks.mask_side
        return embeddings.new_empty(0, count, side, side), embeddings.new_empty(0, count)
    tokens = networks.tokens(prompts)

    def run(part: slice) -> tuple[Tensor, Tensor]:
        hints = None if prompts.masks is None else prompts.masks[prompts.mask_index[part]]
        return networks.decode(embeddings[prompts.image_index[part]], hints, tokens[part], masks)

    most = min(batch_size(embeddings), getattr(sam, "most_prompts", MOST_PROMPTS))
    return _in_batches(len(prompts), most, run)


class SamNetworks:
    """SAM's own. faithful: see `embed_masks`."""

    def __init__(self, sam: Sam, faithful: bool) -> None:
        self.encoder, self.decoder, self.faithful = sam.prompt_encoder, sam.mask_decoder, faithful
        self.mask_side: int = sam.prompt_encoder.mask_input_size[0]

    def tokens(self, prompts: Prompts) -> Tensor:
        """[R,k,C] of points and boxes."""
        return embed_prompts(self.encoder, prompts)

    def decode(self, source: Tensor, hints: Tensor | None, tokens: Tensor, masks: slice) -> tuple[Tensor, Tensor]:
        """source [n,C,g,g], a picture's embedding for each prompt, which is overwritten; hints [n,m,m] or None."""
        if hints is None:
            source += self.encoder.no_mask_embed.weight[:, :, None, None]
        else:
            source += embed_masks(self.encoder, hints, self.faithful)
        return _decode_batch(self.decoder, source, self.encoder.get_dense_pe(), tokens, masks)


def _decode_batch(
    decoder: MaskDecoder, source: Tensor, position: Tensor, prompt_tokens: Tensor, masks: slice
) -> tuple[Tensor, Tensor]:
    prompts, channels, rows, columns = source.shape
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(prompts, -1, -1), prompt_tokens], 1)
    hidden, source = decoder.transformer(source, position.expand(prompts, -1, -1, -1), tokens)
    upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(prompts, channels, rows, columns))
    weights = [
        decoder.output_hypernetworks_mlps[index](hidden[:, 1 + index]) for index in range(masks.start, masks.stop)
    ]
    logits = torch.einsum("rkc,rchw->rkhw", torch.stack(weights, 1), upscaled)
    return logits, decoder.iou_prediction_head(hidden[:, 0])[:, masks]


def batch_size(embeddings: Tensor) -> int:
    """Prompts per decoder call: what half of the free memory holds on CUDA, a fixed number on the CPU.

    Algorithm 4 allows one class for every 3 GB of free memory, up to 32; the activations of a prompt are known better.
    """
    if embeddings.device.type != "cuda":
        return PROMPTS_ON_CPU
    free, _ = torch.cuda.mem_get_info(embeddings.device)
    free += torch.cuda.memory_reserved(embeddings.device) - torch.cuda.memory_allocated(embeddings.device)
    return prompts_within(free, embeddings)


def prompts_within(free: int, embeddings: Tensor) -> int:
    """Prompts whose activations fill half of the free bytes, at least one and at most `MOST_PROMPTS`."""
    each = MAPS_PER_PROMPT * 4 * embeddings[0].numel()
    return max(1, min(MOST_PROMPTS, free // 2 // each))


def _in_batches(count: int, size: int, run: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Columns of `run` over slices of at most `size`, which is halved for good whenever memory runs out."""
    results: list[tuple[Tensor, ...]] = []
    start = 0
    while start < count:
        result = None
        try:
            result = run(slice(start, min(start + size, count)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if result is None:  # outside of the handler, which would keep the failed batch's tensors alive
            size = max(size // 2, 1)
            logger.warning("SAM's decoder: out of memory, going on with %d prompts at a time", size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        results.append(result)
        start += size
    return tuple(torch.cat(column) for column in zip(*results, strict=True))
