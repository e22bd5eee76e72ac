"""Whatever torch is set to around the library, its answers are the same to the bit, and what it keeps."""

import copy
import pickle
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from s2clip import Segmenter, ops, scenes
from s2clip.shelter import settled, sheltered

CLASSES = ["sky", "house", "tree", "grass"]
PICTURE = torch.from_numpy(scenes.generate(7, (48, 64))[0]).permute(2, 0, 1).contiguous()


@contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == torch.float64
        torch.set_default_dtype(torch.float32)


SCORES = torch.full((4, 8, 8), 0.25)

STATES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default dtype": float64_by_default,
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)


def everything(method, refine, folder):
    """Every public entry once, in a process as it comes or in a caller's state."""
    segmenter = Segmenter.from_pretrained(
        "tiny", method=method, refine=refine, short_side=64, text_cache=True, cache_dir=folder
    ).set_classes(CLASSES)
    result = segmenter(PICTURE)
    encoded = segmenter.encode(PICTURE)
    again = segmenter.segment(encoded, [*CLASSES, "road"])
    found = {
        "called": [result.segmentation, result.confidence, *result.regions],
        "streamed": [one.segmentation for one in segmenter.stream([PICTURE, PICTURE.float() / 255], batch_size=2)],
        "encoded": encoded.features,
        "segmented": [again.segmentation, again.confidence],
        "scores": segmenter.scores(encoded).whole((20, 30)),
        "words": segmenter._text(CLASSES, segmenter.method.templates),
        "kept": [torch.tensor(list(path.read_bytes())) for path in sorted(folder.rglob("*")) if path.is_file()]
        if torch.get_default_device().type == "cpu"
        else [],
    }
    if refine != "none":
        found["refined"] = segmenter.refine(PICTURE, result.segmentation, SCORES).segmentation
    return found


@pytest.mark.parametrize(("method", "refine"), [("s2clip", "sam"), ("clip", "none")])
def test_every_entry_answers_the_same_in_every_state(method, refine, tmp_path):
    want = everything(method, refine, tmp_path / "plain")
    for name, state in STATES.items():
        with state():
            got = everything(method, refine, tmp_path / name)
        for entry, wanted in want.items():
            if name == "default device" and entry == "kept":
                continue
            pairs = list(zip(tensors_of(got[entry]), tensors_of(wanted), strict=True))
            assert pairs
            for ours, theirs in pairs:
                assert ours.dtype == theirs.dtype, (name, entry)
                assert torch.equal(ours, theirs), (name, entry)
                assert entry == "kept" or not ours.is_inference(), (name, entry)
        later = Segmenter.from_pretrained("tiny", method=method, text_cache=True, cache_dir=tmp_path / name)
        assert torch.equal(later._text(CLASSES, later.method.templates), want["words"]), name


def test_encoded_features_can_be_trained_upon():
    with torch.inference_mode():
        encoded = Segmenter.from_pretrained("tiny", method="clip").encode(PICTURE)
    probe = torch.nn.Linear(encoded.features.shape[1], 2)
    probe(encoded.features[0].flatten(1).T).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


def test_ops_keep_their_precision_under_autocast():
    query, key, value = torch.randn(3, 1, 2, 33, 16, generator=torch.Generator().manual_seed(0))
    want = ops.recombined_attention(query, key, value)
    with STATES["autocast"]():
        assert torch.equal(ops.recombined_attention(query, key, value), want)


def test_threads_give_the_default_dtype_back():
    torch.set_default_dtype(torch.float64)
    try:
        inside, leave = threading.Event(), threading.Event()

        def other():
            with settled():
                inside.set()
                leave.wait(10)
                assert torch.get_default_dtype() == torch.float32

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        with sheltered():
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float32  # the other still computes
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("options", [{}, {"method": "clip", "refine": "sam"}])
def test_copies_of_a_segmenter_answer_the_same(options):
    segmenter = Segmenter.from_pretrained("tiny", short_side=64, **options).set_classes(CLASSES)
    want = segmenter(PICTURE).segmentation
    for copied in (pickle.loads(pickle.dumps(segmenter)), copy.deepcopy(segmenter)):
        assert copied.classes == segmenter.classes
        assert torch.equal(copied(PICTURE).segmentation, want)
        assert torch.equal(copied.set_classes(["sky", "road"])(PICTURE).segmentation.cpu() >= 0, want >= 0)


class Segmented(torch.utils.data.Dataset):
    """Pictures that the workers of a data loader segment."""

    def __init__(self, segmenter):
        self.segmenter = segmenter

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.segmenter(PICTURE).segmentation


@pytest.mark.long
def test_a_spawned_data_loader_takes_a_segmenter():
    segmenter = Segmenter.from_pretrained("tiny", method="clip").set_classes(CLASSES)
    loader = torch.utils.data.DataLoader(
        Segmented(segmenter), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    (found,) = loader
    assert torch.equal(found, segmenter(PICTURE).segmentation)


def test_numbers_of_numpy(tmp_path):
    segmenter = Segmenter.from_pretrained("tiny", method="clip", threshold=np.float32(0.5), crop=np.int64(0))
    segmenter.set_classes(np.array(CLASSES), background=np.int64(1))
    result = segmenter(PICTURE)
    result.save(tmp_path, ("png",))
    assert result.background == 1
