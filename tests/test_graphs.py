"""Which sizes become CUDA graphs, by a stand-in for the capture; what would be captured, against the plain decision."""

import pytest
import torch
from pretended_cuda import pretend
from small_models import picture, small_clip, small_vfm

from s2clip.decision import graphs
from s2clip.decision.graphs import GraphCache
from s2clip.published.catalogue import get_method
from s2clip.segmenter import Segmenter


class Recorder:
    """Stands in for `CapturedGraph`."""

    def __init__(self):
        self.captured, self.replayed = [], []

    def __call__(self, function, tensors, constants):
        sizes = tuple(tuple(tensor.shape) for tensor in tensors)
        self.captured.append((sizes, constants))

        def replay(*tensors):
            self.replayed.append(sizes)
            return function(*tensors, **constants)

        return replay


def doubled(tensor, *, factor):
    return (tensor * factor,)


def test_sizes_that_come_often_are_captured_once():
    recorder = Recorder()
    cache = GraphCache(doubled, after=3, capture=recorder)
    for count in range(6):
        for length in (4, 5) if count < 2 else (4,):
            values = torch.arange(length) + count
            assert torch.equal(cache(values, factor=2)[0], values * 2)
    assert recorder.captured == [(((4,),), {"factor": 2})]
    assert recorder.replayed == [((4,),)] * 4


def test_constants_and_dtypes_are_part_of_the_bucket():
    recorder = Recorder()
    cache = GraphCache(doubled, after=1, capture=recorder)
    results = [cache(torch.ones(3, dtype=dtype), factor=f)[0] for dtype in (torch.int32, torch.float32) for f in (2, 3)]
    assert [result.tolist() for result in results] == [[2] * 3, [3] * 3] * 2
    assert [result.dtype for result in results] == [torch.int32] * 2 + [torch.float32] * 2
    assert len(recorder.captured) == 4


def test_the_latest_graphs_are_kept():
    recorder = Recorder()
    cache = GraphCache(doubled, after=2, capacity=2, capture=recorder)
    for length in (1, 1, 2, 2, 1, 3, 3):  # the graph of 2 is the oldest when that of 3 comes
        cache(torch.ones(length), factor=2)
    for length in (1, 3, 2):
        cache(torch.ones(length), factor=2)
    assert [sizes[0][0] for sizes, _ in recorder.captured] == [1, 2, 3]
    cache(torch.ones(2), factor=2)  # has to come as often as the first time
    assert [sizes[0][0] for sizes, _ in recorder.captured] == [1, 2, 3, 2]


def test_what_was_seen_is_bounded():
    cache = GraphCache(doubled, after=5, capacity=1, capture=Recorder())
    for length in range(200):
        cache(torch.ones(length), factor=2)
    assert len(cache._seen) == 64


@pytest.mark.parametrize("background", [None, 1])
def test_segmenting_with_graphs_is_segmenting(background, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(graphs, "CapturedGraph", recorder)
    method = get_method(
        "s2clip", short_side=40, crop=32, stride=16, templates="plain", threshold=0.0 if background is None else 0.3
    )
    classes = ["sky", "house; hut", "tree"]
    models = {"vfm": small_vfm(), "method": method}
    plain = Segmenter(small_clip(), **models).set_classes(classes, background=background)
    graphed = Segmenter(small_clip(), cuda_graphs=True, **models).set_classes(classes, background=background)
    sizes = [(50, 71), (50, 71), (60, 60), (50, 71)] * 4
    for seed, size in enumerate(sizes):
        image = picture(*size, seed=seed)
        expected, result = plain(image), graphed(image)
        assert torch.equal(result.segmentation, expected.segmentation)
        assert torch.equal(result.confidence, expected.confidence)
    assert [sizes[0] for sizes, _ in recorder.captured] == [(32, 10, 14)]
    assert len(recorder.replayed) == 12 - 7
    graphed.set_classes(["sea", "sand"], background=background)
    plain.set_classes(["sea", "sand"], background=background)
    assert torch.equal(graphed(image).segmentation, plain(image).segmentation)


def test_other_decisions_are_not_captured():
    method = get_method("sclip", short_side=40, crop=32, stride=16, templates="plain")
    segmenter = Segmenter(small_clip(), method=method, cuda_graphs=True).set_classes("sky, tree")
    segmenter._graphs.function = None  # would fail if it were called
    assert segmenter(picture(50, 71)).segmentation.shape == (50, 71)


def test_a_capture_and_its_replays_are_on_the_device_of_the_tensors(monkeypatch):
    """Streams and captures are those of the current device, which need not be that of the tensors."""
    pretend(monkeypatch)
    inside = []

    class Guard:
        def __init__(self, tensor):
            self.tensor = tensor

        def __enter__(self):
            inside.append(self.tensor.shape)

        def __exit__(self, *_):
            inside.pop()

    def doubled_on_its_device(tensor, *, factor):
        assert inside == [(3,)]
        return (tensor * factor,)

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    capture, replay = torch.cuda.graph, torch.cuda.CUDAGraph.replay
    seen = []
    monkeypatch.setattr(torch.cuda, "graph", lambda *a, **k: (seen.append(len(inside)), capture(*a, **k))[1])
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (seen.append(len(inside)), replay(graph))[1])
    captured = graphs.CapturedGraph(doubled_on_its_device, (torch.ones(3),), {"factor": 2})
    assert torch.equal(captured(torch.ones(3))[0], torch.full((3,), 2.0))
    assert seen == [1, 1]
    assert not inside
