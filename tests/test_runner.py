"""A data set's evaluation: interrupted, shared out and over bad pictures, with the same bits in the end."""

import json
import math
import multiprocessing
import random
import socket

import numpy as np
import pytest
import torch
from painted import SIZE, Painted, run_and_report, run_as_rank, small_segmenter
from PIL import Image

from s2clip import scenes
from s2clip.errors import OutputError
from s2clip.evaluation import records
from s2clip.evaluation.answers import SavedAnswers
from s2clip.evaluation.runner import evaluate_dataset

COUNT = 40
UNTIMED = ("timings", "peak_memory_mib")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Painted(tmp_path_factory.mktemp("painted"), COUNT).make()


@pytest.fixture(scope="module")
def segmenter():
    return small_segmenter()


@pytest.fixture(scope="module")
def expected(dataset, segmenter, tmp_path_factory):
    """The files of one uninterrupted run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    evaluate_dataset(segmenter, dataset, folder, batch_size=2)
    return contents(folder)


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one which has loaded torch, and nothing of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["s2clip.evaluation.runner", "s2clip.segmenter", "open_clip.model", "timm"])
    return context


def contents(folder):
    """Everything a run writes but its times and its log."""
    document = json.loads((folder / "result.json").read_text())
    untimed = json.dumps({name: value for name, value in document.items() if name not in UNTIMED})
    files = [(folder / name).read_bytes() for name in ("protocol.json", "result.csv", "confusion.csv")]
    return [untimed, *files]


def oracle(pairs, classes):
    """IoU and accuracy per class by comparing pictures class by class, in NumPy, without a confusion matrix."""
    iou, accuracy = [], []
    for index in range(classes):
        both = given = true = 0
        for labels, target in pairs:
            counted = target != 255
            both += ((labels == index) & (target == index))[counted].sum()
            given += (labels == index)[counted].sum()
            true += (target == index).sum()
        iou.append(both / (given + true - both) if given + true else math.nan)
        accuracy.append(both / true if true else math.nan)
    return np.array(iou), np.array(accuracy)


def test_the_result_is_what_numpy_counts(dataset, segmenter, expected):
    document = json.loads(expected[0])
    pairs = [
        (segmenter(dataset[index].image_path).segmentation.numpy(), dataset.annotation(index).numpy())
        for index in range(COUNT)
    ]
    iou, accuracy = oracle(pairs, len(scenes.CLASSES))
    assert document["miou"] == round(100 * np.nanmean(iou), 4)
    assert document["mean_accuracy"] == round(100 * np.nanmean(accuracy), 4)
    counted = sum((target != 255).sum() for _, target in pairs)
    right = sum((labels == target).sum() for labels, target in pairs)
    assert document["pixel_accuracy"] == round(100 * right / counted, 4)
    for row, own in zip(document["per_class"], iou, strict=True):
        assert row["iou"] == (None if math.isnan(own) else round(100 * own, 4))
    assert document["pictures"] == {"in_dataset": COUNT, "asked": COUNT, "scored": COUNT}


def test_killed_at_any_moment_it_loses_one_batch_at_most(dataset, expected, processes, tmp_path):
    chance = random.Random(5)
    for stop_after in (1, 2, 1, 2):
        seen, pipe = processes.Pipe(duplex=False)
        child = processes.Process(target=run_and_report, args=(dataset, tmp_path, pipe))
        before = recorded(tmp_path)
        child.start()
        finished = sum(seen.recv() for _ in range(stop_after))
        child.join(timeout=chance.uniform(0, 0.02))
        child.kill()
        child.join()
        pipe.close()
        finished += sum(iter_until_closed(seen))
        assert recorded(tmp_path) >= before + finished - 2
        assert recorded(tmp_path) < COUNT, "killed too late to show anything"
        assert not (tmp_path / "result.json").exists()
    seen, pipe = processes.Pipe(duplex=False)
    before = recorded(tmp_path)
    child = processes.Process(target=run_and_report, args=(dataset, tmp_path, pipe))
    child.start()
    pipe.close()
    finished = sum(iter_until_closed(seen))
    child.join()
    assert child.exitcode == 0
    assert finished == COUNT - before, "pictures that were on the disk are not computed again"
    assert contents(tmp_path) == expected


def iter_until_closed(pipe):
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return


def recorded(folder):
    return sum(len(batch["pictures"]) for batch in records.read(folder))


def test_a_log_cut_at_any_byte_loses_its_last_line_only(tmp_path):
    path = records.shard_path(tmp_path, (0, 1))
    lines = [{"pictures": [{"index": index, "name": "é", "counts": [[0, 0, index]]}]} for index in range(3)]
    for line in lines:
        records.append(path, line)
    whole = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = sum(end - 1 <= cut for end in ends)  # without its line end a line is whole already
        assert records.read(tmp_path) == lines[:kept]
        records.append(path, lines[2])
        assert records.read(tmp_path) == [*lines[:kept], lines[2]]


def test_a_flipped_bit_in_the_log_is_found(tmp_path, caplog):
    """A bit of every byte of two lines, one after the other: what is taken is what was written."""
    path = records.shard_path(tmp_path, (0, 1))
    for index in range(2):
        picture = {"index": index, "name": f"p{index}", "counts": [[0, 1, 5]]}
        records.append(path, {"pictures": [picture], "seconds": 1.5, "stages_ms": {}, "peak_mib": {}})
    whole, written = path.read_bytes(), records.read(tmp_path)
    assert len(written) == 2
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.unlink()  # some disks wait where a file is cut to nothing first
        path.write_bytes(damaged)
        caplog.clear()
        found = records.read(tmp_path)
        assert len(found) < 2
        assert [one for one in written if one in found] == found
        assert "damaged or half-written; their pictures count as not done" in caplog.text


def test_a_damaged_line_is_done_again(dataset, segmenter, expected, tmp_path):
    evaluate_dataset(segmenter, dataset, tmp_path, batch_size=2)
    (path,) = (tmp_path / "records").iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b'"counts":[[') + 15] ^= 1
    path.write_bytes(damaged)
    evaluate_dataset(segmenter, dataset, tmp_path, batch_size=2, resume=True)
    assert contents(tmp_path) == expected


def test_a_log_without_checksums_is_taken_and_told(tmp_path, caplog):
    path = records.shard_path(tmp_path, (0, 1))
    path.parent.mkdir()
    batch = {"pictures": [{"index": 0, "name": "a", "counts": []}], "seconds": 1, "stages_ms": {}, "peak_mib": {}}
    path.write_text(json.dumps(batch) + "\n")
    assert records.read(tmp_path) == [batch]
    assert "1 lines of an earlier version, without a checksum" in caplog.text


def test_shards_add_up_to_the_single_run(dataset, segmenter, expected, tmp_path):
    reports = [evaluate_dataset(segmenter, dataset, tmp_path, shard=(i, 3), batch_size=2) for i in (2, 0, 1)]
    assert [report.complete for report in reports] == [False, False, True]
    assert contents(tmp_path) == expected
    assert [len(report.tally.done) for report in reports] == [12, 26, 40]


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_of_torchrun_add_up_to_the_single_run(dataset, expected, processes, tmp_path, shared):
    """Rank 0 has the result, whether the ranks see each other's files or not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = [tmp_path / ("shared" if shared else str(rank)) for rank in range(2)]
    children = [
        processes.Process(target=run_as_rank, args=(dataset, folder, rank, 2, port))
        for rank, folder in enumerate(folders)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert contents(folders[0]) == expected
    assert shared or not (folders[1] / "result.json").exists()


def test_a_limit_can_be_raised_later(dataset, segmenter, expected, tmp_path):
    part = evaluate_dataset(segmenter, dataset, tmp_path, limit=6, batch_size=2)
    assert part.document["pictures"] == {"in_dataset": COUNT, "asked": 6, "scored": 6}
    evaluate_dataset(segmenter, dataset, tmp_path, resume=True, batch_size=2)
    assert contents(tmp_path) == expected
    again = evaluate_dataset(segmenter, dataset, tmp_path, limit=6, resume=True, batch_size=2)
    assert again.document["miou"] == part.document["miou"]


def test_a_folder_of_other_settings_is_refused(dataset, segmenter, tmp_path):
    evaluate_dataset(segmenter, dataset, tmp_path, limit=2, batch_size=2)
    before = contents(tmp_path)
    other = small_segmenter(logit_scale=50.0)
    with pytest.raises(OutputError, match=r"method\.logit_scale is 40\.0 there and 50\.0 now; choose another"):
        evaluate_dataset(other, dataset, tmp_path, resume=True, batch_size=2)
    with pytest.raises(OutputError, match=r"dataset\.pictures is 40 there and 39 now"):
        evaluate_dataset(segmenter, Painted(dataset.root, COUNT - 1), tmp_path, resume=True, batch_size=2)
    other = small_segmenter().set_classes([f"other {name}" for name in range(len(scenes.CLASSES))])
    with pytest.raises(OutputError, match="prompts is"):
        evaluate_dataset(other, dataset, tmp_path, resume=True, batch_size=2)
    assert contents(tmp_path) == before


def test_an_earlier_run_is_not_continued_unasked(dataset, segmenter, tmp_path):
    evaluate_dataset(segmenter, dataset, tmp_path, limit=2, batch_size=2)
    for shard in (None, (0, 2)):
        with pytest.raises(OutputError, match="--resume goes on with it"):
            evaluate_dataset(segmenter, dataset, tmp_path, shard=shard, batch_size=2)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "records without protocol.json"), (b'{"dataset"', "cannot be read")]
)
def test_a_half_written_folder_is_refused(dataset, segmenter, tmp_path, content, message):
    evaluate_dataset(segmenter, dataset, tmp_path, limit=2, batch_size=2)
    protocol = tmp_path / "protocol.json"
    protocol.unlink() if content is None else protocol.write_bytes(content)
    with pytest.raises(OutputError, match=message):
        evaluate_dataset(segmenter, dataset, tmp_path, resume=True, batch_size=2)


def test_bad_pictures_are_recorded_and_the_rest_is_scored(segmenter, tmp_path):
    dataset = Painted(tmp_path, 8).make()
    dataset[1].image_path.write_bytes(dataset[1].image_path.read_bytes()[:200])
    dataset[2].annotation_path.unlink()
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(dataset[3].annotation_path)
    Image.fromarray(np.zeros((32, 41), np.uint8)).save(dataset[4].annotation_path)
    report = evaluate_dataset(segmenter, dataset, tmp_path / "out", batch_size=3)
    assert sorted(report.tally.done) == [0, 5, 6, 7]
    assert report.complete
    for (name, reason), index, words in zip(
        report.failed,
        (1, 2, 3, 4),
        ("truncated", "no such annotation", "expected labels 0 to 12 or 255, received 77", "expected 40x32"),
        strict=True,
    ):
        assert name == dataset[index].name
        assert name in reason
        assert words in reason
    document = json.loads((tmp_path / "out/result.json").read_text())
    assert [row["name"] for row in document["failed"]] == [dataset[index].name for index in (1, 2, 3, 4)]
    assert f"* {dataset[1].name}: " in (tmp_path / "out/result.md").read_text()

    dataset.make()  # mended: resuming tries them again
    mended = evaluate_dataset(segmenter, dataset, tmp_path / "out", resume=True, batch_size=3)
    whole = evaluate_dataset(segmenter, dataset, tmp_path / "whole", batch_size=3)
    assert mended.failed == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert torch.equal(mended.tally.matrix, whole.tally.matrix)


def test_a_picture_that_the_models_fail_on_takes_no_other_with_it(dataset, tmp_path, monkeypatch):
    segmenter = small_segmenter()
    encode, bad = segmenter._encode, str(dataset[1].image_path)

    def failing(pictures):
        if any(picture.source == bad for picture in pictures):
            raise RuntimeError("out of memory:\n tried to allocate")
        return encode(pictures)

    monkeypatch.setattr(segmenter, "_encode", failing)
    report = evaluate_dataset(segmenter, dataset, tmp_path, limit=6, batch_size=3)
    assert sorted(report.tally.done) == [0, 2, 3, 4, 5]
    assert report.failed == [(dataset[1].name, "out of memory: tried to allocate")]


def test_saved_predictions_score_as_the_method_itself(dataset, segmenter, expected, tmp_path):
    evaluate_dataset(segmenter, dataset, tmp_path / "own", batch_size=2, save_predictions=True)
    saved = tmp_path / "own/predictions"
    assert len(list(saved.iterdir())) == COUNT
    report = evaluate_dataset(SavedAnswers(saved, dataset), dataset, tmp_path / "scored")
    scored = json.loads(contents(tmp_path / "scored")[0])
    for key in ("miou", "pixel_accuracy", "per_class", "confusion_matrix_sha256"):
        assert scored[key] == json.loads(expected[0])[key]
    assert report.title == "predictions"


def test_predictions_that_are_missing_or_wrong_are_named(dataset, tmp_path):
    folder = tmp_path / "predictions"
    folder.mkdir()
    zeros = np.zeros(SIZE, np.uint8)
    Image.fromarray(zeros).save(folder / "scene-000.png")
    Image.fromarray(zeros.astype(np.uint16)).save(folder / "scene-001.png")
    Image.fromarray(zeros[1:]).save(folder / "scene-003.png")
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "scene-004.png")
    Image.fromarray(zeros + np.uint8(13)).save(folder / "scene-005.png")
    (folder / "scene-006.png").write_bytes(b"no picture")
    report = evaluate_dataset(SavedAnswers(folder, dataset), dataset, tmp_path / "out", limit=7)
    assert sorted(report.tally.done) == [0, 1]
    for (name, reason), words in zip(
        report.failed,
        (
            "no prediction for this",
            "expected 40x32",
            "received mode RGB",
            "class ids 0 to 12 wherever the annotation counts, received 13",
            "cannot be read as a label map (not a picture that can be read",
        ),
        strict=True,
    ):
        assert name in reason
        assert words in reason
