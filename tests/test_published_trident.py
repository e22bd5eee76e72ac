"""Trident against a dense re-statement: one window, one head, one pair of cells at a time, on no square picture."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from dense import DenseBlock, as_columns, cosine_matrix, mean_shift, token_states
from small_models import picture, small_clip, small_sam, small_vfm

from s2clip import scenes
from s2clip.backbones.sam import encode_images, freeze_sam, input_size
from s2clip.backbones.sam_attention import LastAttention, encode_with_attention
from s2clip.encoding.encoder import Encoder
from s2clip.encoding.hooks import Models, Windows
from s2clip.pictures.windows import window_boxes
from s2clip.published.catalogue import METHODS, get_method
from s2clip.published.sam_correlation import correlate, thresholds
from s2clip.published.trident import aligned_size, valid_grid
from s2clip.refinement.refiner import Refiner
from s2clip.refinement.settings import Refinement
from s2clip.segmenter import Segmenter
from s2clip.stopwatch import Stopwatch

SMALL = {"short_side": 44, "long_side": None, "crop": 32, "stride": 16}
SETTINGS = {
    "as VOC21": {},
    "as VOC20": {"extension.cosine_factor": 0.0},
    "as Cityscapes": {
        "extension.cosine_factor": 3.0,
        "extension.neg_threshold_floor": 0.6,
        "extension.halves": True,
    },
}


@pytest.fixture(scope="module")
def models():
    return Models(small_clip(), small_vfm(), small_sam())


def bilinear(maps, size):
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


# The picture in patches


def test_the_second_resampling_of_the_papers_example():
    """448x597 → 464x608, 2x3 windows of 336 at stride 224, all at multiples of the patch."""
    assert aligned_size(448, 597, 16, 336) == (464, 608)
    boxes = window_boxes(464, 608, 336, 224)
    assert [(box.top, box.left) for box in boxes] == [(t, l) for t in (0, 128) for l in (0, 224, 272)]  # noqa: E741


@pytest.mark.parametrize(
    ("size", "patch", "crop", "expected"),
    [
        ((448, 592), 16, 336, (448, 592)),
        ((336, 500), 16, 336, (352, 512)),  # 336·512/500 = 344.06
        ((500, 336), 16, 336, (512, 352)),
        ((336, 500), 14, 336, (350, 504)),  # 338.7: up, though 336 is a multiple of 14
        ((100, 700), 16, 336, (336, 704)),  # a window high, whatever that does to the ratio
        ((320, 2048), 16, 336, (320, 2048)),  # multiples stay, less than a window high
        ((1, 1), 16, 0, (16, 16)),
    ],
)
def test_aligned_size(size, patch, crop, expected):
    assert aligned_size(*size, patch, crop) == expected


def test_valid_grid_of_the_papers_example():
    """640x480, upright or not: 1024x768 in SAM's frame, 64x48 cells of 16."""
    assert valid_grid(input_size((480, 640), 1024), 16) == (48, 64)
    assert valid_grid(input_size((640, 480), 1024), 16) == (64, 48)
    assert valid_grid((1023, 15), 16) == (63, 1)


# SAM's last block


def test_one_pass_gives_sams_embedding_and_its_last_attention(models):
    """P v through the block's projection is what the block's own attention gives; the embedding is `encode_images`'."""
    image = picture(40, 56) / 255
    seen = []
    last = models.sam.image_encoder.blocks[-1].attn
    hook = last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        expected, expected_size = encode_images(models.sam, image[None])
        hook.remove()
        embedding, attention, size = encode_with_attention(models.sam, image)
        cells = math.prod(attention.grid)
        probability = attention.probability(torch.arange(cells), torch.float32).flatten(2)
        mixed = (probability @ attention.value).transpose(0, 1).flatten(1)
        torch.testing.assert_close(last.proj(mixed), seen[0].flatten(0, 2), rtol=1e-5, atol=1e-5)
    assert size == expected_size
    assert torch.equal(embedding, expected)
    assert (probability.amax(2) > 4 / cells).all()  # far from uniform: the positions matter


def test_an_encoder_that_ends_in_windows_is_refused():
    sam = small_sam()
    sam.image_encoder.blocks[-1].window_size = 4
    with pytest.raises(ValueError, match="global attention in the last block, received windows of 4"):
        encode_with_attention(sam, picture(40, 56) / 255)


def dense_attention(sam, image):
    """P [H][N][N] and v [H][N] of the last block of a SAM that has one block, pair by pair of the frame's cells."""
    encoder = sam.image_encoder
    frame, patch = encoder.img_size, encoder.patch_embed.proj.kernel_size[0]
    size = input_size(tuple(image.shape[1:]), frame)
    resized = F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)
    normalised = (resized * 255 - sam.pixel_mean) / sam.pixel_std
    padded = torch.zeros(1, 3, frame, frame, dtype=image.dtype)
    padded[..., : size[0], : size[1]] = normalised
    tokens = F.conv2d(padded, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=patch)
    tokens = (tokens.permute(0, 2, 3, 1) + encoder.pos_embed)[0].flatten(0, 1)
    block = encoder.blocks[0]
    y = F.layer_norm(tokens, tokens.shape[1:], block.norm1.weight, block.norm1.bias, 1e-6)
    query, key, value = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, 1)
    heads, grid = block.attn.num_heads, frame // patch
    width = query.shape[1] // heads
    probabilities, values = [], []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        q, k = query[:, own], key[:, own]
        scores = q @ k.T / math.sqrt(width)
        for i in range(grid * grid):
            for j in range(grid * grid):
                down, right = i // grid - j // grid, i % grid - j % grid
                scores[i, j] += q[i] @ block.attn.rel_pos_h[down + grid - 1]
                scores[i, j] += q[i] @ block.attn.rel_pos_w[right + grid - 1]
        probabilities.append(torch.softmax(scores, 1))
        values.append(value[:, own])
    return probabilities, values, size, grid, patch


def dense_correlation(sam, image, features, factor, floor):
    """G [D,h,w] of features [D,r,c] of the same picture."""
    probabilities, values, size, grid, patch = dense_attention(sam, image)
    rows, columns = size[0] // patch, size[1] // patch
    valid = [row * grid + column for row in range(rows) for column in range(columns)]
    cosines = [cosine_matrix(value[valid]) for value in values]
    total = torch.zeros(len(valid), len(valid), dtype=image.dtype)
    for i in range(len(valid)):
        tau = factor * sum(float(cosine[i].mean()) for cosine in cosines) / len(cosines)
        if floor is not None and tau < 0:
            tau = floor
        tau = min(tau, 0.9)
        for probability, cosine in zip(probabilities, cosines, strict=True):
            total[i] += probability[valid][i, valid] * (cosine[i] > tau) / len(cosines)
    weights = total / total.sum(1, keepdim=True)
    resized = bilinear(features, (rows, columns)).flatten(1)
    return (weights @ resized.T).T.unflatten(1, (rows, columns))


def dense_trident(clip, vfm, sam, pixels, *, factor=1.2, floor=None, halves=False):
    """z̄ [C,h,w] of a picture uint8 [3,H,W] with the sizes in SMALL, by sections 11.1 and 11.2 in words."""
    patch = clip.patch_size
    image = pixels.double() / 255
    short = SMALL["short_side"] / min(image.shape[1:])
    first = [math.floor(side * short + 0.5) for side in image.shape[1:]]
    long = max(first)
    grown = [side * (math.ceil(long / patch) * patch) / long for side in first]
    canvas = tuple(max(math.ceil(round(side / patch, 9)) * patch, SMALL["crop"]) for side in grown)
    canvas_image = bilinear(bilinear(image, first), canvas)

    crop, stride = SMALL["crop"], SMALL["stride"]
    starts = [
        [min(index * stride, side - crop) for index in range(max(math.ceil((side - crop) / stride), 0) + 1)]
        for side in canvas
    ]
    windows = [(top, left) for top in starts[0] for left in starts[1]]
    cuts = [canvas_image[:, top : top + crop, left : left + crop] for top, left in windows]
    proxies = [vfm.features(cut[None])[0] for cut in cuts]
    ratio = round(proxies[0].shape[0] / (crop // patch))
    mean = sum(float(cosine_matrix(proxy.flatten(0, 1)).mean()) for proxy in proxies) / len(proxies)
    block = DenseBlock(clip.blocks[-1])
    total = torch.zeros(clip.width, *(side // patch * ratio for side in canvas), dtype=torch.float64)
    hits = torch.zeros(total.shape[1:], dtype=torch.float64)
    for (top, left), cut, proxy in zip(windows, cuts, proxies, strict=True):
        attention = mean_shift(cosine_matrix(proxy.flatten(0, 1)), mean=mean)
        x = token_states(clip, cut)[-1][1:]
        grid, size = (crop // patch, crop // patch), tuple(proxy.shape[:2])
        out = block.output([attention @ as_columns(value, grid, size) for value in block.heads(x, "v")])
        out = out.T.unflatten(1, size)
        y, x = top // patch * ratio, left // patch * ratio
        total[:, y : y + size[0], x : x + size[1]] += out
        hits[y : y + size[0], x : x + size[1]] += 1
    spliced = total / hits

    parts = 2 if halves else 1
    aligned = (math.ceil(image.shape[1] / patch) * patch, math.ceil(image.shape[2] / patch / parts) * patch * parts)
    seen = bilinear(image, aligned)
    assert spliced.shape[2] % parts == 0
    mixed = torch.cat(
        [
            dense_correlation(sam, part, own, factor, floor)
            for part, own in zip(seen.chunk(parts, 2), spliced.chunk(parts, 2), strict=True)
        ],
        2,
    )
    joint = clip.head(mixed.flatten(1).T)
    return (joint / joint.norm(dim=1, keepdim=True)).T.unflatten(1, mixed.shape[1:])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("size", "vfm_patch"), [((50, 75), 4), ((71, 41), 8)])
def test_agrees_with_the_dense_restatement(name, size, vfm_patch):
    """On a grid of DINO twice as fine as CLIP's, and on an equal one; windows of a picture overlap."""
    method = get_method("trident", **SMALL, **SETTINGS[name])
    pixels, settings = picture(*size), method.extension
    models = Models(small_clip().double(), small_vfm(patch=vfm_patch).double(), small_sam().double())
    encoded = Encoder(models, method, max_batch=4)([pixels])[0]
    with torch.inference_mode():
        expected = dense_trident(
            small_clip().double(),
            small_vfm(patch=vfm_patch).double(),
            small_sam().double(),
            pixels,
            factor=settings.cosine_factor,
            floor=settings.neg_threshold_floor,
            halves=settings.halves,
        )
    torch.testing.assert_close(encoded.features[0].double(), expected, rtol=0, atol=1e-5)


# The correlation


def random_attention(heads=2, grid=(4, 5), width=6, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    query, key, value = torch.randn(3, heads, cells, width, generator=generator)
    rows, columns = (torch.randn(heads, cells, side, generator=generator) for side in grid)
    return LastAttention(query, key, value + shift, rows, columns, width**-0.5)


def test_thresholds_are_the_mean_cosines_of_a_cell():
    value = F.normalize(random_attention(heads=3).value, dim=2)
    cosines = value @ value.mT
    torch.testing.assert_close(thresholds(value, 1.5, None), (1.5 * cosines.mean((0, 2))).clamp(max=0.9))
    floored = thresholds(value, 1.5, 0.6)
    below = thresholds(value, 1.5, None) < 0
    assert below.any()
    assert (floored[below] == 0.6).all()
    assert torch.equal(floored[~below], thresholds(value, 1.5, None)[~below])


def test_a_cell_alike_to_none_keeps_itself():
    """Above 0.9 of the mean cosine nothing is cut; far above, only the cell itself is left."""
    attention, features = random_attention(shift=20.0), torch.randn(3, 4, 5)
    alike = correlate(attention, (4, 5), features, cosine_factor=1.2)
    assert alike.isfinite().all()
    apart = random_attention(width=6)
    apart = apart._replace(value=torch.eye(20).expand(2, -1, -1))
    torch.testing.assert_close(correlate(apart, (4, 5), features, cosine_factor=1000.0), features)


def test_values_of_zeros_give_the_cell_itself():
    attention, features = random_attention(), torch.randn(3, 4, 5)
    mixed = correlate(attention._replace(value=torch.zeros_like(attention.value)), (4, 5), features)
    torch.testing.assert_close(mixed, features)


@pytest.mark.parametrize("tile", [1, 90, 1 << 23])
def test_tiles_do_not_change_the_result(tile):
    attention, features = random_attention(), torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = correlate(attention, (3, 4), features)
    torch.testing.assert_close(correlate(attention, (3, 4), features, tile=tile), whole, rtol=1e-6, atol=1e-6)


def test_no_tensor_is_larger_than_a_tile():
    """heads·Ns·Ns is never held: 2·400·400 = 320,000 numbers, 16,000 at most at once."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            output = function(*arguments, **(keywords or {}))
            if isinstance(output, torch.Tensor):
                self.numbers = max(self.numbers, output.numel())
            return output

    attention = random_attention(grid=(20, 20))
    with Largest() as largest:
        correlate(attention, (20, 20), torch.randn(3, 10, 10), tile=16_000)
    assert 0 < largest.numbers <= 2 * 400 * 20


# In the pipeline


def test_a_picture_does_not_depend_on_its_company(models):
    """The mean of DINO's affinity is that of one picture's windows, though they are many and pictures come together."""
    encoder = Encoder(models, get_method("trident", **SMALL), mix_pictures=True, max_batch=3)
    pictures = [picture(50, 75, 1), picture(50, 75, 2), picture(71, 41, 3)]
    for pixels, together in zip(pictures, encoder(pictures), strict=True):
        assert torch.equal(encoder([pixels])[0].features, together.features)


def test_low_precision_follows_full_precision(models):
    """bf16 backbones (fp16's CPU stand-in): the correlation itself is fp32 either way."""
    low = Models(
        small_clip().to(torch.bfloat16),
        small_vfm().to(torch.bfloat16),
        freeze_sam(small_sam(), torch.device("cpu"), torch.bfloat16),
    )
    method, pixels = get_method("trident", **SMALL), picture(50, 75)
    full, rounded = (Encoder(one, method)([pixels])[0].features for one in (models, low))
    assert rounded.dtype == torch.float32
    assert F.cosine_similarity(full, rounded, dim=1).mean() > 0.98


def test_windows_share_the_mean_of_their_picture():
    """A window's features change with the other windows of its picture, however they are cut into batches."""
    method, watch = get_method("trident", **SMALL), Stopwatch()
    models = Models(small_clip().double(), small_vfm().double(), small_sam().double())
    first, second, third = (picture(32, 32, seed).double() / 255 for seed in (1, 2, 3))
    third = third * 0.02 + 0.5  # flat: its tokens are alike

    def features(*images, max_batch=8):
        with torch.inference_mode():
            batch = Windows(torch.stack(images), max_batch=max_batch)
            return method.extension.window_features(batch, models, method, watch).maps

    beside_second, beside_third = features(first, second)[0], features(first, third)[0]
    assert (beside_second - beside_third).abs().max() > 1e-3 * beside_second.abs().max()
    torch.testing.assert_close(features(first, second, max_batch=1)[0], beside_second, rtol=1e-5, atol=1e-6)


def test_every_setting_matters(models):
    """The parity above would be hollow if SAM's thresholds cut nothing, or everything."""
    pixels = picture(50, 75)
    units = {
        str(fields): Encoder(models, get_method("trident", **SMALL, **fields))([pixels])[0].features
        for fields in (
            {},
            {"extension.cosine_factor": 0.0},
            {"extension.cosine_factor": 3.0},
            {"extension.neg_threshold_floor": 0.6},
            {"beta": 0.5},
            {"gamma": 9.0},
        )
    }
    names = list(units)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert (units[name] - units[other]).abs().max() > 1e-3, (name, other)
    halves = Encoder(models, get_method("trident", **SMALL, **{"extension.halves": True}))([pixels])[0].features
    assert units["{}"].shape[2:] == (5, 8)  # 56x80 of 50x75 in SAM's frame of 64: 45x64
    assert halves.shape[2:] == (8, 10)  # twice 56x40: 64x46


def test_the_refinement_gets_the_embedding_of_the_same_pass(models):
    passes = []
    hook = models.sam.image_encoder.neck.register_forward_hook(lambda *_: passes.append(1))
    refiner = Refiner(models.sam, Refinement(minimal_area=4, sam_iou_threshold=-10.0), name="small")
    method = get_method("trident", **SMALL)
    segmenter = Segmenter(models.clip, vfm=models.vfm, refiner=refiner, method=method)
    segmenter.set_classes(["sky", "tree", "house"])
    try:
        result = segmenter(picture(50, 75))
    finally:
        hook.remove()
    assert len(passes) == 1
    assert len(result.refined.accepted) > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cosine_factor", -1.0),
        ("cosine_factor", math.nan),
        ("cosine_factor", "1.2"),
        ("neg_threshold_floor", 1.5),
        ("neg_threshold_floor", True),
        ("halves", 1),
    ],
)
def test_wrong_settings_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"Trident\.{field}: expected .*, received ") as caught:
        get_method("trident", **{f"extension.{field}": value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("merge", "pixel"), ("vfm_weight", None), ("levels", (2, 3))])
def test_fields_that_its_hooks_rely_on_cannot_be_changed(field, value):
    with pytest.raises(ValueError, match=rf"Method\.{field}: expected .* for trident, received "):
        dataclasses.replace(METHODS["trident"], **{field: value})


def test_models_that_are_missing_are_named(models):
    with pytest.raises(ValueError, match="sam: expected a SAM for method trident"):
        Segmenter(models.clip, vfm=models.vfm, method="trident")
    with pytest.raises(ValueError, match="vfm: expected a vision foundation model for method trident"):
        Segmenter(models.clip, sam=models.sam, method="trident")


def test_run_json_names_the_extension_and_sam(models):
    segmenter = Segmenter(models.clip, vfm=models.vfm, sam=models.sam, method=get_method("trident", **SMALL))
    settings = json.loads(json.dumps(segmenter.settings))
    extension = {"kind": "trident", "cosine_factor": 1.2, "neg_threshold_floor": None, "halves": False}
    assert settings["method"]["extension"] == extension
    assert set(settings["weights_sha256"]) == {"clip", "vfm", "sam"}


def test_on_scenes():
    """The embedded models, with the thresholds of Cityscapes: the small SAM's values are alike far and wide."""
    sharp = {"extension.cosine_factor": 3.0, "extension.neg_threshold_floor": 0.6}
    segmenter = Segmenter.from_pretrained("tiny", method="trident", **sharp).set_classes(scenes.CLASSES)
    right = total = 0
    for seed in range(4):
        pixels, labels = scenes.generate(seed)
        right += int((segmenter(pixels).segmentation.numpy() == labels).sum())
        total += labels.size
    assert right > 0.5 * total
