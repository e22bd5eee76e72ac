"""How much memory the stage needs beside SAM's image encoder, counted beforehand."""

from s2clip.decision.scores import CHUNK
from s2clip.refinement.decoder import MAPS_PER_PROMPT

PIXEL_BYTES = 25
"""Of the merging at full size: labels and score so far, labels and score of a group of classes, their names, a flag."""
PLANES = 3 * CHUNK
"""Elements of class scores at a time: a group of twice CHUNK, or a chunk and what it is made of."""


def stage_bytes(
    size: tuple[int, int],
    regions: int,
    classes: int,
    prompts: int,
    *,
    mask_side: int = 256,
    embedding: int = 256 * 64 * 64,
) -> int:
    """Upper bound of the bytes that one picture's refinement holds at a time, coarse map and scores not counted.

    size: (H,W) of the picture; regions: R that become prompts, of that many classes; prompts: in a decoder call, see
    `decoder.batch_size`; mask_side: m of SAM's low-resolution masks; embedding: elements of SAM's embedding.

        R·m²·4·3 + max(25·H·W + 3·CHUNK·4, n·m²·4·2 + prompts·24·embedding·4)

    Mask logits as they come, together, and with the failed ones blanked; then either the maps or the decoder. Measured
    on the CPU, where the allocator's live bytes can be watched; on CUDA these are the same tensors, not measured.
    """
    maps = PIXEL_BYTES * size[0] * size[1] + 4 * PLANES
    decoder = 4 * (2 * classes * mask_side**2 + prompts * MAPS_PER_PROMPT * embedding)
    return 4 * 3 * regions * mask_side**2 + max(maps, decoder)
