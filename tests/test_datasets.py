"""Reading the benchmarks from miniature trees: pairs, labels, and one clear line for whatever is wrong."""

import numpy as np
import pytest
from data_trees import LAYOUTS, SIZE, make_tree, save, save_lines
from PIL import Image

from s2clip.errors import DatasetError
from s2clip.evaluation.benchmarks import DATASETS, benchmark
from s2clip.evaluation.datasets import Dataset, open_dataset
from s2clip.words.text import vocabulary

ZERO_IS_IGNORED = {"voc20", "context59", "ade20k"}
# number of classes, official pictures and background as the benchmarks are cited everywhere
CITED = {
    "voc21": (21, 1449, "background"),
    "context60": (60, 5104, "background"),
    "coco_object": (81, 5000, "background"),
    "voc20": (20, 1449, None),
    "cityscapes": (19, 500, None),
    "context59": (59, 5104, None),
    "ade20k": (150, 2000, None),
    "coco_stuff": (171, 5000, None),
}


def true_classes(name, values):
    """What the benchmark counts at each pixel, pixel by pixel."""
    answer = np.empty(values.shape, np.int64)
    for place, value in np.ndenumerate(values):
        if value == 255 or (name in ZERO_IS_IGNORED and value == 0):
            answer[place] = 255
        else:
            answer[place] = int(value) - (name in ZERO_IS_IGNORED)
    return answer


@pytest.mark.parametrize("name", DATASETS)
def test_facts_are_those_of_the_benchmark(name):
    facts = benchmark(name)
    background = None if facts.background is None else facts.classes[facts.background]
    assert (len(facts.classes), facts.images, background) == CITED[name]
    assert len(set(facts.classes)) == len(facts.classes)
    labels = facts.values[1] - facts.values[0] + 1
    assert labels - facts.reduce_zero_label == len(facts.classes)
    assert facts.reduce_zero_label == (name in ZERO_IS_IGNORED)
    if isinstance(facts.palette, tuple):
        assert len(set(facts.palette)) == len(facts.classes)
        assert all(len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in facts.palette)


@pytest.mark.parametrize("name", DATASETS)
def test_a_tree_is_read_as_it_was_written(name, tmp_path):
    tree = make_tree(name, tmp_path)
    dataset = open_dataset(name, tree.root)
    assert [sample.name for sample in dataset] == list(tree.names)
    for index, sample in enumerate(dataset):
        assert (sample.image_path, sample.annotation_path) == (
            tree.pictures[sample.name],
            tree.annotations[sample.name],
        )
        annotation = dataset.annotation(index)
        assert annotation.dtype.is_signed
        assert np.array_equal(annotation.numpy(), true_classes(name, tree.values[sample.name]))
        assert np.array_equal(dataset.labels(sample), annotation.numpy())
    highest = max(int(dataset.annotation(index)[:1, :8].max()) for index in range(len(dataset)))
    assert highest in (len(dataset.classes) - 1, 255)


@pytest.mark.parametrize("name", DATASETS)
def test_the_folder_that_holds_the_data_set_does_as_well(name, tmp_path):
    tree = make_tree(name, tmp_path / "data")
    spelt = name.replace("_", "-").upper()
    for given in (tree.root, tree.root.parent, tmp_path / "data", str(tmp_path / "data")):
        assert open_dataset(spelt, given).samples == open_dataset(name, tree.root).samples


def test_coco_object_is_found_in_the_folder_of_coco_stuff(tmp_path):
    tree = make_tree("coco_object", tmp_path)
    moved = tree.root.rename(tmp_path / "coco_stuff164k")
    assert open_dataset("coco-object", tmp_path).root == moved


def test_the_split_file_gives_the_order_and_leaves_others_out(tmp_path):
    tree = make_tree("voc21", tmp_path, count=3)
    order = [tree.names[2], tree.names[0]]
    save_lines(tree.root / "ImageSets/Segmentation/val.txt", ["", *order, ""])
    assert [sample.name for sample in open_dataset("voc21", tmp_path)] == order


def test_the_split_of_another_part_is_told_by_its_length(tmp_path, caplog):
    tree = make_tree("voc21", tmp_path)
    assert len(open_dataset("voc21", tmp_path)) == 3
    (record,) = caplog.records
    said = f"{tree.root / 'ImageSets/Segmentation/val.txt'}: 3 pictures, PASCAL VOC 2012 with background has 1449"
    assert record.getMessage().startswith(said)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_every_kind_of_label_file_gives_its_numbers(mode, tmp_path):
    tree = make_tree("ade20k", tmp_path, count=1)
    (name,) = tree.names
    values = tree.values[name]
    kinds = {"L": np.uint8, "P": np.uint8, "I;16": np.uint16}
    image = Image.fromarray(values.astype(kinds[mode]))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(tree.annotations[name])
    dataset = open_dataset("ade20k", tmp_path)
    assert np.array_equal(dataset.annotation(0).numpy(), true_classes("ade20k", values))


def test_a_turned_picture_has_the_size_that_it_is_shown_with(tmp_path):
    tree = make_tree("ade20k", tmp_path, count=1)
    (name,) = tree.names
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(tree.pictures[name], exif=exif)  # stored 32 wide, shown 48 wide
    assert open_dataset("ade20k", tmp_path).annotation(0).shape == SIZE


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"dataset: expected one of voc21, .*, coco_stuff, received 'voc'"):
        open_dataset("voc", tmp_path)


def remove_all(folder):
    for path in folder.iterdir():
        path.unlink()


# what is done to a tree of three pictures; the file that the message names; what the message says beside
BROKEN = [
    (
        "voc21",
        lambda t: t.annotations[t.names[1]].unlink(),
        "SegmentationClass/2007_000042.png",
        "annotation is not there",
    ),
    ("voc21", lambda t: t.pictures[t.names[2]].unlink(), "JPEGImages/2007_000061.jpg", "picture is not there"),
    ("voc21", lambda t: (t.root / "ImageSets/Segmentation/val.txt").unlink(), "val.txt", "no such split file"),
    ("voc21", lambda t: save_lines(t.root / "ImageSets/Segmentation/val.txt", []), "val.txt", "an empty split file"),
    (
        "voc21",
        lambda t: save_lines(t.root / "ImageSets/Segmentation/val.txt", [t.names[0], "2007_000042.jpg"]),
        "val.txt",
        "line 2: expected the name of a picture without .jpg, received '2007_000042.jpg'",
    ),
    (
        "voc21",
        lambda t: save_lines(t.root / "ImageSets/Segmentation/val.txt", ["/JPEGImages/a.jpg /SegmentationClass/a.png"]),
        "val.txt",
        "line 1: expected the name of a picture",
    ),
    (
        "context59",
        lambda t: save_lines(t.root / "ImageSets/SegmentationContext/val.txt", [t.names[0]] * 2),
        "val.txt",
        "2008_000002 stands there more than once",
    ),
    (
        "context60",
        lambda t: remove_all(t.root / "SegmentationClassContext"),
        "SegmentationClassContext",
        "an empty folder",
    ),
    (
        "context60",
        lambda t: remove_all(t.root / "SegmentationClassContext"),
        "Context",
        "s2clip convert context --data",
    ),
    ("coco_object", lambda t: t.annotations[t.names[0]].unlink(), "000000000139_instanceTrainIds.png", "is not there"),
    ("coco_object", lambda t: t.annotations[t.names[0]].unlink(), "000000000139", "s2clip convert coco-object --data"),
    ("coco_stuff", lambda t: t.pictures[t.names[0]].unlink(), "images/val2017/000000000139.jpg", "is not there"),
    (
        "cityscapes",
        lambda t: t.annotations[t.names[2]].unlink(),
        "munster/munster_000000_000019_gtFine",
        "is not there",
    ),
    ("ade20k", lambda t: remove_all(t.root / "images/validation"), "images/validation", "an empty folder"),
    (
        "ade20k",
        lambda t: [path.rename(path.with_suffix(".JPEG")) for path in t.pictures.values()],
        "images/validation",
        "no file ends in .jpg (3 end in .JPEG)",
    ),
]


@pytest.mark.parametrize(("name", "damage", "file", "said"), BROKEN)
def test_a_broken_tree_is_refused_in_one_line(name, damage, file, said, tmp_path):
    tree = make_tree(name, tmp_path)
    damage(tree)
    with pytest.raises(DatasetError) as refused:
        open_dataset(name, tree.root)
    message = str(refused.value)
    assert file in message.split(": ")[0]
    assert said in message
    assert "\n" not in message
    assert "; " in message  # what to do


BAD_LABELS = [
    ("voc21", 21, "expected labels 0 to 20 or 255, received 21", "PASCAL VOC 2012"),
    ("ade20k", 151, "expected labels 0 to 150 or 255, received 151", "ADE20K"),
    ("cityscapes", 33, "expected labels 0 to 18 or 255, received 33", "s2clip convert cityscapes --data"),
    ("coco_stuff", 181, "expected labels 0 to 170 or 255, received 181", "s2clip convert coco-stuff --data"),
    ("context59", 60, "expected labels 0 to 59 or 255, received 60", "s2clip convert context --data"),
    ("context60", 254, "expected labels 0 to 59 or 255, received 254", "--overwrite"),
]


@pytest.mark.parametrize(("name", "label", "said", "fix"), BAD_LABELS)
def test_a_label_that_the_data_set_does_not_have_is_refused(name, label, said, fix, tmp_path):
    tree = make_tree(name, tmp_path)
    values = tree.values[tree.names[1]].copy()
    values[-1, -1] = label
    save(tree.annotations[tree.names[1]], values)
    dataset = open_dataset(name, tmp_path)
    dataset.annotation(0)
    with pytest.raises(DatasetError) as refused:
        dataset.annotation(1)
    message = str(refused.value)
    assert message.startswith(str(tree.annotations[tree.names[1]]))
    assert said in message
    assert fix in message


def test_sixteen_bits_out_of_range_and_many_bad_labels(tmp_path):
    tree = make_tree("ade20k", tmp_path, count=2)
    first, second = (tree.annotations[name] for name in tree.names)
    Image.fromarray(np.full(SIZE, 1000, np.uint16)).save(first)
    save(second, np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE).clip(0, 254).astype(np.uint8))
    dataset = open_dataset("ade20k", tmp_path)
    with pytest.raises(DatasetError, match="received 1000 to 1000"):
        dataset.annotation(0)
    with pytest.raises(DatasetError, match="received 151, 152, 153, 154, 155 and 99 more"):
        dataset.annotation(1)


UNREADABLE = {
    "colours": (lambda path: save(path, np.zeros((*SIZE, 3), np.uint8)), "expected one label per pixel"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read as a label map"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as a label map"),
    "text": (lambda path: path.write_text("no picture"), "cannot be read as a label map"),
    "gone": (lambda path: path.unlink(), "no such annotation"),
    "size": (lambda path: save(path, np.zeros((30, 48), np.uint8)), "expected 48x32, the size of"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_annotation_that_cannot_be_used_is_named(kind, tmp_path):
    tree = make_tree("voc21", tmp_path)
    dataset = open_dataset("voc21", tmp_path)
    damage, said = UNREADABLE[kind]
    damage(tree.annotations[tree.names[0]])
    with pytest.raises(DatasetError) as refused:
        dataset.annotation(0)
    assert str(refused.value).startswith(str(tree.annotations[tree.names[0]]))
    assert said in str(refused.value)
    dataset.annotation(1)


def test_a_folder_that_is_not_there_or_holds_something_else(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder; PASCAL VOC 2012 with background: download"):
        open_dataset("voc21", tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file: is a file, not a folder"):
        open_dataset("voc21", tmp_path / "file")
    with pytest.raises(
        DatasetError, match=r"no pictures of ADE20K .*looked for .*ade/ADEChallengeData2016/images/valid"
    ):
        open_dataset("ade20k", tmp_path)


def test_hidden_files_do_not_count(tmp_path):
    tree = make_tree("ade20k", tmp_path)
    for path in (*tree.pictures.values(), *tree.annotations.values()):
        path.with_name(f"._{path.name}").write_bytes(b"left by a file system")
    assert len(open_dataset("ade20k", tmp_path)) == 3


FAMILIES = ("trident", "sclip", "clearclip", "corrclip", "cliper", "names")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_have_one_entry_per_class(name, family):
    facts = benchmark(name)
    prompts = facts.prompts(family)
    assert len(prompts.entries) == len(facts.classes)
    words = [word.strip() for entry in prompts.entries for word in entry.split(";")]
    assert all(words)
    if facts.background is not None:
        assert prompts.negative == ()


def test_prompts_are_the_published_words():
    assert benchmark("voc21").prompts("trident").entries[4] == "ship"
    assert benchmark("voc21").prompts("sclip").entries[20].split("; ")[:2] == ["television monitor", "tv monitor"]
    assert benchmark("voc21").prompts("clearclip").entries[0] == "background"
    assert len(benchmark("voc21").prompts("trident").entries[0].split("; ")) == 26
    assert len(benchmark("coco_object").prompts("trident").entries[0].split("; ")) == 17
    assert benchmark("voc20").prompts("corrclip").entries[14] == "people"
    assert benchmark("voc20").prompts("cliper").entries[14] == "person with clothes, people, human"
    assert benchmark("cityscapes").prompts("sclip").entries[6] == "trafficlight"
    assert benchmark("cityscapes").prompts("cliper").entries[6] == "traffic light"
    assert benchmark("ade20k").prompts("cliper").entries[12] == "person with cloth people human"
    assert benchmark("coco_stuff").prompts("clearclip").entries[52] == "hotdog"
    assert benchmark("voc20").prompts("cliper").negative[:2] == ("ground", "land")
    with pytest.raises(ValueError, match=r"prompts: expected one of trident, sclip, .*, names, received 'gem'"):
        benchmark("voc21").prompts("gem")


def test_a_data_set_is_a_sequence():
    dataset = Dataset(benchmark("voc21"), None, ())
    assert len(dataset) == 0
    assert dataset.classes[1] == "aeroplane"
    with pytest.raises(IndexError):
        dataset[0]
    assert vocabulary(dataset.classes).class_index[-1] == 20


def test_layouts_of_the_helper_are_all_data_sets():
    assert set(LAYOUTS) == set(DATASETS)
