"""The embedded DINO and SAM: the real classes, built from their files, of use for what the method needs of them."""

from __future__ import annotations

import json
import math
from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from segment_anything.modeling import Sam
from timm.models.vision_transformer import VisionTransformer

from s2clip.backbones.sam import input_size
from s2clip.backbones.tiny_dino import build_dino, load_dino_model
from s2clip.backbones.tiny_file import load_model, read_header, write_model
from s2clip.backbones.tiny_sam import load_sam_model
from s2clip.scenes import CLASSES, FIRST_TRAINING_SEED, generate

FOLDER = files("s2clip.data") / "tiny"


@pytest.fixture(scope="module")
def dino() -> VisionTransformer:
    return load_dino_model()


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam_model()


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image [3,96,128] in 0..255 and labels [96,128] of a scene that was never trained on."""
    assert seed < FIRST_TRAINING_SEED
    image, labels = generate(seed)
    return torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(labels)


def dino_tokens(model: VisionTransformer, image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return model.forward_features(((image / 255 - mean) / std)[None])[0, 1:]


def predict(model: Sam, image: torch.Tensor, **prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks bool [R,h,w] and predicted IoU [R] of segment_anything's own forward; boxes and points in the picture."""
    size = tuple(image.shape[-2:])
    frame = model.image_encoder.img_size
    for name in ("boxes", "point_coords"):
        if name in prompts:
            prompts[name] = prompts[name] * (frame / max(size))
    inner = input_size(size, frame)
    image = F.interpolate(image[None], inner, mode="bilinear", antialias=True)[0]
    record = {"image": image, "original_size": size, **prompts}
    out = model([record], multimask_output=False)[0]
    return out["masks"][:, 0], out["iou_predictions"][:, 0]


@pytest.mark.parametrize(("name", "limit"), [("dino", 2.5), ("sam", 3.5)])
def test_file_is_small_half_precision_and_tells_how_it_was_made(name: str, limit: float) -> None:
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < limit * 2**20
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118 (not a mapping)
        training = json.loads(file.metadata()["training"])
    assert {"seed", "steps_done", "scenes_seen", "quality"} <= set(training)


@pytest.mark.parametrize("load", [load_dino_model, load_sam_model])
def test_model_is_frozen_fp32_and_repeatable(load) -> None:
    model, again, random = load(), load(), load(random=True)
    assert not model.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same)
    differ = [not torch.equal(a, b) for a, b in zip(model.parameters(), random.parameters(), strict=True)]
    assert sum(differ) > len(differ) // 2
    for a, b in zip(random.parameters(), load(random=True).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("load", [load_dino_model, load_sam_model])
def test_loading_leaves_the_global_random_state_alone(load) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    load()
    load(random=True)
    assert torch.equal(torch.rand(4), expected)


def test_written_model_comes_back(tmp_path) -> None:
    config = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    path = tmp_path / "folder" / "other.safetensors"
    model = build_dino(config).eval()
    write_model(path, model, config, {"seed": 3})
    assert read_header(path) == {"config": config, "training": {"seed": 3}}
    assert [file.name for file in path.parent.iterdir()] == ["other.safetensors"]
    loaded = load_model(path, "dino", build_dino, random=False)
    x = torch.rand(2, 3, 16, 24)
    assert torch.allclose(loaded(x), model(x), atol=2e-3)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (100, 48), (4, 4)])
def test_dino_takes_any_multiple_of_its_patch(dino: VisionTransformer, size: tuple[int, int]) -> None:
    patch = dino.patch_embed.patch_size[0]
    tokens = dino.forward_features(torch.randn(2, 3, *size))
    assert tokens.shape == (2, 1 + (size[0] // patch) * (size[1] // patch), dino.embed_dim)
    assert tokens.isfinite().all()


def pair_precision(features: torch.Tensor, classes: torch.Tensor) -> float:
    """Average precision of "two patches are of one class" by the cosine of their features [T,D]."""
    unit = F.normalize(features, dim=-1)
    upper = torch.ones(len(unit), len(unit), dtype=torch.bool).triu(1)
    order = (unit @ unit.T)[upper].argsort(descending=True, stable=True)
    hits = (classes[:, None] == classes)[upper][order].float()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return ((precision * hits).sum() / hits.sum()).item()


def test_dino_knows_patches_of_one_class_better_than_their_colours_do(dino: VisionTransformer) -> None:
    by_dino, by_colour = [], []
    for seed in range(500_000, 500_016):
        image, labels = scene(seed)
        image, labels = image[:, 16:80, 32:96], labels[16:80, 32:96]
        share = F.avg_pool2d(F.one_hot(labels, len(CLASSES)).permute(2, 0, 1).float(), 4)
        classes = share.argmax(0).flatten()
        colour = F.avg_pool2d(image, 4).flatten(1).T
        by_dino.append(pair_precision(dino_tokens(dino, image), classes))
        by_colour.append(pair_precision(colour - colour.mean(0), classes))
    assert np.mean(by_dino) > np.mean(by_colour) + 0.02, (np.mean(by_dino), np.mean(by_colour))


def largest_parts(labels: torch.Tensor) -> list[torch.Tensor]:
    """Bool masks of the classes that form one compact region: they fill at least 40 % of their box."""
    masks = []
    for index in labels.unique():
        mask = labels == index
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        if mask.sum() >= 60 and mask.sum() > 0.4 * box:
            masks.append(mask)
    return masks


def box_of(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]).float()


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a & b).sum() / (a | b).sum()).item()


def test_sam_finds_what_a_box_holds_and_knows_how_well(sam: Sam) -> None:
    found, filled, errors = [], [], []
    for seed in range(600_000, 600_012):
        image, labels = scene(seed)
        parts = largest_parts(labels)
        boxes = torch.stack([box_of(mask) for mask in parts])
        masks, predicted = predict(sam, image, boxes=boxes)
        for mask, truth, box, iou in zip(masks, parts, boxes.int().tolist(), predicted, strict=True):
            full = torch.zeros_like(truth)
            full[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
            found.append(overlap(mask, truth))
            filled.append(overlap(full, truth))
            errors.append(abs(iou.item() - found[-1]))
    assert np.mean(found) > np.mean(filled) + 0.05, (np.mean(found), np.mean(filled))  # 0.72 and 0.62 of 1
    assert np.mean(errors) < 0.15


def test_sam_follows_the_mask_prompt_at_its_small_scale(sam: Sam) -> None:
    """0.005·P moves the result: a prompt on one class or on another gives different masks from the same point."""
    image, labels = scene(600_003)
    size = sam.prompt_encoder.mask_input_size[0]
    moved = 0
    classes = [index for index in labels.unique() if (labels == index).sum() > 200][:2]
    point = torch.tensor([[[64.0, 48.0]]])
    logits = []
    for index in classes:
        p = F.interpolate((labels == index)[None, None].float(), (size * 96 // 128, size), mode="area")
        prompt = F.pad(0.005 * p, (0, 0, 0, size - p.shape[-2]))
        masks, _ = predict(sam, image, point_coords=point, point_labels=torch.ones(1, 1), mask_inputs=prompt)
        logits.append(masks[0])
    moved = (logits[0] ^ logits[1]).float().mean().item()
    assert moved > 0.02


def test_sam_low_resolution_masks_are_four_times_the_embedding(sam: Sam) -> None:
    encoder = sam.image_encoder
    grid = encoder.img_size // encoder.patch_embed.proj.stride[0]
    embedding = encoder(torch.zeros(1, 3, encoder.img_size, encoder.img_size))
    sparse, dense = sam.prompt_encoder(None, torch.tensor([[0.0, 0.0, 9.0, 9.0]]), None)
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    assert logits.shape == (1, 3, 4 * grid, 4 * grid)
    assert iou.shape == (1, 3)
    assert math.prod(sam.prompt_encoder.mask_input_size) == (4 * grid) ** 2
