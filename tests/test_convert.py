"""Converters against a pixel-by-pixel restatement, interrupted and continued, and on inputs that are wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from data_trees import COCO_MISSING, LAYOUTS, label_blocks, make_tree, save
from hypothesis import given, strategies
from PIL import Image
from pycocotools import mask as pycoco

from s2clip import cli
from s2clip.errors import DatasetError
from s2clip.evaluation.converters import convert
from s2clip.evaluation.datasets import open_dataset
from s2clip.evaluation.run_lengths import decode

# cityscapesScripts, labels.py: the ids that are evaluated, by name
TRAIN_IDS = dict(zip([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], range(19), strict=True))
# ids of PASCAL in Detail, as its challenge lists them, and the background
CONTEXT_IDS = sorted(
    [
        *(0, 2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427, 9, 18, 22, 33),
        *(44, 46, 68, 80, 85, 104, 115, 144, 158, 159, 162, 187, 189, 220, 232, 259, 260, 105, 296, 355, 295, 324),
        *(326, 349, 354, 360, 366, 19, 415, 420, 424, 440, 445, 454, 458),
    ]
)
COCO_RAW = [label for label in range(182) if label not in COCO_MISSING]

ORACLES = {
    "cityscapes": lambda label: TRAIN_IDS.get(label, 255),
    "coco_object": lambda label: 0 if label > 90 else 1 + sum(other < label for other in COCO_RAW),
    "coco_stuff": lambda label: 255 if label == 255 else sum(other < label for other in COCO_RAW),
}
RAW_LABELS = {"cityscapes": list(range(34)), "coco_object": [*COCO_RAW, 255], "coco_stuff": [*COCO_RAW, 255]}
RAW_NAMES = {
    "cityscapes": "{}_gtFine_labelIds.png",
    "coco_object": "{}.png",
    "coco_stuff": "{}.png",
}
COMMANDS = {"cityscapes": "cityscapes", "coco_object": "coco-object", "coco_stuff": "coco-stuff"}


def raw_tree(name, parent, **options):
    """The tree with raw labels in place of converted ones, and the raw labels by picture."""
    tree = make_tree(name, parent, **options)
    generator = np.random.default_rng(7)
    raw = {}
    for stem, path in tree.annotations.items():
        path.unlink()
        raw[stem] = label_blocks(generator, tree.values[stem].shape, RAW_LABELS[name])
        save(path.with_name(RAW_NAMES[name].format(stem)), raw[stem])
    return tree, raw


def written_labels(tree):
    return {stem: np.asarray(Image.open(path)) for stem, path in tree.annotations.items()}


@pytest.mark.parametrize("name", ORACLES)
def test_pixel_maps_are_converted_pixel_by_pixel(name, tmp_path):
    tree, raw = raw_tree(name, tmp_path)
    done = convert(COMMANDS[name], tmp_path)
    assert (done.root, done.written, done.present, done.failed) == (tree.root, 3, 0, [])
    for stem, labels in written_labels(tree).items():
        expected = np.vectorize(ORACLES[name])(raw[stem])
        assert np.array_equal(labels, expected)
    assert len(open_dataset(name, tmp_path)) == 3
    open_dataset(name, tmp_path).annotation(0)


def test_coco_object_is_also_made_of_converted_maps(tmp_path):
    """The raw maps were deleted after the conversion for COCO-Stuff."""
    tree, raw = raw_tree("coco_object", tmp_path)
    direct = convert("coco-object", tmp_path)
    expected = written_labels(tree)
    for stem, labels in raw.items():
        folder = tree.annotations[stem].parent
        save(folder / f"{stem}_labelTrainIds.png", np.vectorize(ORACLES["coco_stuff"])(labels).astype(np.uint8))
        (folder / f"{stem}.png").unlink()
    again = convert("coco-object", tmp_path, overwrite=True)
    assert direct.written == again.written == 3
    for stem, labels in written_labels(tree).items():
        assert np.array_equal(labels, expected[stem])


def detail_file(tree, generator, *, category=None):
    """trainval_merged.json of overlapping rectangles; returns the classes that painting them in order gives."""
    images, annotations, expected = [], [], {}
    for number, stem in enumerate([*tree.names, "2008_000099"]):
        size = (32, 48)
        phase = "train" if stem == "2008_000099" else "val"
        images.append({"image_id": 100 + number, "file_name": f"{stem}.jpg", "height": 32, "width": 48, "phase": phase})
        painted = np.zeros(size, int)
        for _ in range(6):
            top, left = generator.integers(0, 28), generator.integers(0, 40)
            mask = np.zeros(size, np.uint8)
            mask[top : top + generator.integers(1, 20), left : left + generator.integers(1, 30)] = 1
            label = category or int(generator.choice(CONTEXT_IDS[1:]))
            counts = pycoco.encode(np.asfortranarray(mask))["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": 100 + number,
                    "category_id": label,
                    "segmentation": {"counts": counts, "size": list(size)},
                }
            )
            painted[mask > 0] = label
        expected[stem] = np.vectorize(lambda label: sum(other < label for other in CONTEXT_IDS))(painted)
    path = tree.root / "trainval_merged.json"
    path.write_text(json.dumps({"images": images, "annos_segmentation": annotations}))
    return expected


def bare_context(tmp_path):
    tree = make_tree("context60", tmp_path)
    for path in (*tree.annotations.values(), tree.root / "ImageSets/SegmentationContext/val.txt"):
        path.unlink()
    (tree.root / "SegmentationClassContext").rmdir()
    return tree


def test_context_is_painted_from_its_masks(tmp_path):
    tree = bare_context(tmp_path)
    expected = detail_file(tree, np.random.default_rng(3))
    done = convert("context", tmp_path)
    assert (done.written, done.failed) == (3, [])
    for stem, labels in written_labels(tree).items():
        assert np.array_equal(labels, expected[stem])
    dataset = open_dataset("context60", tmp_path)
    assert [sample.name for sample in dataset] == list(tree.names)  # the picture of the training split is not in it
    assert len(open_dataset("context59", tmp_path)) == 3


def test_context_takes_its_file_from_elsewhere(tmp_path):
    tree = bare_context(tmp_path)
    detail_file(tree, np.random.default_rng(3))
    moved = (tree.root / "trainval_merged.json").rename(tmp_path / "elsewhere.json")
    assert convert("Context", tmp_path, source=moved).written == 3
    with pytest.raises(ValueError, match="source: expected none"):
        convert("cityscapes", tmp_path, source=moved)


@pytest.mark.parametrize("name", ORACLES)
def test_what_is_there_is_left_and_the_rest_is_made(name, tmp_path):
    tree, _ = raw_tree(name, tmp_path)
    kept = tree.annotations[tree.names[1]]
    save(kept, np.zeros((32, 48), np.uint8))
    before = kept.read_bytes()
    done = convert(COMMANDS[name], tmp_path)
    assert (done.written, done.present) == (2, 1)
    assert kept.read_bytes() == before
    assert convert(COMMANDS[name], tmp_path, overwrite=True).written == 3
    assert kept.read_bytes() != before
    assert not list(tree.root.rglob("*.tmp"))


def test_a_killed_conversion_leaves_whole_files_and_is_continued(tmp_path):
    tree, _ = raw_tree("coco_stuff", tmp_path, count=6)
    program = (
        "import os\nfrom s2clip.evaluation import converters\n"
        "from PIL import Image\nsaved = Image.Image.save\ncount = 0\n"
        "def dying(image, handle, *rest, **options):\n"
        "    global count\n    count += 1\n"
        "    if count == 4:\n        handle.write(b'half a file'); handle.flush(); os._exit(9)\n"
        "    saved(image, handle, *rest, **options)\n"
        "Image.Image.save = dying\n"
        f"converters.convert('coco-stuff', {str(tmp_path)!r})\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=600)
    assert process.returncode == 9
    there = [path for path in tree.annotations.values() if path.exists()]
    assert len(there) < 6
    for path in there:
        np.asarray(Image.open(path))
    done = convert("coco-stuff", tmp_path)
    assert (done.written, done.present) == (6 - len(there), len(there))
    dataset = open_dataset("coco_stuff", tmp_path)
    assert all(dataset.annotation(index).shape == (32, 48) for index in range(6))


BAD_RAW = [
    ("cityscapes", 77, "expected labels 0 to 33 of the fine annotation, received 77"),
    ("coco_object", 11, "expected COCO-Stuff's labels, up to 181 or 255, received 11"),
    ("coco_stuff", 200, "expected COCO-Stuff's labels, up to 181 or 255, received 200"),
]


@pytest.mark.parametrize(("name", "label", "said"), BAD_RAW)
def test_one_bad_file_is_named_and_the_others_are_made(name, label, said, tmp_path):
    tree, raw = raw_tree(name, tmp_path)
    bad = tree.annotations[tree.names[0]].with_name(RAW_NAMES[name].format(tree.names[0]))
    values = raw[tree.names[0]].copy()
    values[0, 0] = label
    save(bad, values)
    done = convert(COMMANDS[name], tmp_path)
    assert done.written == 2
    (reason,) = done.failed
    assert reason.startswith(f"{bad}: ")
    assert said in reason
    assert not tree.annotations[tree.names[0]].exists()


def test_raw_files_that_are_not_there(tmp_path):
    tree, _ = raw_tree("coco_object", tmp_path)
    for stem in tree.names[:2]:
        tree.annotations[stem].with_name(f"{stem}.png").unlink()
    with pytest.raises(DatasetError, match=r"000000000139.png: .* not there, nor those of 1 other .*stuffthingmaps"):
        convert("coco-object", tmp_path)
    with pytest.raises(ValueError, match="convert: expected one of cityscapes, coco-object, coco-stuff, context"):
        convert("ade20k", tmp_path)


BAD_DETAIL = {
    "missing": (lambda path: path.unlink(), "no such file; download VOCtrainval_03-May-2010"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read"),
    "another": (lambda path: path.write_text('{"images": [], "annotations": []}'), "expected images with a phase"),
    "list": (lambda path: path.write_text("[1, 2]"), "expected images with a phase"),
    "phase": (
        lambda path: path.write_text(path.read_text().replace('"val"', '"test"')),
        "no image has the phase 'val'",
    ),
}


@pytest.mark.parametrize("kind", BAD_DETAIL)
def test_a_wrong_json_is_refused(kind, tmp_path):
    tree = bare_context(tmp_path)
    detail_file(tree, np.random.default_rng(0))
    damage, said = BAD_DETAIL[kind]
    damage(tree.root / "trainval_merged.json")
    with pytest.raises(DatasetError) as refused:
        convert("context", tmp_path)
    assert said in str(refused.value)
    assert "trainval_merged.json" in str(refused.value)
    assert not (tree.root / "ImageSets/SegmentationContext/val.txt").exists()


def test_context_categories_and_masks_that_do_not_fit(tmp_path):
    tree = bare_context(tmp_path)
    detail_file(tree, np.random.default_rng(0), category=3)
    done = convert("context", tmp_path)
    assert done.written == 0
    assert "2008_000002.jpg: expected the categories of the 60 classes, received 3" in done.failed[0]
    path = tree.root / "trainval_merged.json"
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 31
    path.write_text(json.dumps(content))
    assert "runs that add up to 31x48" in convert("context", tmp_path).failed[0]


@given(
    height=strategies.integers(1, 40),
    width=strategies.integers(1, 40),
    share=strategies.sampled_from([0, 0.02, 0.3, 0.7, 1]),
    seed=strategies.integers(0, 1000),
)
def test_run_lengths_are_those_of_pycocotools(height, width, share, seed):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    packed = pycoco.encode(np.asfortranarray(mask))["counts"]
    assert np.array_equal(decode(packed, mask.shape), mask)
    assert np.array_equal(decode(packed.decode(), mask.shape), mask)
    flat = mask.T.ravel()
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *borders, flat.size]).tolist()
    assert np.array_equal(decode([0, *runs] if flat[0] else runs, mask.shape), mask)


def test_long_runs_are_those_of_pycocotools():
    """Numbers of four and five characters, and large negative differences."""
    mask = np.zeros((3000, 2000), np.uint8)
    mask[:, :1] = mask[10:2990, 900:1400] = 1
    mask[5, ::7] = 1
    packed = pycoco.encode(np.asfortranarray(mask))["counts"]
    assert np.array_equal(decode(packed, mask.shape), mask)


@pytest.mark.parametrize("counts", ["", "P", "o", "\x00", "zz", [3, 4], [20, -8], "ooooooooo0"])
def test_runs_that_are_not_those_of_a_mask_are_refused(counts):
    with pytest.raises(ValueError, match="counts: expected"):
        decode(counts, (3, 4))


def test_the_command_says_what_it_did(tmp_path):
    tree, _ = raw_tree("cityscapes", tmp_path)
    bad = tree.annotations[tree.names[0]].with_name(RAW_NAMES["cityscapes"].format(tree.names[0]))
    good = bad.read_bytes()
    bad.write_bytes(good[:50])

    def run(*arguments):
        return CliRunner().invoke(cli.main, ["convert", *arguments, "--data", str(tmp_path)])

    first = run("cityscapes")
    assert first.exit_code == 1
    assert "2 label files written, 0 were there" in first.stdout
    assert str(bad) in first.stderr
    bad.write_bytes(good)
    second = run("cityscapes", "--json")
    assert second.exit_code == 0
    assert json.loads(second.stdout) == {"root": str(tree.root), "written": 1, "present": 2, "failed": []}
    assert run("voc21").exit_code == 2
    missing = run("coco-stuff")
    assert missing.exit_code == 1
    assert missing.stderr.startswith("Error: ")
    assert "no pictures of COCO-Stuff" in missing.stderr


def test_a_folder_that_cannot_be_written_to(tmp_path):
    tree, _ = raw_tree("cityscapes", tmp_path)
    folder = tree.annotations[tree.names[0]].parent
    folder.chmod(0o500)
    result = CliRunner().invoke(cli.main, ["convert", "cityscapes", "--data", str(tmp_path)])
    folder.chmod(0o700)
    if os.geteuid() == 0:  # whom no folder refuses
        assert result.exit_code == 0
    else:
        assert result.exit_code == 3
        assert f"{folder}: cannot write there" in result.stderr


def test_names_of_raw_labels_cover_what_is_converted():
    assert set(RAW_NAMES) == set(ORACLES) == set(COMMANDS) < set(LAYOUTS)
