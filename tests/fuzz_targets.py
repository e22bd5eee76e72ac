"""What has to hold of every damaged file: a function of a folder and a number for each kind of file.

`test_fuzz.py` asks hypothesis for the numbers; `fuzz_run.py` (`make fuzz`) takes a hundred thousand in a row.
"""

import functools
import random
import time

import torch
from fuzzing import mutated, picture_seeds
from safetensors.torch import save

from s2clip import lines
from s2clip.backbones import tiny_dino
from s2clip.backbones.tiny_file import write_model
from s2clip.backbones.vfm import load_vfm
from s2clip.backbones.weights import Fingerprint, read_tensors
from s2clip.errors import DatasetError, ImageError, WeightsError
from s2clip.evaluation import records
from s2clip.pictures.images import read_image
from s2clip.pictures.label_maps import picture_size, read_label_map
from s2clip.words.text import read_classes, vocabulary

SECONDS = 20
"""Of one file: ordinary ones take milliseconds; a process that is ended had 5."""
PIXELS = 1_000_000
LISTS = (
    "sky\nhouse; hut # a comment\nBäume, 木\n\n",
    '["sky", "house; hut", ["tree", "wood"]]',
    "sky . tree . house .",
    "sky|tree|house",
    "“sky, blue”， tree、house",
)


@functools.cache
def seeds():
    return picture_seeds()


def put(path, content):
    """Write a file anew: some disks wait where one is cut to nothing first."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


def damaged_picture(folder, number):
    choice = random.Random(number)
    name = choice.choice(sorted(seeds()))
    return put(folder / "picture", mutated(seeds()[name], choice))


def held_to_one_line(error, path, most=200):
    text = str(error)
    assert text.startswith(f"{path}: "), text
    assert len(text) - len(str(path)) <= most, text
    assert text.isprintable(), text


def picture(folder, number):
    """A picture of the size that its header tells, or an `ImageError`; True where it could be read."""
    path = damaged_picture(folder, number)
    start, shape, size = time.perf_counter(), None, None
    try:
        image = read_image(path, max_pixels=PIXELS, max_seconds=5)
        shape = tuple(image.shape[1:])
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert 0 < image[0].numel() <= PIXELS
    except ImageError as error:
        held_to_one_line(error, path)
    try:
        size = picture_size(path)
    except DatasetError as error:
        held_to_one_line(error, path)
    assert shape is None or shape == size
    assert time.perf_counter() - start < SECONDS
    return shape is not None


def label_map(folder, number):
    path = damaged_picture(folder, number)
    start = time.perf_counter()
    try:
        ids = read_label_map(path)
        assert ids.ndim == 2
        assert ids.size
        assert ids.dtype.kind in "iu"
    except DatasetError as error:
        held_to_one_line(error, path, 300)
        return False
    assert time.perf_counter() - start < SECONDS
    return True


def class_list(folder, number):
    choice = random.Random(number)
    path = put(folder / "classes.txt", mutated(choice.choice(LISTS).encode(), choice))
    try:
        found = vocabulary(read_classes(path))
    except (ValueError, OSError):
        return False
    assert found.classes
    assert all(name and name == " ".join(name.split()) for name in found.words)
    return True


def run_log(folder, number):
    """Every line that is taken is one that was written."""
    batches = [
        {
            "pictures": [
                {"index": 2 * batch + one, "name": str(one), "counts": [[0, 1, 5], [1, 1, 7]]} for one in (0, 1)
            ],
            "seconds": 1.5 + batch,
            "stages_ms": {"clip": 2.0},
            "peak_mib": {"host": 3.0},
        }
        for batch in range(3)
    ]
    log = folder / "run" / "records" / "0-of-1.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    put(log, mutated(b"".join(lines.seal(batch) + b"\n" for batch in batches), random.Random(number)))
    found = records.read(folder / "run")
    assert all(batch in batches for batch in found)
    tally = records.tally(found, 2, range(6))
    assert tally.done == {one["index"] for batch in found for one in batch["pictures"]}
    assert tally.matrix.tolist() == [[0, 5 * len(tally.done)], [0, 7 * len(tally.done)]]
    return len(tally.done) == 6


def read_weights(path):
    """As users do: an embedded model of another file, or the tensors of a published one."""
    if path.suffix == ".tiny":
        return load_vfm("tiny-dino", weights=path, device="cpu").model.state_dict()
    return read_tensors("tiny", path, Fingerprint(path))


@functools.cache
def weight_files(folder):
    """{suffix: (bytes, tensors)} of a PyTorch file, a plain safetensors file and one of an embedded model."""
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)}
    torch.save(tensors, folder / "seed.pt")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    write_model(folder / "seed.tiny", tiny_dino.build_dino(sizes), sizes, {})
    return {
        "pt": ((folder / "seed.pt").read_bytes(), tensors),
        "safetensors": (save(tensors), None),
        "tiny": ((folder / "seed.tiny").read_bytes(), read_weights(folder / "seed.tiny")),
    }


def weights(folder, number):
    """The tensors as they were saved, or a `WeightsError`; of plain safetensors, which have no checksums, tensors."""
    choice = random.Random(number)
    suffix = choice.choice(("pt", "safetensors", "tiny"))
    content, expected = weight_files(folder)[suffix]
    path = put(folder / f"weights.{suffix}", mutated(content, choice))
    try:
        read = read_weights(path)
    except WeightsError as error:
        named = str(path) in str(error)
        assert named, error  # noqa: PT017 - the error is looked at, not expected
        return False
    assert all(isinstance(value, torch.Tensor) for value in read.values())
    if expected is not None:
        assert read.keys() == expected.keys()
        assert all(torch.equal(read[name], expected[name]) for name in expected)
    return True


TARGETS = {picture: 0.6, label_map: 0.2, class_list: 0.06, run_log: 0.07, weights: 0.07}
"""With the share of all mutations that each is given."""
