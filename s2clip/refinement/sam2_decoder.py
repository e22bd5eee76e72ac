"""SAM 2.1's prompt encoder and mask decoder for prompts of several pictures at once, as `decoder` asks SAM's.

transformers' submodules do the work. They take prompts as [pictures, prompts of each, ...]; here every prompt brings
its picture's embedding, so that there are R pictures of one prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s2clip.backbones.sam2 import Sam2
from s2clip.refinement.prompts import Prompts

ONE = slice(0, 1)


class Sam2Networks:
    """What answers prompts."""

    def __init__(self, sam: Sam2) -> None:
        self.sam, self.encoder, self.decoder = sam, sam.model.prompt_encoder, sam.model.mask_decoder
        self.mask_side = sam.mask_side
        self.places = sam.model.get_image_wide_positional_embeddings()

    def tokens(self, prompts: Prompts) -> Tensor:
        """[R,k,C] of points and boxes; where there are none, of one point that is none, as transformers does."""
        points, boxes = prompts.points, prompts.boxes
        labels = None
        if points is None and boxes is None:
            points = torch.zeros(len(prompts), 2, device=self.sam.device)
            labels = torch.full((len(prompts), 1, 1), -1, device=self.sam.device)
        elif points is not None:
            labels = torch.ones(len(prompts), 1, 1, dtype=torch.int64, device=points.device)
        sparse, _ = self.encoder(
            input_points=None if points is None else points[:, None, None],
            input_labels=labels,
            input_boxes=None if boxes is None else boxes[:, None].clone(),  # transformers 4.57 writes into it
            input_masks=None,
        )
        return sparse[:, 0]

    def decode(self, source: Tensor, hints: Tensor | None, tokens: Tensor, masks: slice) -> tuple[Tensor, Tensor]:
        """source [n,4C,g,g] of `Sam2.encode`; hints [n,m,m] or None → (logits [n,k,m,m], predicted IoU [n,k]).

        One mask: the first token's, or where moving its threshold by 0.05 changes it by over 2 %, the surest of the
        three others, as SAM 2 answers clicks.
        """
        coarse, middle, fine = self.sam.unfold(source)
        if hints is None:
            dense = self.encoder.no_mask_embed.weight[:, :, None, None]
        else:
            dense = self.encoder.mask_embed(hints[:, None])
        logits, predicted_iou, _, _ = self.decoder(
            image_embeddings=coarse,
            image_positional_embeddings=self.places.expand(len(coarse), -1, -1, -1),
            sparse_prompt_embeddings=tokens[:, None],
            dense_prompt_embeddings=dense,
            multimask_output=masks != ONE,
            high_resolution_features=[fine, middle],
        )
        return logits[:, 0], predicted_iou[:, 0]
