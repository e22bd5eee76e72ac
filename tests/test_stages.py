"""Stages that any method may take: re-stated densely, and refused where they do not fit."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from dense import DenseBlock, token_states
from small_models import HEADS, LAYERS, PATCH, WIDTH, picture, small_clip, small_vfm

from s2clip import Segmenter
from s2clip.cli import main
from s2clip.decision import propagation, purification
from s2clip.encoding.flow import attention_flow
from s2clip.encoding.rotation import nearest_rotation, rotated_attention
from s2clip.methods import METHODS, Method, get_method
from s2clip.methods.stages import STAGES, KeyRotation, Propagation, Purification, stage_name
from s2clip.pictures.windows import resize

CLASSES = ["sky", "house; hut", "tree", "sea"]
WINDOWS = {"short_side": 40, "crop": 32, "stride": 16}


def unit(rows, seed=0):
    return F.normalize(torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed)) + 0.5, dim=1)


# Key rotation


def dense_turn(matrix, iterations):
    """[d,d] in fp64: the steps of Newton and Schulz on the eigenvalues of MᵀM/‖MᵀM‖ + 1e-6 I."""
    square = matrix.T @ matrix
    norm = square.norm()
    values, vectors = torch.linalg.eigh(square / norm + 1e-6 * torch.eye(len(matrix), dtype=torch.float64))
    root, inverse = values, torch.ones_like(values)
    for _ in range(iterations):
        step = 0.5 * (3 - root * inverse)
        root, inverse = root * step, inverse * step
    return matrix @ (vectors * inverse) @ vectors.T / norm.sqrt()


def dense_rotation(query, key, value, stage, cls_token):
    """One head [N,d] in fp64."""
    weight = query.norm(dim=1)
    if cls_token:
        weight = torch.cat([torch.zeros_like(weight[:1]), weight[1:]])
    weight = (weight / (weight.sum() + 1e-6))[:, None]
    own_query, own_key = query - (weight * query).sum(0), key - (weight * key).sum(0)
    turn = dense_turn(own_key.T @ own_query, stage.iterations)
    scores = query @ (key @ turn).T + stage.share * own_key @ own_key.T
    return torch.softmax(scores / math.sqrt(query.shape[1]), 1) @ value


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("stage", [KeyRotation(), KeyRotation(share=0.5, iterations=12)])
def test_rotated_attention_is_its_formula(cls_token, stage):
    query, key, value = torch.randn(3, 2, 3, 40, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = rotated_attention(query, key, value, stage, cls_token=cls_token)
    for index in range(2):
        for head in range(3):
            own = (part[index, head] for part in (query, key, value))
            expected = dense_rotation(*own, stage, cls_token)
            torch.testing.assert_close(ours[index, head], expected, rtol=1e-9, atol=1e-9)


def test_many_steps_end_at_the_nearest_rotation():
    matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 3 * torch.eye(8)
    left, _, right = torch.linalg.svd(matrix)
    torch.testing.assert_close(nearest_rotation(matrix[None], 60)[0], left @ right, rtol=0, atol=1e-4)


def test_a_method_with_rotated_keys_uses_them_in_its_last_block():
    clip = small_clip()
    method = get_method("clip", short_side=32, crop=32, stride=16, **STAGES["rotation"])
    image = picture(32, 32)
    encoded = Segmenter(clip, method=method).encode(image)
    canvas = resize(image, (32, 32))
    x, block = token_states(clip, canvas)[-1], DenseBlock(clip.blocks[-1])
    heads = zip(*(block.heads(x, part) for part in "qkv"), strict=True)
    mixed = [dense_rotation(*(part.double() for part in own), KeyRotation(), True).float() for own in heads]
    x = x + block.output(mixed)
    x = x + block.ffn(x)
    expected = F.normalize(clip.head(x[1:]), dim=1).T.unflatten(1, (4, 4))
    assert len(mixed) == HEADS
    assert x.shape[1] == WIDTH
    torch.testing.assert_close(encoded.features[0], expected, rtol=1e-4, atol=1e-5)


# Propagation


def dense_system(cosines, grey, text, stage):
    """(A, B) of A F = B over cells in raster order, built edge by edge."""
    words, rows, columns = cosines.shape
    likeness = torch.softmax(text @ text.T / stage.text_temperature, 1) + stage.text_diagonal * torch.eye(words)
    likeness = likeness / (likeness.sum(1, keepdim=True) + 1e-6)
    if not stage.between_words:
        likeness = torch.diag(likeness.diagonal())
    p = torch.softmax(cosines, 0)

    def agree(here, there):
        return float((p[:, here[0], here[1]] @ (likeness @ p[:, there[0], there[1]])).clamp(0, 1))

    cells = [(row, column) for row in range(rows) for column in range(columns)]
    matrix = torch.zeros(len(cells), len(cells), dtype=torch.float64)
    trust = torch.tensor(
        [max(float(p[:, *cell].max()), 0.05) ** 2 * (1 + agree(cell, cell)) for cell in cells], dtype=torch.float64
    )
    for down, right in ((1, 0), (0, 1)):
        edges = [(cell, (cell[0] + down, cell[1] + right)) for cell in cells]
        edges = [edge for edge in edges if edge[1] in set(cells)]
        steps = [abs(float(grey[b] - grey[a])) for a, b in edges]
        mean = sum(steps) / len(steps)
        for (a, b), step in zip(edges, steps, strict=True):
            weight = min(1.0, math.exp(-stage.edge * step / (mean + 1e-6)) * (1 + agree(b, a))) * stage.strength
            i, j = cells.index(a), cells.index(b)
            matrix[i, i] += weight
            matrix[j, j] += weight
            matrix[i, j] -= weight
            matrix[j, i] -= weight
    matrix += torch.diag(trust)
    return matrix, trust[:, None] * cosines.double().flatten(1).T


@pytest.mark.parametrize("between_words", [False, True])
def test_the_propagation_solves_its_equation(between_words):
    generator = torch.Generator().manual_seed(2)
    cosines, grey = torch.rand(4, 5, 7, generator=generator), torch.rand(5, 7, generator=generator)
    stage = Propagation(iterations=200, between_words=between_words, strength=0.7)
    matrix, target = dense_system(cosines, grey, unit(4), stage)
    expected = torch.linalg.solve(matrix, target).T.unflatten(1, (5, 7))
    ours = propagation.solve(cosines, grey, unit(4), stage)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)
    few = propagation.solve(cosines, grey, unit(4), Propagation(iterations=25, between_words=between_words))
    assert (few - cosines).abs().max() > 0.05  # and is not where it began


@pytest.mark.parametrize("size", [(240, 170), (63, 41), (375, 500)])
def test_pooling_is_that_of_the_enlarged_maps(size):
    maps = torch.rand(3, 9, 13, generator=torch.Generator().manual_seed(3))
    sides = [max(1, round(length / 80)) for length in size]
    whole = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)
    expected = F.avg_pool2d(whole, sides)[0]
    torch.testing.assert_close(propagation.pooled(maps, size, 80), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["naclip", "proxyclip", "s2clip", "gem", "corrclip"])
def test_propagation_goes_with_pixels_and_with_splices(name):
    image, ids = picture(48, 61), torch.arange(48 * 61).view(48, 61) // 900
    regions = {"regions": lambda *_: ids} if name == "corrclip" else {}
    geometry = {"short_side": 40} if name == "gem" else WINDOWS
    method = get_method(name, **geometry, **STAGES["pearl"])
    segmenter = Segmenter(small_clip(), vfm=small_vfm(), method=method, **regions).set_classes(CLASSES)
    result = segmenter(image)
    assert result.segmentation.shape == (48, 61)
    plain = segmenter.with_method(name, **geometry)(image)
    assert not torch.equal(result.confidence, plain.confidence)
    assert segmenter.scores(segmenter.encode(image)).whole((48, 61)).shape == (4, 48, 61)


def test_propagation_takes_words_in_groups_under_a_cap():
    method = get_method("naclip", **WINDOWS, **STAGES["pearl"])
    segmenter = Segmenter(small_clip(), method=method).set_classes(CLASSES)
    encoded = segmenter.encode(picture(48, 61))
    whole = segmenter.segment(encoded)
    object.__setattr__(encoded, "words_at_once", 2)
    grouped = segmenter.segment(encoded)
    torch.testing.assert_close(grouped.confidence, whole.confidence, rtol=1e-5, atol=1e-6)


# Purification


def dense_flow(clip, image):
    """T of one window [N,N] in fp64."""
    states, seen = token_states(clip, image), []
    for state, block in zip(states[:-1], clip.blocks, strict=False):
        scores = DenseBlock(block).scores(state, "q", "k")
        seen.append(sum(torch.softmax(one.double(), 1) for one in scores)[1:, 1:] / HEADS)
    flow = sum(seen) / (LAYERS - 1)
    for _ in range(3):
        flow = flow / flow.sum(0)
        flow = flow / flow.sum(1, keepdim=True)
    flow = (flow + flow.T) / 2
    return flow @ flow


def test_the_flow_is_clips_attention_balanced():
    clip, image = small_clip(), torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(4))
    states, _ = clip.hidden_states(image)
    expected = dense_flow(clip, image[0])
    torch.testing.assert_close(attention_flow(clip, states)[0].double(), expected, rtol=1e-5, atol=1e-6)


def fill_boxes(plane, threshold):
    """Boxes of the 8-connected pieces of one map, by a flood fill, last row and column left out at the border."""
    values = [[int(value * 255) for value in row] for row in plane.tolist()]
    bound = int(threshold * max(map(max, values)))
    height, width = plane.shape
    left = {(y, x) for y in range(height) for x in range(width) if values[y][x] > bound}
    inside = torch.zeros(height, width)
    while left:
        todo, piece = [left.pop()], []
        while todo:
            y, x = todo.pop()
            piece.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        ys, xs = zip(*piece, strict=True)
        inside[min(ys) : min(max(ys) + 1, height - 1), min(xs) : min(max(xs) + 1, width - 1)] = 1
    return inside


def test_redundant_words_lose_their_maps_as_restated():
    generator = torch.Generator().manual_seed(5)
    cosines = F.interpolate(torch.rand(1, 5, 3, 4, generator=generator), (8, 10), mode="bilinear")[0] * 0.1
    flow = torch.rand(80, 80, generator=generator).softmax(1)
    p = torch.softmax(cosines.double() * 50, 0)
    relative = (p - p.min()) / (p.max() - p.min())
    maps, shares = [], []
    for word in range(5):
        masked = (relative[word] * fill_boxes(relative[word], 0.4)).flatten()
        refined = flow.double() @ masked
        refined = ((refined - refined.min()) / (refined.max() - refined.min() + 1e-8)).view(8, 10)
        maps.append(refined)
        shares.append(float((p[word] * refined).sum() / (p[word].sum() + refined.sum() + 1e-8)))
    bound = sum(sorted(shares[:4])[1:3]) / 2  # two of the four that are judged stay
    judged = torch.tensor([True, True, True, True, False])
    ours = purification.purify(cosines, flow, Purification(redundancy=bound), 50.0, judged)
    assert ours.kept == [word for word in range(4) if shares[word] > bound]
    assert len(ours.kept) == 2
    for word in range(5):
        expected = maps[word] if word in ours.kept else torch.zeros_like(maps[word])
        torch.testing.assert_close(ours.refined[word].double(), expected, rtol=1e-4, atol=1e-5)


def test_words_that_claim_the_same_place_hang_together():
    maps = torch.zeros(5, 4, 4)
    maps[0, :2], maps[1, :2], maps[2, 2:], maps[4, 2:] = 1, 0.9, 1, 0.95
    maps[3, :, 0] = 1
    assert purification.groups_alike(maps, 0.8) == [[0, 1], [2, 4], [3]]
    assert purification.groups_alike(maps, 0.2) == [[0, 1, 2, 3, 4]]


def test_of_ambiguous_words_the_one_that_the_crop_shows_stays():
    clip, generator = small_clip(), torch.Generator().manual_seed(6)
    canvas = torch.rand(3, 32, 40, generator=generator)
    place = torch.zeros(4, 5)
    place[1:3, 1:4] = 1
    maps = torch.stack([place, place * 0.95, torch.rand(4, 5, generator=generator) * 0.1])
    one = purification.Purified(maps.clone(), maps.clone(), [0, 1, 2])
    box = purification.Box(0, 0, 32, 40)
    windows = purification._Windows([box], (32, 40), box, (4, 5))
    crop = F.interpolate(canvas[None, :, PATCH : 3 * PATCH, PATCH : 4 * PATCH], (16, 16), mode="bilinear")
    vector = purification.picture_vectors(clip, crop)[0]
    text = F.normalize(torch.stack([vector + 0.9 * unit(1)[0], vector, -vector]), dim=1)
    purification._settle([one], windows, text, clip, canvas, Purification(ambiguity=0.8))
    assert one.refined[0].abs().max() == 0
    assert torch.equal(one.refined[1:], maps[1:])


@pytest.mark.parametrize("name", ["clip", "naclip", "proxyclip", "s2clip"])
@pytest.mark.parametrize("background", [None, "sky"])
def test_purification_goes_with_the_shared_path(name, background):
    image = picture(48, 61)
    method = get_method(name, **WINDOWS, purification=Purification(redundancy=0.01, ambiguity=0.6))
    segmenter = Segmenter(small_clip(), vfm=small_vfm(), method=method).set_classes(CLASSES, background=background)
    encoded = segmenter.encode(image)
    result = segmenter.segment(encoded)
    assert result.segmentation.shape == (48, 61)
    assert 0 <= result.segmentation.min() <= result.segmentation.max() < 4
    planes = segmenter.scores(encoded).whole((48, 61))
    assert torch.equal(planes.argmax(0), result.segmentation)
    if background:
        low = segmenter.scores(encoded).planes([0], (40, 51))  # about the canvas
        assert 0 <= low.min() <= low.max() <= 1
    segmenter.set_classes("one", background=None)
    assert (segmenter(image).segmentation == 0).all()


# Names and refusals


def test_stages_by_name():
    assert stage_name(METHODS["s2clip"]) == "none"
    assert stage_name(get_method("naclip", **STAGES["pearl"], **STAGES["freecp"])) == "pearl+freecp"
    with pytest.raises(ValueError, match=r"Method.key_rotation: expected None for maskclip, which has no attention"):
        get_method("maskclip", **STAGES["rotation"])
    with pytest.raises(ValueError, match=r"Method.purification: expected None for gem, whose windows are its own"):
        get_method("gem", **STAGES["freecp"])
    with pytest.raises(ValueError, match=r"Method.propagation: expected None for radseg"):
        get_method("radseg", **STAGES["pearl"])
    with pytest.raises(ValueError, match=r"Method.propagation: expected None or a Propagation, received 80"):
        Method(name="mine", source="notes", propagation=80)
    with pytest.raises(ValueError, match=r"max_memory: expected None with purification"):
        Segmenter(small_clip(), method=get_method("clip", **STAGES["freecp"]), max_memory="8GB")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(KeyRotation, "share", -1), (KeyRotation, "iterations", 0), (Propagation, "grid", 0), (Propagation, "edge", "5"),
     (Propagation, "between_words", 1), (Propagation, "text_temperature", 0), (Purification, "redundancy", 2)],
)  # fmt: skip
def test_settings_of_stages_are_checked(kind, field, value):
    with pytest.raises(ValueError, match=f"{kind.__name__}.{field}: expected"):
        kind(**{field: value})


def test_methods_and_stages_stand_side_by_side():
    arguments = [
        "evaluate",
        "scenes",
        "--method",
        "maskclip",
        "naclip",
        "--stage",
        "none",
        "pearl",
        "--limit",
        "1",
        "-q",
    ]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 0, answer.output
    heads = answer.output.splitlines()[2].split()
    assert heads == ["maskclip", "maskclip+pearl", "naclip", "naclip+pearl"]
    assert answer.output.splitlines()[-1].startswith("ms per image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--method", "gem", "--stage", "freecp"], "Method.purification: expected None for gem"),
     (["--stage", "freecip"], "stage: expected one of none, pearl, rotation, freecp, floss, received 'freecip'")],
)  # fmt: skip
def test_a_stage_that_does_not_fit_is_a_usage_error(arguments, message):
    answer = CliRunner().invoke(main, ["evaluate", "scenes", "--limit", "1", *arguments])
    assert answer.exit_code == 2
    assert message in answer.output
    assert len(answer.output.strip().splitlines()) == 1


def test_the_stage_that_the_docs_add_votes():
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    written = page.split("## A stage")[1].split("```python\n")[1].split("\n\nvoting =")[0]
    names = {}
    exec("from dataclasses import dataclass\nfrom s2clip.published.extension import Extension\n" + written, names)
    image = picture(48, 61)
    method = get_method("naclip", **WINDOWS, extension=names["Vote"](side=3))
    segmenter = Segmenter(small_clip(), method=method).set_classes(CLASSES)
    plain = segmenter.with_method("naclip", **WINDOWS)(image).segmentation
    voted = segmenter(image).segmentation
    assert not torch.equal(voted, plain)
    for y in range(1, 47, 5):
        for x in range(1, 60, 7):
            counts = plain[y - 1 : y + 2, x - 1 : x + 2].flatten().bincount(minlength=4)
            assert counts[voted[y, x]] == counts.max()
