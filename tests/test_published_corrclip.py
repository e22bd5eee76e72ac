"""CorrCLIP against a restatement in plain torch: one window, pair and token at a time; regions that are odd."""

import math

import pytest
import torch
import torch.nn.functional as F
from dense import DenseBlock, as_columns, cosine_matrix
from small_models import PATCH, WIDTH, picture, small_clip, small_vfm

from s2clip import Segmenter
from s2clip.decision import pixels as decision
from s2clip.decision.decided import Decision
from s2clip.encoding.hooks import Models, Windows
from s2clip.published.catalogue import METHODS, get_method
from s2clip.published.corrclip import CorrClip, WindowRegions, majority_labels, merged_regions, window_regions
from s2clip.stopwatch import Stopwatch

SIZE, GRID, VFM_PATCH = (48, 80), (6, 10), 4
FINE = (SIZE[0] // VFM_PATCH, SIZE[1] // VFM_PATCH)
WORDS = ["red", "green", "blue"]


def patches_of(ids, grid):
    """The id of each cell's first pixel, row by row."""
    rows, columns = ids.shape[0] // grid[0], ids.shape[1] // grid[1]
    return [int(ids[y * rows, x * columns]) for y in range(grid[0]) for x in range(grid[1])]


def query_plus_key(vfm, image):
    """g [M,C], from what the last block's projection puts out on the way."""
    seen = []
    hook = vfm.model.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    vfm.features(image[None])
    hook.remove()
    query, key, _ = seen[0][0, 1:].chunk(3, 1)
    return query + key


def alike(vectors, distance):
    """Components of {max − cos <= distance} by spreading from each vector."""
    cosine = cosine_matrix(torch.stack(vectors))
    left, groups = set(range(len(vectors))), []
    while left:
        group, frontier = set(), {left.pop()}
        while frontier:
            group |= frontier
            frontier = {b for a in frontier for b in left if cosine.max() - cosine[a, b] <= distance}
            left -= frontier
        groups.append(sorted(group))
    return groups


def dense_corrclip(
    clip, vfm, image, ids, *, bare=0, distance=0.2, sharpness=4.0, depth=2, weights=(1.0, 0.5), around=False
):
    """z [M,C], not normalised; bare: the id that is no region; around: a cell has the token of the CLIP patch around
    it."""
    g = query_plus_key(vfm, image)
    similarity = cosine_matrix(g)
    own = patches_of(ids, FINE)
    names = sorted(set(own))
    merged = {name: name for name in names}
    if len(names) > 2:
        segmented = [name for name in names if name != bare]
        unit = g / g.norm(dim=1, keepdim=True)
        means = [torch.stack([unit[i] for i in range(len(own)) if own[i] == name]).mean(0) for name in segmented]
        for group in alike(means, distance):
            for member in group:
                merged[segmented[member]] = segmented[group[0]]
    own = [merged[name] for name in own]

    allowed = torch.zeros(len(own), len(own), dtype=torch.bool)
    for i in range(len(own)):
        for j in range(len(own)):
            if bare in (own[i], own[j]):
                allowed[i, j] = similarity[i, j] > similarity.mean()
            else:
                allowed[i, j] = own[i] == own[j]
    attention = torch.softmax((sharpness * similarity).masked_fill(~allowed, -math.inf), 1)

    tokens = sorted(set(own))
    coarse = [merged[name] for name in patches_of(ids, GRID)]
    start = clip.hidden_states(image[None])[0][0][0]
    x = torch.cat([start[:1].expand(len(tokens), -1), start])
    count = len(tokens)
    mask = torch.zeros(len(x), len(x), dtype=torch.bool)
    mask[count:, count:] = True
    for row, name in enumerate(tokens):
        mask[row, count:] = torch.tensor([True] + [patch == name for patch in coarse])
    states = []
    for block in (DenseBlock(block) for block in clip.blocks):
        states.append(x[count:])
        scores = [score.masked_fill(~mask, -math.inf) for score in block.scores(x, "q", "k")]
        x = x + block.mix(x, [torch.softmax(score, 1) for score in scores])
        x = x + block.ffn(x)
    if around:
        down, right = FINE[0] // GRID[0], FINE[1] // GRID[1]
        own = [coarse[y // down * GRID[1] + z // right] for y in range(FINE[0]) for z in range(FINE[1])]
    semantic = torch.stack([x[tokens.index(name)] for name in own])

    layers = len(clip.blocks)
    chosen = range(layers - 1 - depth, layers - 1)
    last, total = DenseBlock(clip.blocks[-1]), 0
    for weight, state in ((1.0, states[-1]), (weights[0], sum(states[level] for level in chosen) / depth)):
        value = as_columns(torch.cat(last.heads(state, "v"), 1)[1:], GRID, FINE)
        total = total + weight * head(clip, last.output([attention @ value]))
    return total + weights[1] * head(clip, semantic)


def head(clip, tokens):
    visual = clip.model.visual
    return F.layer_norm(tokens, (WIDTH,), visual.ln_post.weight, visual.ln_post.bias, 1e-5) @ visual.proj


def blocks_of_ids(seed, count=6, size=SIZE, cells=(5, 7)):
    """[H,W] ids 0..count−1 in oblongs that fit no grid."""
    ids = torch.randint(0, count, (1, 1, *cells), generator=torch.Generator().manual_seed(seed)).float()
    return F.interpolate(ids, size, mode="nearest")[0, 0].long()


def maps_of(extension, images, ids, clip=None, vfm=None):
    models = Models(clip or small_clip().double(), vfm or small_vfm(patch=VFM_PATCH).double())
    batch = Windows(images, ids)
    method = get_method("corrclip", extension=extension)
    with torch.inference_mode():
        result = extension.window_features(batch, models, method, Stopwatch())
    assert result.joint
    return result.maps


IDS = {
    "regions and gaps": blocks_of_ids(0),
    "no gap": blocks_of_ids(1) + 3,
    "one region": torch.full(SIZE, 7),
    "gaps alone": torch.zeros(SIZE, dtype=torch.int64),
    "two ids": blocks_of_ids(2, count=2),
    "many": blocks_of_ids(3, count=40, cells=(11, 13)),
}


@pytest.mark.parametrize("distance", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_is_the_restatement(ids, distance):
    image = picture(*SIZE).double() / 255
    clip, vfm = small_clip().double(), small_vfm(patch=VFM_PATCH).double()
    extension = CorrClip(merge_distance=distance, spatial_weight=0.8, semantic_weight=0.6)
    actual = maps_of(extension, image[None], ids[None], clip, vfm)[0]
    with torch.inference_mode():
        expected = dense_corrclip(clip, vfm, image, ids, distance=distance, weights=(0.8, 0.6))
    torch.testing.assert_close(actual.flatten(1).T, expected, rtol=0, atol=1e-5)


def test_faithful_takes_the_smallest_id_for_no_region_and_tokens_from_clips_grid():
    """B-28: of ids 3.. the smallest is a region, and published as none."""
    image, ids = picture(*SIZE).double() / 255, IDS["no gap"]
    clip, vfm = small_clip().double(), small_vfm(patch=VFM_PATCH).double()
    actual = maps_of(CorrClip(faithful=True), image[None], ids[None], clip, vfm)[0]
    with torch.inference_mode():
        expected = dense_corrclip(clip, vfm, image, ids, bare=3, around=True)
        own_patch = dense_corrclip(clip, vfm, image, ids, bare=3)
    torch.testing.assert_close(actual.flatten(1).T, expected, rtol=0, atol=1e-5)
    assert (expected - own_patch).abs().max() > 1e-3
    assert (actual - maps_of(CorrClip(), image[None], ids[None], clip, vfm)[0]).abs().max() > 1e-3


def test_windows_are_each_alone():
    """Different numbers of regions side by side, and a padded window."""
    images = torch.stack([picture(*SIZE, seed=seed).double() / 255 for seed in range(4)])
    ids = torch.stack([IDS["regions and gaps"], IDS["one region"], IDS["many"], IDS["gaps alone"]])
    ids[1, :, :9] = -1
    together = maps_of(CorrClip(), images, ids)
    alone = torch.cat([maps_of(CorrClip(), images[row, None], ids[row, None]) for row in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_numbers_are_consecutive_and_padding_is_a_region_of_its_own():
    ids = torch.tensor([[[5, 0, -1], [5, 9, 9]], [[2, 2, 2], [2, 2, 2]]])
    regions = window_regions(ids, faithful=False)
    assert regions.ids.tolist() == [[1, 0, 3, 1, 2, 2], [0] * 6]
    assert regions.exists.tolist() == [[True] * 4, [True, False, False, False]]
    assert regions.unsegmented.tolist() == [[True, False, False, False], [False] * 4]
    assert window_regions(ids, faithful=True).unsegmented.tolist() == [[True, False, False, False]] * 2


def test_chains_of_alike_regions_are_one():
    """Unit vectors 0, 20, 40, 60 and 150 degrees: neighbours are within 0.1 of a cosine of 1, 0 and 60 are not."""
    angles = torch.tensor([0.0, 20, 40, 60, 150]).deg2rad()
    unit = torch.stack([angles.cos(), angles.sin()], 1)[None]
    exists = torch.ones(1, 5, dtype=torch.bool)
    regions = WindowRegions(torch.arange(5)[None], torch.zeros_like(exists), exists)
    assert merged_regions(regions, unit, 0.1).ids.tolist() == [[0, 0, 0, 0, 4]]
    bare = torch.tensor([[False, True, False, False, False]])  # 20 degrees is in no region: the chain is broken
    assert merged_regions(regions._replace(unsegmented=bare), unit, 0.1).ids.tolist() == [[0, 1, 2, 2, 4]]
    two = WindowRegions(torch.tensor([[0, 1]]), exists[:, :2] & False, exists[:, :2])
    assert merged_regions(two, unit[:, :2], 0.1).ids.tolist() == [[0, 1]]


class TestMajority:
    labels = torch.tensor([[3, 3, 1, 1], [3, 2, 1, 2], [0, 2, 2, -1]])
    ids = torch.tensor([[8, 8, 8, 0], [8, 5, 5, 0], [8, 5, 5, 5]])

    def test_each_region_takes_its_most_frequent_label(self):
        actual = majority_labels(self.labels, self.ids, self.ids > 0)
        assert actual.tolist() == [[3, 3, 3, 1], [3, 2, 2, 2], [3, 2, 2, -1]]

    def test_smallest_of_equals(self):
        labels, ids = torch.tensor([[2, 1, 1, 2]]), torch.ones(1, 4, dtype=torch.int64)
        assert majority_labels(labels, ids, ids > 0).tolist() == [[1, 1, 1, 1]]

    def test_nothing_computed_stays(self):
        labels = torch.full((2, 2), -1)
        assert torch.equal(majority_labels(labels, torch.ones_like(labels), labels < 0), labels)


def segmenter(ids, **fields):
    geometry = {"short_side": 40, "crop": 32, "stride": 16, "templates": "plain"}
    method = get_method("corrclip", **geometry, **fields)
    made = Segmenter(small_clip(), vfm=small_vfm(), method=method, regions=lambda pixels, source: ids, max_batch=3)
    return made.set_classes(WORDS)


class TestPictures:
    image, ids = picture(40, 60), blocks_of_ids(5, size=(40, 60))

    @pytest.fixture
    def plain(self, monkeypatch):
        """Labels that the shared decision is made to give."""
        labels = torch.randint(0, 3, (40, 60), generator=torch.Generator().manual_seed(0))
        given = Decision(labels, torch.ones(40, 60), None)
        monkeypatch.setattr(decision, "decide_picture", lambda *_, **__: given)
        return labels

    def test_every_region_has_one_label(self, plain):
        corrected = segmenter(self.ids)(self.image).segmentation
        assert torch.equal(segmenter(self.ids, **{"extension.correct_map": False})(self.image).segmentation, plain)
        for index in range(1, 6):
            assert corrected[self.ids == index].unique().tolist() == [int(plain[self.ids == index].mode().values)]
        assert torch.equal(corrected[self.ids == 0], plain[self.ids == 0])

    @pytest.mark.usefixtures("plain")
    def test_faithful_corrects_all_but_the_smallest_id(self):
        ids = self.ids + 1
        corrected = segmenter(ids, **{"extension.faithful": True})(self.image).segmentation
        assert len(corrected[ids == 1].unique()) > 1
        assert len(corrected[ids == 2].unique()) == 1

    def test_regions_matter_and_batches_do_not(self):
        own = segmenter(self.ids)
        alone = own.encode(self.image).features
        assert (alone - segmenter(self.ids.flip(1)).encode(self.image).features).abs().max() > 1e-3
        wide = segmenter(self.ids)
        wide._encoder.max_batch = 8
        torch.testing.assert_close(wide.encode(self.image).features, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.norm(dim=1), torch.ones(6, *alone.shape[2:]))


def test_published_blocks():
    assert [CorrClip().resolve_spatial_depth(layers) for layers in (12, 24, 32, 6, 3)] == [5, 12, 28, 2, 1]
    with pytest.raises(ValueError, match=r"extension.spatial_depth: expected at most 4 of 6 blocks, received 5"):
        CorrClip(spatial_depth=5).resolve_spatial_depth(6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sharpness": 0}, r"CorrClip\.sharpness: expected a number > 0"),
        ({"merge_distance": -1}, r"CorrClip\.merge_distance: expected a number >= 0"),
        ({"spatial_depth": 0}, r"CorrClip\.spatial_depth: expected None or a whole"),
        ({"semantic_weight": "much"}, r"CorrClip\.semantic_weight: expected a number"),
        ({"faithful": 1}, r"CorrClip\.faithful: expected True or False"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        CorrClip(**fields)


def test_needs_regions_and_a_dino():
    with pytest.raises(ValueError, match=r"regions: expected .* for method corrclip"):
        Segmenter(small_clip(), vfm=small_vfm(), method=METHODS["corrclip"])
    assert PATCH % VFM_PATCH == 0  # what the restatement takes for granted
