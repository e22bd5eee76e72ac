"""The passes that the tiny SAM is trained through give what segment_anything's modules give."""

import sys
from pathlib import Path

import torch

from s2clip.backbones.tiny_sam import load_sam_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import sam_forward

CLOSE = {"rtol": 0, "atol": 2e-4}  # logits are up to 15


@torch.no_grad()
def test_the_forward_passes_of_training_are_those_of_the_modules():
    sam = load_sam_model()
    generator = torch.Generator().manual_seed(3)
    side, grid = sam.image_encoder.img_size, sam.prompt_encoder.image_embedding_size[0]
    features, values = sam_forward.encode(sam, images := torch.randn(2, 3, side, side, generator=generator))
    expected = sam.image_encoder(images)
    torch.testing.assert_close(features, expected.flatten(2).mT, **CLOSE)
    assert values.shape[2] == grid**2
    masks = 0.005 * torch.rand(3, 1, 4 * grid, 4 * grid, generator=generator)
    dense = sam.prompt_encoder.mask_downscaling(masks)
    cells = sam_forward.embed_masks(sam.prompt_encoder, masks[:, 0])
    torch.testing.assert_close(cells, dense.flatten(2).mT, **CLOSE)

    boxes = torch.tensor([[10.0, 20, 60, 70], [0, 0, 100, 90], [30, 5, 50, 40]])
    sparse, _ = sam.prompt_encoder(None, boxes, masks)
    position = sam.prompt_encoder.get_dense_pe()
    decoder = sam.mask_decoder
    logits, iou = decoder.predict_masks(expected[:1], position, sparse, dense)
    rows, columns = grid - 6, grid - 1
    actual = sam_forward.decode(sam, features[:1] + cells, position[0].flatten(1).mT, sparse, (rows, columns), 4)
    expected = torch.stack([sam_forward.to_cells(one[:, : 4 * rows, : 4 * columns]) for one in logits.unbind(1)], 1)
    torch.testing.assert_close(actual[0], expected, **CLOSE)
    torch.testing.assert_close(actual[1], iou, **CLOSE)
