"""Label maps that can be read and do not mean what their numbers say are spoken of; right ones never are."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_trees import make_tree
from PIL import Image

from s2clip.evaluation.answers import SavedAnswers
from s2clip.evaluation.benchmarks import benchmark
from s2clip.evaluation.datasets import open_dataset
from s2clip.evaluation.doubts import of_annotations, of_predictions, shift_doubt, voc_palette
from s2clip.evaluation.runner import evaluate_dataset
from s2clip.results.colours import png_palette
from s2clip.results.result import Result

VOC = benchmark("voc21")


def saved(path, ids, palette):
    image = Image.fromarray(np.asarray(ids, np.uint8), "P" if palette is not None else "L")
    if palette is not None:
        image.putpalette(bytes(palette))
    image.save(path)
    return path


def shades(*values):
    return bytes(value for one in values for value in (one, one, one))


IDS = [[0, 0, 3, 3], [0, 7, 7, 255]]
COLOURS = voc_palette()
QUANTIZED = [[1, 1, 0, 0], [1, 2, 2, 3]]  # the same picture, its colours numbered as they come
REORDERED = COLOURS[[3, 0, 7, 255]].tobytes()


@pytest.mark.parametrize(
    ("ids", "palette", "said"),
    [
        (IDS, COLOURS.tobytes(), None),
        (IDS, png_palette(), None),
        (IDS, None, None),
        (IDS, np.arange(768).astype(np.uint8).tobytes(), None),
        (IDS, shades(*range(256)), None),
        (IDS, shades(*(min(12 * value, 255) for value in range(256))), None),
        (QUANTIZED, REORDERED, "0 has the colour of 3 in"),
        ([[1, 1, 2, 2]], COLOURS[[0, 0, 1]].tobytes(), "1 has the colour of 0 in"),
        ([[0, 1], [2, 2]], shades(7, 0, 255), "0 has the shade 7"),
        ([[0, 1]], shades(0, 255), None),
    ],
)
def test_palettes(ids, palette, said, tmp_path, caplog):
    path = saved(tmp_path / "a.png", ids, palette)
    for doubts in (of_annotations(VOC), of_predictions(VOC, 21)):
        caplog.clear()
        doubts.look(path, np.asarray(ids, np.uint8))
        assert len(caplog.records) == (said is not None)
        assert said is None or f"{path}: its palette contradicts its numbers: {said}" in caplog.text


def test_what_we_write_raises_no_doubt(tmp_path, caplog):
    labels = torch.arange(21).repeat(4, 1)
    Result(labels, torch.ones(4, 21), VOC.classes).save(tmp_path, ("png",), stem="a", sidecars=False)
    of_predictions(VOC, 21).look(tmp_path / "a.png", labels.numpy().astype(np.uint8))
    assert caplog.records == []


def test_many_files_of_a_kind_are_not_all_named(tmp_path, caplog):
    doubts = of_annotations(VOC)
    for name in "abcdef":
        doubts.look(saved(tmp_path / f"{name}.png", QUANTIZED, REORDERED), np.asarray(QUANTIZED, np.uint8))
    assert len(caplog.records) == 3
    assert caplog.records[-1].message.endswith("others like it are not named")


@pytest.mark.parametrize(("step", "said"), [(0, None), (1, "plus one at 83 %"), (-1, "minus one at 83 %")])
def test_shifted_ids(step, said):
    """Class k is given k + step at five of six pixels, the others are spread."""
    matrix = torch.full((6, 6), 10)
    for true in range(1, 5):
        matrix[true, true + step] += 240
    matrix[0] = matrix[5] = 0
    assert (shift_doubt(matrix) or "").count(said or "never") == (said is not None)
    assert said is not None or shift_doubt(matrix) is None


def test_a_method_that_gives_one_class_everywhere_is_bad_and_not_shifted():
    matrix = torch.zeros(5, 5, dtype=torch.int64)
    matrix[:, 1] = torch.tensor([900, 10, 20, 20, 20])
    assert shift_doubt(matrix) is None
    assert shift_doubt(torch.zeros(5, 5, dtype=torch.int64)) is None


def test_predictions_saved_from_one_are_told(tmp_path, caplog):
    tree = make_tree("cityscapes", tmp_path / "data")
    dataset = open_dataset("cityscapes", tree.root)
    folder = tmp_path / "predictions"
    folder.mkdir()
    for index, sample in enumerate(dataset):
        target = dataset.annotation(index).numpy()
        saved(folder / f"{sample.name}.png", np.where(target < 18, target + 1, 0), None)
    caplog.clear()
    report = evaluate_dataset(SavedAnswers(folder, dataset), dataset, tmp_path / "out")
    (odd,) = report.document["doubts"]
    assert "the given ids look shifted by one: the annotation's plus one at" in odd
    assert odd in caplog.text
    assert odd[1:] in (tmp_path / "out/result.md").read_text()


def test_an_id_beyond_the_last_class_is_told_as_a_shift(tmp_path):
    dataset = [SimpleNamespace(name="a")]
    dataset = type("Two", (list,), {"classes": ("sky", "tree"), "name": "two"})(dataset)
    saved(tmp_path / "a.png", [[1, 2]], None)
    item = SimpleNamespace(name="a", error=None, target=torch.zeros(1, 2, dtype=torch.uint8))
    (answer,) = SavedAnswers(tmp_path, dataset)([[item]])
    assert "received 1 to 2; shifted by one, as where 0 stands for no class?" in answer.error


def test_labels_of_ade20k_that_were_reduced_before(tmp_path, caplog):
    tree = make_tree("ade20k", tmp_path)
    dataset = open_dataset("ade20k", tree.root)
    path = dataset[0].annotation_path
    with Image.open(path) as image:
        ids = np.array(image)
    caplog.set_level(logging.WARNING)
    ids[0, 0] = 255
    saved(path, ids, None)
    caplog.clear()
    dataset.annotation(0)
    assert "holds 255, where ADE20K" in caplog.text
    assert "look shifted by one already" in caplog.text
