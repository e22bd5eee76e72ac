"""The embedded pipeline on the GPU: the CPU's labels, the same bits by graph and eager, every memory order."""

import pytest
import torch

from s2clip import Segmenter, ops, scenes
from s2clip.decision import graphs
from s2clip.testing import layouts, normal

pytestmark = pytest.mark.gpu
PICTURES = [scenes.generate(seed, (96, 128))[0] for seed in range(4)]


def labels(device, method, **options):
    segmenter = Segmenter.from_pretrained("tiny", method=method, device=device, dtype=torch.float32, **options)
    return [result.segmentation.cpu() for result in segmenter.set_classes(scenes.CLASSES)(PICTURES)]


@pytest.mark.parametrize(
    ("method", "options"),
    [("clip", {}), ("naclip", {}), ("proxyclip", {}), ("s2clip", {}), ("s2clip", {"refine": "sam"})],
    ids=["clip", "naclip", "proxyclip", "s2clip", "s2clip-sam"],
)
def test_labels_are_those_of_the_cpu(method, options):
    pairs = zip(labels("cuda", method, **options), labels("cpu", method, **options), strict=True)
    # Another order of sums turns a pixel whose two best classes are as good as equal; a wrong kernel turns regions.
    different = [(found != wanted).float().mean().item() for found, wanted in pairs]
    assert max(different) < 0.01, different


def test_a_captured_graph_gives_the_bits_of_the_eager_call():
    first, other = (normal(64, 12, 16, seed=seed, device="cuda") for seed in range(2))
    words = normal(9, 64, seed=2, device="cuda")
    class_index = torch.tensor([0, 0, 1, 2, 3, 4, 4, 5, 6], device="cuda")
    rules = {"size": (96, 128), "scale": 40.0, "classes": 7, "threshold": 0.0, "background": 0}
    captured = graphs.CapturedGraph(graphs.classify, (first, words, class_index), rules)
    for features in (first, first, other):
        eager = graphs.classify(features, words, class_index, **rules)
        for found, wanted in zip(captured(features, words, class_index), eager, strict=True):
            assert torch.equal(found, wanted)


def test_repeated_calls_of_a_segmenter_keep_their_labels():
    """More of one size than a graph is captured after: the first are eager, the last are replayed."""
    segmenter = Segmenter.from_pretrained("tiny", device="cuda").set_classes(scenes.CLASSES)
    first, *others = (segmenter(PICTURES[0]).segmentation for _ in range(20))
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_memory_order_gives_the_same_bits(dtype):
    query, key, value = (normal(2, 4, 61, 64, seed=seed, dtype=dtype, device="cuda") for seed in range(3))
    expected = ops.recombined_attention(query, key, value)
    for name, view in layouts(query).items():
        assert torch.equal(ops.recombined_attention(view, key, value), expected), name
    features, values = (normal(2, 9, 12, 64, seed=seed, dtype=dtype, device="cuda") for seed in (3, 4))
    mean = torch.tensor([0.01, 0.03], device="cuda")
    expected = ops.affinity_attention(features, values, mean=mean)
    for name, view in layouts(features).items():
        assert torch.equal(ops.affinity_attention(view, values, mean=mean), expected), name
