"""Disks that are full, that fail, and runs that were killed on them: nothing wrong, nothing half, all of it said."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_output_folder import CLASSES, loaded, painted, run  # noqa: F401 - fixtures

from s2clip import lines
from s2clip.errors import OutputError
from s2clip.files import Together, whole_file, writable_folder, write_json
from s2clip.results.formats import open_datasets
from s2clip.results.result import Result
from s2clip.temporaries import Room, create, remove_leftovers

FORMATS = ("--format", "png,overlay,coco-dataset,yolo")


def all_files(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


def full_disk(monkeypatch, first, last=10**9):
    """From the `first` file that is written on, up to the `last`, the disk is full."""
    calls, fsync = [], os.fsync

    def failing(descriptor):
        calls.append(descriptor)
        if first <= len(calls) <= last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    return calls


def hold_together(folder):
    """What is listed is there and whole, and there is nothing else; returns how many pictures that are."""
    there = all_files(folder)
    assert not [name for name in there if name.endswith(".tmp")]
    log = folder / "manifest.jsonl"
    listed = list(lines.read(log, (), consequence="")) if log.exists() else []
    for record in listed:
        for name, size in record["bytes"].items():
            assert (folder / name).stat().st_size == size
    beside = {"classes.json", "run.json", "manifest.jsonl", "annotations.coco.json", "yolo/data.yaml"}
    pictures = {"out.png", "out.overlay.png", "yolo/images/out.png", "yolo/labels/out.txt"}
    expected = {name.replace("out", record["stem"]) for record in listed for name in pictures}
    assert there - beside == expected
    for name in {"classes.json", "run.json", "annotations.coco.json"} & there:
        json.loads((folder / name).read_text())
    return len(listed)


@pytest.mark.parametrize(("lasting", "step"), [(False, 1), (True, 4)])
def test_a_disk_that_is_full_at_any_moment(run, tmp_path, monkeypatch, lasting, step):  # noqa: F811
    """Every file of a run of two pictures and a bad one is once the first that finds no room."""
    (tmp_path / "photos/c.png").write_bytes(b"no picture")
    done, number, exit_code = [], 1 - step, 3
    while exit_code == 3:
        number += step
        output = Path(f"out{number}")
        with monkeypatch.context() as patch:
            full_disk(patch, number, 10**9 if lasting else number)
            result = run("photos", "-o", output, *FORMATS)
        exit_code = result.exit_code
        done.append(hold_together(output))
        (said,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")] or [""]
        assert (exit_code == 3) == (f"{output}" in said) == ("cannot write there: No space left on device" in said)
        assert "--resume" not in said  # data sets of a run are not gone on with
        if done[-1]:
            document = json.loads((output / "run.json").read_text())
            assert {one["source"] for one in document["images"]} <= {"photos/a.png", "photos/b.png"}
            assert "failed: photos/c.png" in result.stderr or done[-1] == 1
            if not lasting and "run.json" not in said:
                assert len(document["images"]) == done[-1]
                assert len(document["failed"]) == result.stderr.count("failed: ")
    assert exit_code == 1
    assert done[0] == 0
    assert done[-1] == 2
    assert sorted(done) == done
    assert lasting or set(done) == {0, 1, 2}


def test_the_list_of_failures_is_written_into_the_room_kept_for_it(run, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "photos/0.png").write_bytes(b"no picture")
    held, released = [], []
    monkeypatch.setattr(Room, "hold", lambda room, size: held.append(size))
    monkeypatch.setattr(Room, "release", lambda room: released.append(len(held)))
    full_disk(monkeypatch, 7, 7)  # classes.json, run.json, two files and a line of a.png, one file of b.png
    result = run("photos")
    assert result.exit_code == 3
    assert "; 1 of 4 pictures are done; --resume does the others" in result.stderr
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert [one["source"] for one in record["images"]] == ["photos/a.png"]
    assert [one["source"] for one in record["failed"]] == ["photos/0.png"]
    assert held
    assert released
    monkeypatch.undo()


def test_a_file_that_may_grow_no_further(run, tmp_path):  # noqa: F811
    """The system's own refusal: a limit on the size of files, which the overlay alone is beyond."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, most[1]))
    try:
        ended = run("photos")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert ended.exit_code == 3, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "a.overlay.png: cannot write there: File too large; 0 of 3 pictures are done" in ended.stderr
    assert all_files(tmp_path / "out") == {"classes.json", "run.json"}


def test_what_is_printed_into_a_full_disk(tmp_path):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "s2clip", "models"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=600)
    assert ended.returncode == 3
    assert ended.stderr == "Error: what is printed cannot be written: No space left on device\n"


def test_a_name_that_no_file_can_have_is_one_pictures_failure(run, tmp_path):  # noqa: F811
    long = f"{'x' * 250}.png"
    (tmp_path / "photos/a.png").rename(tmp_path / "photos" / long)
    (tmp_path / "out/b.overlay.png").mkdir(parents=True)
    result = run("photos")
    assert result.exit_code == 1
    assert "cannot write there: File name too long" in result.stderr
    assert "out/b.overlay.png: cannot write there: a folder stands where a file is needed" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["b.overlay.png", "c.overlay.png", "c.png"]


def test_leftovers_of_killed_runs_go_and_a_neighbours_file_stays(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom s2clip.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as handle:\n"
        "    handle.write(b'half'); handle.flush(); print('there', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.png")]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert killed.stdout.readline() == b"there\n"
    assert remove_leftovers(tmp_path) == 0
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert len(all_files(tmp_path)) == 1
    path, handle = create(tmp_path)
    (tmp_path / ".hidden.tmp").touch()
    writable_folder(tmp_path)
    handle.close()
    assert all_files(tmp_path) == {path.name, ".hidden.tmp"}
    assert remove_leftovers(tmp_path) == 1


def test_every_writer_says_it_in_one_line(tmp_path, monkeypatch):
    result = Result(torch.zeros(4, 5, dtype=torch.int64), torch.ones(4, 5), ("sky",), image=torch.zeros(3, 4, 5).byte())
    from s2clip.analysis.plots.style import new_figure, save
    from s2clip.analysis.tables import write_csv

    figure = new_figure(1, 1)
    datasets = open_datasets(("coco-dataset", "cvat", "label-studio", "yolo"), tmp_path, ("sky",))
    for dataset in datasets.values():
        dataset.put(result, "a")
    before = all_files(tmp_path)
    full_disk(monkeypatch, 1)
    writers = {
        "log.jsonl": lambda path: lines.append(path, {"a": 1}),
        "a.json": lambda path: write_json(path, {}),
        "a.csv": lambda path: write_csv(path, ["a"], [[1]]),
        "a.svg": lambda path: save(figure, path),
        **{dataset.file.removesuffix(".json"): lambda path, one=dataset: one.close() for dataset in datasets.values()},
        **{
            f"result{suffix}": lambda path, name=name: result.save(path.parent, (name,))
            for name, suffix in {
                "png": ".png",
                "overlay": ".overlay.png",
                "npz": ".npz",
                "labelme": ".labelme.json",
            }.items()
        },
    }
    for name, write in writers.items():
        with pytest.raises(OutputError, match=rf"{name}.*: cannot write there: No space left on device$") as raised:
            write(tmp_path / name)
        assert raised.value.errno == errno.ENOSPC
    assert all_files(tmp_path) - {"log.jsonl"} == before
    assert not (tmp_path / "log.jsonl").read_bytes()


def test_files_appear_together(tmp_path):
    (tmp_path / "b").mkdir()

    def add(*names):
        with Together() as files:
            for name in names:
                files.add(tmp_path / name, b"1")
        return files

    with pytest.raises(OutputError, match="a folder stands where a file is needed"):
        add("a", "b")
    assert all_files(tmp_path) == set()
    files = add("a", "c")
    assert all_files(tmp_path) == {"a", "c"}
    files.take_back()
    assert all_files(tmp_path) == set()


def test_a_picture_that_a_data_set_cannot_take_is_in_none_of_them(tmp_path, monkeypatch):
    result = Result(torch.zeros(4, 5, dtype=torch.int64), torch.ones(4, 5), ("sky",), image=torch.zeros(3, 4, 5).byte())
    (dataset,) = open_datasets(("coco-dataset",), tmp_path, ("sky",)).values()
    dataset.put(result, "a")
    append = type(dataset._annotations).append

    def failing(spool, *texts):
        if spool is dataset._annotations:
            raise OutputError("full")
        append(spool, *texts)

    with monkeypatch.context() as patch:
        patch.setattr(type(dataset._annotations), "append", failing)
        with pytest.raises(OutputError, match="full"):
            dataset.put(result, "b")
    dataset.put(result, "c")
    document = json.loads(dataset.close().read_text())
    assert [one["file_name"] for one in document["images"]] == ["a.png", "c.png"]
    assert [one["image_id"] for one in document["annotations"]] == [1, 2]
    assert [one["id"] for one in document["annotations"]] == [1, 2]


def test_three_links_to_one_picture_are_three_results(run, tmp_path):  # noqa: F811
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "photos/a.png")
    (folder / "b.png").symlink_to(tmp_path / "photos/a.png")
    os.link(tmp_path / "photos/a.png", folder / "c.png")
    assert run("links").exit_code == 0
    maps = [np.asarray(Image.open(tmp_path / f"out/{name}.png")) for name in "abc"]
    assert all((one == maps[0]).all() for one in maps)
    assert len(json.loads((tmp_path / "out/run.json").read_text())["images"]) == 3


def test_room_is_given_back(tmp_path):
    room = Room(tmp_path)
    room.hold(1 << 16)
    room.hold(1 << 12)
    assert room._size == 1 << 16
    assert list(tmp_path.iterdir()) == []
    room.release()
    with whole_file(tmp_path / "a") as handle:
        handle.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
