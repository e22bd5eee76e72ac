"""The analyses' arithmetic against scikit-learn, NumPy and hand-made cases; nothing is drawn here."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve
from small_models import LAYERS, PATCH, picture, small_sam

from s2clip import ops, scenes
from s2clip.analysis.consistency import semantic_consistency
from s2clip.analysis.entropy import layer_entropy, spatial_statistics
from s2clip.analysis.layers import layer_maps, layer_tokens, picture_maps, prepare
from s2clip.analysis.pairs import PairHistogram, pair_blocks
from s2clip.analysis.patches import patch_labels
from s2clip.analysis.pictures import IGNORE, Picture, find_pictures, own_pictures, scene_pictures
from s2clip.analysis.separability import ClassMoments, separability, window_labels
from s2clip.backbones.clip import load_clip
from s2clip.backbones.sam import SamFeatures
from s2clip.backbones.sam_attention import encode_with_attention, value_features
from s2clip.published.catalogue import get_method
from s2clip.segmenter import Segmenter

CLASSES = ["sky", "water; sea", "grass"]


@pytest.fixture(scope="module")
def segmenter(clip, vfm):
    windows = {"short_side": 48, "crop": 32, "stride": 16, "vfm_scale": 1.0}
    return Segmenter(clip, vfm=vfm, method=get_method("s2clip", **windows)).set_classes(CLASSES)


def blocks_of_three(height=48, width=64):
    """Labels 0, 1, 2 in vertical stripes of a third, the first row ignored."""
    labels = (torch.arange(width) * 3 // width).expand(height, width).clone()
    labels[0] = IGNORE
    return labels


def labelled(count=3, size=(48, 64)):
    return [Picture(f"p{i}", picture(*size, seed=i), blocks_of_three(*size)) for i in range(count)]


# Entropy


def test_entropy_is_that_of_the_op():
    features = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    found = spatial_statistics(features)
    torch.testing.assert_close(found.entropy.float(), ops.spatial_entropy(features))


def test_gini_and_correlation_by_their_definitions():
    from s2clip.kernels.reference import spatial_distribution

    features = torch.randn(1, 6, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = spatial_statistics(features)
    channels = spatial_distribution(features[0]).numpy()
    differences = [np.abs(p[:, None] - p[None]).sum() / (2 * len(p) ** 2 * p.mean()) for p in channels]
    assert found.gini.item() == pytest.approx(np.mean(differences), abs=1e-12)
    matrix = np.corrcoef(channels)
    assert found.correlation.item() == pytest.approx(matrix[~np.eye(6, dtype=bool)].mean(), abs=1e-12)


def test_flat_and_peaked_channels_are_the_ends_of_the_scale():
    flat = spatial_statistics(torch.ones(1, 3, 4, 4))
    assert flat.entropy.item() == pytest.approx(math.log(16))
    assert flat.gini.item() == pytest.approx(0, abs=1e-6)
    assert flat.correlation.item() == 0  # constant channels correlate with nothing
    peak = torch.zeros(1, 3, 20, 20)
    peak[..., 3, 4] = 0.1  # of small deviation: the algorithm clamps the channels of a large one flat
    found = spatial_statistics(peak)
    assert found.entropy < 0.2 * math.log(400)
    assert found.gini > 0.9
    assert found.correlation.item() == pytest.approx(1, abs=1e-5)  # all peak at one place


def test_statistics_of_a_map_do_not_depend_on_the_batch_and_nan_counts_as_none():
    features = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    features[1] = float("nan")
    together = torch.stack(spatial_statistics(features))
    alone = torch.cat([torch.stack(spatial_statistics(one[None])) for one in features], 1)
    assert torch.equal(together, alone)
    assert together[:, 1].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"features: expected floats \[B,C,H,W\]"):
        spatial_statistics(torch.ones(2, 3, dtype=torch.int64))


def test_layer_entropy_averages_pictures(clip):
    pictures = labelled()
    found = layer_entropy({"a": pictures, "b": pictures[:1]}, clip, layers=[2, LAYERS], short_side=0)
    each = [
        [spatial_statistics(one.movedim(-1, 1)).entropy.item() for one in _maps(clip, p, [2, LAYERS])] for p in pictures
    ]
    np.testing.assert_allclose(found.entropy[0], np.mean(each, 0))
    np.testing.assert_allclose(found.deviation[0], np.std(each, 0, ddof=1))
    assert np.isnan(found.deviation[1]).all()  # one picture deviates from nothing
    assert found.ceiling[0] == pytest.approx(math.log(6 * 8))
    assert found.pictures.tolist() == [3, 1]
    header, rows = found.rows()
    assert len(rows) == 4
    assert rows[1][:2] == ["a", LAYERS]
    assert len(header) == len(rows[0])


def _maps(clip, one, layers):
    with torch.inference_mode():
        return layer_maps(clip, prepare(one.pixels, clip, 0), layers).values()


@pytest.mark.parametrize("layer", [0, LAYERS + 1])
def test_a_layer_that_does_not_exist(clip, layer):
    with pytest.raises(ValueError, match=rf"layers: expected 1 to {LAYERS} for small, received {layer}"):
        layer_entropy({"a": labelled(1)}, clip, layers=[layer], short_side=0)


def test_a_set_without_pictures(clip):
    with pytest.raises(ValueError, match="at least one picture in each, received none in a"):
        layer_entropy({"a": []}, clip)


# Pairs


@given(
    st.lists(st.tuples(st.integers(0, 63), st.booleans()), min_size=1, max_size=80).filter(
        lambda pairs: any(alike for _, alike in pairs)
    )
)
def test_average_precision_is_scikit_learns_ties_included(pairs):
    places, alike = map(np.array, zip(*pairs, strict=True))
    scores = (places + 0.5) / 32 - 1  # the middles of 64 bins
    histogram = PairHistogram(64)
    histogram.add(torch.from_numpy(scores).float(), torch.from_numpy(alike))
    found = histogram.result()
    assert found.average_precision == pytest.approx(average_precision_score(alike, scores), abs=1e-12)
    precision, recall, threshold = precision_recall_curve(alike, scores)
    np.testing.assert_allclose(found.precision[::-1], precision[:-1], atol=1e-12)
    np.testing.assert_allclose(found.recall[::-1], recall[:-1], atol=1e-12)
    np.testing.assert_allclose(found.threshold[::-1] + 1 / 64, threshold)


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_bounds_enclose_the_average_precision_before_rounding(seed, bins):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, 200).astype(np.float32).round(int(rng.integers(1, 4)))
    alike = rng.random(200) < 0.3
    alike[0] = True
    histogram = PairHistogram(bins)
    for part in np.split(np.arange(200), 4):
        histogram.add(torch.from_numpy(scores[part]), torch.from_numpy(alike[part]))
    found = histogram.result()
    low, high = found.bounds
    exact = average_precision_score(alike, scores)
    assert low - 1e-12 <= exact <= high + 1e-12
    assert low - 1e-12 <= found.average_precision <= high + 1e-12
    assert (found.pairs, found.alike, found.chance) == (200, alike.sum(), alike.mean())


def test_every_pair_is_in_one_block_whatever_their_size(monkeypatch):
    labels = torch.arange(23) % 4
    wanted = {(i, j): bool(labels[i] == labels[j]) for i in range(23) for j in range(i + 1, 23)}
    for limit in (1, 50, 1 << 20):
        monkeypatch.setattr("s2clip.analysis.pairs.PAIRS_AT_ONCE", limit)
        met = []
        for block in pair_blocks(labels):
            width = block.columns.stop - block.columns.start
            rows, columns = block.places // width + block.rows.start, block.places % width + block.columns.start
            met += list(zip(zip(rows.tolist(), columns.tolist(), strict=True), block.alike.tolist(), strict=True))
        assert len(met) == len(wanted)
        assert dict(met) == wanted


def test_scores_that_are_not_finite_or_not_alike_are_refused():
    histogram = PairHistogram(8)
    with pytest.raises(ValueError, match="scores: expected finite numbers"):
        histogram.add(torch.tensor([0.0, float("nan")]), torch.tensor([True, False]))
    histogram.add(torch.tensor([1.0, -1.0, 1.0000001]), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="two patches of one class at least, received 3 pairs, none alike"):
        histogram.result()


# Consistency


def test_consistency_is_that_of_all_pairs_sorted(clip, vfm):
    pictures = labelled()
    found = semantic_consistency({"a": pictures}, clip, {"dino": vfm}, short_side=0)
    assert found.features == (*(f"CLIP {layer}" for layer in range(1, LAYERS + 1)), "dino")
    for name in ("CLIP 1", "CLIP 6", "dino"):
        scores, alike = [], []
        for one in pictures:
            features = picture_maps(one.pixels, clip, {"dino": vfm}, short_side=0)[name]
            labels = patch_labels(one.labels, features.shape[:2]).flatten().numpy()
            unit = torch.nn.functional.normalize(features.flatten(0, 1), dim=1)[torch.from_numpy(labels != IGNORE)]
            labels = labels[labels != IGNORE]
            i, j = np.triu_indices(len(labels), 1)
            scores.append((unit @ unit.T).numpy()[i, j])
            alike.append(labels[i] == labels[j])
        exact = average_precision_score(np.concatenate(alike), np.concatenate(scores))
        curve = found.curves["a", name]
        assert curve.bounds[0] - 1e-6 <= exact <= curve.bounds[1] + 1e-6
        assert curve.average_precision == pytest.approx(exact, abs=2e-4)
        assert curve.pairs == sum(map(len, alike))
    assert found.average_precision.shape == (1, LAYERS + 1)
    assert len(found.rows()[1]) == LAYERS + 1


def test_a_sam_also_has_the_values_of_its_last_attention(clip):
    """Their cosines are the mean of the heads', by which Trident joins cells."""
    sam = SamFeatures(small_sam(), name="sam-small")
    found = semantic_consistency({"a": labelled(1)}, clip, {"sam": sam}, layers=[1], short_side=0)
    assert found.features == ("CLIP 1", "sam", "sam last values")
    images = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    features = value_features(sam.model, images)[0]
    _, attention, _ = encode_with_attention(sam.model, images[0])
    heads = torch.nn.functional.normalize(attention.value.unflatten(1, attention.grid)[:, :6, :8].flatten(1, 2), dim=-1)
    assert features.shape[:2] == (6, 8)
    unit = torch.nn.functional.normalize(features.flatten(0, 1), dim=1)
    torch.testing.assert_close(unit @ unit.T, (heads @ heads.mT).mean(0), rtol=0, atol=1e-6)


def test_consistency_needs_labels(clip):
    with pytest.raises(ValueError, match="pictures with label maps, received p0 without one"):
        semantic_consistency({"a": [labelled(1)[0]._replace(labels=None)]}, clip, short_side=0)


def test_a_patch_has_the_label_of_most_of_its_pixels():
    labels = torch.tensor([[0, 0, 1, 1, 1], [0, 2, 1, 1, 255], [2, 2, 255, 255, 255], [2, 0, 255, 1, 255]])
    assert patch_labels(labels, (2, 2)).tolist() == [[0, 1], [2, 255]]
    assert patch_labels(torch.tensor([[3, 4]]), (2, 4)).tolist() == [[3, 3, 4, 4]] * 2  # fewer pixels than cells


# Separability


def test_moments_are_those_of_all_vectors_at_once():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 5)), np.r_[rng.integers(0, 3, 58), 255, 3]
    moments = ClassMoments(4)
    for part in np.split(np.arange(60), 3):
        moments.add(torch.from_numpy(vectors[part]), torch.from_numpy(labels[part]))
    found = moments.result(("a", "b", "c", "d"))
    assert found.classes == ("a", "b", "c")  # d has one patch
    means = np.stack([vectors[labels == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(found.means, means, atol=1e-12)
    spread = [((vectors[labels == c] - means[c]) ** 2).sum(1).mean() for c in range(3)]
    np.testing.assert_allclose(found.variance, spread, atol=1e-12)
    distances = np.linalg.norm(means[:, None] - means[None], axis=2)
    np.testing.assert_allclose(found.distances, distances, atol=1e-12)
    np.testing.assert_allclose(found.distance, distances.sum(1) / 2)
    assert found.nearest.tolist() == [np.argsort(row)[1] for row in distances]
    assert found.rows()[1][0][4] == found.classes[found.nearest[0]]


def test_separability_by_true_masks(segmenter):
    pictures = labelled(2)
    true = separability(pictures, segmenter, masks="true")
    assert true.classes == ("sky", "water; sea", "grass")
    encoded = segmenter.encode(pictures[0].pixels)
    cells = next(window_labels(pictures[0].labels, encoded))
    assert true.patches.sum() == 2 * (cells != IGNORE).sum()


def test_separability_by_predicted_masks():
    tiny = Segmenter.from_pretrained("tiny", method="maskclip").set_classes(scenes.CLASSES)
    tiny = tiny.with_method(tiny.method, merge="splice")
    pictures = list(scene_pictures(2))
    found = separability([one._replace(labels=None) for one in pictures], tiny)
    counts = sum(
        torch.bincount(
            next(window_labels(tiny(one.pixels).segmentation, tiny.encode(one.pixels))).flatten(), minlength=13
        )
        for one in pictures
    )
    assert found.patches.tolist() == [count for count in counts.tolist() if count >= 2]
    assert found.classes == tuple(name for name, count in zip(scenes.CLASSES, counts, strict=True) if count >= 2)


def test_windows_that_are_not_spliced_all_count(segmenter):
    pixels = segmenter.with_method(segmenter.method, merge="pixel", crop=30, vfm_weight=None, levels=())
    encoded = pixels.encode(labelled(1)[0].pixels)
    windows = list(window_labels(blocks_of_three(), encoded))
    assert len(windows) == len(encoded.boxes) > 1
    assert {tuple(one.shape) for one in windows} == {(4, 4)}
    assert set(windows[0].flatten().tolist()) <= {0, 1, IGNORE}  # the left half of three stripes


def test_one_class_is_far_from_nothing(segmenter):
    one = labelled(1)[0]
    with pytest.raises(ValueError, match="two classes with two patches each at least, received masks with sky"):
        separability([one._replace(labels=torch.zeros_like(one.labels))], segmenter, masks="true")
    with pytest.raises(ValueError, match="masks: expected one of predicted, true, received 'both'"):
        separability([one], segmenter, masks="both")
    with pytest.raises(ValueError, match="for masks='true', received p0 without one"):
        separability([one._replace(labels=None)], segmenter, masks="true")


# Pictures


def test_words_of_the_command_line_become_sets(tmp_path):
    from PIL import Image

    for name in ("one/a.png", "one/b.png", "two/one/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(8, 9).permute(1, 2, 0).numpy()).save(tmp_path / name)
    sources = ["scenes", tmp_path / "one", tmp_path / "two/one", tmp_path / "d.png", tmp_path / "nothing"]
    found, failures = find_pictures([str(one) for one in sources], limit=2)
    assert [(one.name, len(one)) for one in found] == [("scenes", 2), ("one", 2), ("one-2", 1), ("pictures", 1)]
    assert failures == [(str(tmp_path / "nothing"), "no such file")]
    assert [one.name for one in found[1]] == ["a", "b"]
    assert next(iter(found[0])).labels.shape == (96, 128)
    with pytest.raises(ValueError, match="limit: expected at least 1, received 0"):
        find_pictures(["scenes"], limit=0)
    with pytest.raises(ValueError, match="data: expected the folder of voc21, received None"):
        find_pictures(["voc21"])


def test_pictures_that_cannot_be_read_are_told_apart(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    failures = []
    read = list(own_pictures([picture(8, 9), tmp_path / "bad.png"]).readable(failures))
    assert [one.name for one in read] == ["pictures-0"]
    assert failures[0][0].endswith("bad.png")
    assert failures[0][1]


def test_scenes_are_those_of_evaluate():
    one = scene_pictures(3, seed=2).load(1)
    pixels, labels = scenes.generate(20_001)
    assert one.name == "scene-20001"
    assert np.array_equal(one.pixels.permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(one.labels.numpy(), labels)


def test_pictures_are_seen_whole_at_the_models_size(clip):
    assert prepare(picture(30, 61), clip, 16).shape == (1, 3, 16, 32)
    assert prepare(picture(30, 61), clip, 0).shape == (1, 3, 32, 64)  # to multiples of the patch
    assert prepare(picture(30, 61), clip).shape[2] == 336 // PATCH * PATCH
    with pytest.raises(ValueError, match=r"short_side: expected 0 .* received -1"):
        prepare(picture(30, 61), clip, -1)


@pytest.mark.slow
def test_analyses_cost_a_third_of_clip_at_most():
    """All layers of ViT-B/16 on pictures of 336 x 336, in CPU time of one thread: a loaded machine does not bend it."""
    clip = load_clip("ViT-B-16", weights="random")
    pictures = [
        Picture(str(seed), torch.from_numpy(pixels).movedim(-1, 0), torch.from_numpy(labels))
        for seed in range(4)
        for pixels, labels in [scenes.generate(seed, (336, 336))]
    ]

    @torch.inference_mode()
    def forward():
        for one in pictures:
            layer_tokens(clip, prepare(one.pixels, clip))

    def seconds(work):
        start = time.thread_time()
        work()
        return time.thread_time() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        forward()
        alone = min(seconds(forward) for _ in range(3))
        entropy = min(seconds(lambda: layer_entropy({"a": pictures}, clip)) for _ in range(3))
        consistency = min(seconds(lambda: semantic_consistency({"a": pictures}, clip)) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    assert entropy <= 1.3 * alone, (entropy, alone)
    assert consistency <= 1.3 * alone, (consistency, alone)
