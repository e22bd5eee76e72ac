"""What `--engine ray` reads from and writes to object stores and other filesystems; without Ray."""

import errno
import io
import json
import os
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from object_store import ACCESS, object_store
from PIL import Image
from pycocotools import mask as rle

from s2clip import Segmenter, scenes
from s2clip.cli import main
from s2clip.cluster.addresses import Store, found, opened, public, read_list
from s2clip.cluster.files import named_addresses, with_content
from s2clip.cluster.rows import RUN, RowSink
from s2clip.cluster.segmenting import Job, Segmenting
from s2clip.cluster.shards import Columns, _read
from s2clip.errors import DatasetError, OutputError

CLASSES = ["sky", "tree", "house; hut"]


@pytest.fixture(scope="module")
def at():
    with object_store() as address:
        yield address


@pytest.fixture(scope="module")
def contents():
    buffers = [io.BytesIO() for _ in range(4)]
    for seed, buffer in enumerate(buffers):
        Image.fromarray(scenes.generate(seed, (40, 56))[0]).save(buffer, "PNG")
    return [buffer.getvalue() for buffer in buffers]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("tiny", device="cpu", method="clip").set_classes(CLASSES)


def put(address, content):
    filesystem, path = opened(address)
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def tar_of(contents):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for place, content in enumerate(contents):
            member = tarfile.TarInfo(f"{place}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def parquet_of(table):
    buffer = io.BytesIO()
    pq.write_table(pa.table(table), buffer)
    return buffer.getvalue()


def shard(address, columns=Columns(id="id"), done=()):  # noqa: B008 - a value
    tables = _read(pa.table({"shard": [address], "name": ["n"]}), columns, frozenset(done), 2)
    return [row for table in tables for row in table.to_pylist()]


def test_an_object_store_is_read_as_a_disk_is(at, contents):
    for name in ("in/a/1.png", "in/a/1.jpg", "in/b/2.png", "in/b/notes.txt", "in/2.png"):
        put(at(name), contents[1 if name[-5] == "1" else 2])
    put(at("in/s/1.tar"), tar_of(contents))
    put(at("in/s/2.parquet"), parquet_of({"image": contents[:2], "id": ["x", "y"]}))
    put(at("in/s/3.parquet"), parquet_of({"image": [at("in/2.png"), at("in/gone.png")], "id": ["x", "y"]}))
    put(at("in/list.txt"), b"# of two\n\na/1.png\ns3://elsewhere/3.png\n")

    def names(path):
        return [public(one).removeprefix("s3://bucket/in/") for one in found(at(path))]

    assert names("in/*.png") == ["2.png"]
    assert names("in/**/*.png") == ["2.png", "a/1.png", "b/2.png"]
    assert names("in/a/") == ["a/1.jpg", "a/1.png"]
    assert names("in/s/*") == ["s/1.tar", "s/2.parquet", "s/3.parquet"]
    assert read_list(at("in/list.txt")) == [at("in/a/1.png"), "s3://elsewhere/3.png"]
    named = named_addresses([*found(at("in/a/")), at("in/2.png"), at("in/gone.png")], done={"s3://bucket/in/2.png"})
    assert [one["stem"] for one in named] == ["bucket/in/a/1.jpg", "bucket/in/a/1.png", "bucket/in/gone"]
    rows = [with_content(one) for one in named]
    assert [row["content"] for row in rows] == [contents[1], contents[1], None]
    assert rows[2]["error"]
    assert [row["content"] for row in shard(at("in/s/1.tar"))] == contents
    assert [row["key"] for row in shard(at("in/s/2.parquet"), done=["n/x"])] == ["n/y"]
    (there, gone) = shard(at("in/s/3.parquet"))
    assert (there["content"], gone["content"]) == (contents[2], None)
    told = json.dumps([{**row, "content": None} for row in [*rows, *shard(at("in/s/1.tar")), gone]])
    assert ACCESS not in told
    assert "endpoint" not in told


def test_a_tar_of_an_object_store_is_asked_for_in_large_pieces(at, contents, caplog):
    put(at("in/t/1.tar"), tar_of(contents * 10))
    with caplog.at_level("INFO", logger="werkzeug"):  # moto's server says each request
        assert len(shard(at("in/t/1.tar"))) == 40
    asked = [record.getMessage() for record in caplog.records if "GET /bucket/in/t/1.tar" in record.getMessage()]
    assert 1 <= len(asked) <= 2


@pytest.mark.parametrize(
    ("address", "said"),
    [("in/none/", "no picture or shard"), ("none/*.tar", "no picture or shard"), ("in/b/*.tif", "no picture or shard")],
)
def test_nothing_at_an_address_is_a_line_without_credentials(at, address, said):
    with pytest.raises(DatasetError, match=said) as wrong:
        found(at(address))
    assert ACCESS not in str(wrong.value)
    with pytest.raises(DatasetError, match="not a list that can be read"):
        read_list(at("in/none.txt"))


def lines_of(segmenter, contents, formats=("png", "coco")):
    job = Job({}, CLASSES, None, None, formats)
    names = [f"photos/{place}.png" for place in range(len(contents))]
    rows = [
        {"key": name, "path": name, "stem": name, "content": one} for name, one in zip(names, contents, strict=True)
    ]
    return Segmenting(segmenter, job)(rows)


def sink_of(address, segmenter, formats=("png", "coco"), **more):
    sink = RowSink(address, formats, **more)
    sink.settle(segmenter.settings, CLASSES, None)
    return sink


def read(address):
    filesystem, path = opened(address)
    return pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet").to_table()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("where", ["disk", "object store"])
def test_rows_say_what_files_say_and_others_read_them(where, at, contents, segmenter, tmp_path):
    address = at("out/rows") if where == "object store" else str(tmp_path / "rows")
    sink = sink_of(address, segmenter)
    for line in lines_of(segmenter, contents):
        sink.add(line["row"])
    sink.finish([{"source": "bad.png", "error": "no picture"}])
    table = read(address)
    assert json.loads(table.schema.metadata[b"s2clip.classes"]) == CLASSES
    run = json.loads(Store(address).read(RUN))
    assert (run["rows"], run["failed"][0]["source"]) == (4, "bad.png")
    rows = sorted(table.to_pylist(), key=lambda row: row["id"])
    for row, content in zip(rows, contents, strict=True):
        result = segmenter(content)
        labels = result.segmentation.numpy()
        assert row["png"] == result.to_bytes("png")
        for one in row["coco"]:
            size = {"size": [row["height"], row["width"]], "counts": one["counts"]}
            assert (rle.decode(size).astype(bool) == (labels == one["category_id"])).all()
        assert sum(one["area"] for one in row["coco"]) == labels.size
        assert row["shares"] == list(result.shares.values())
        assert row["confidence"] == pytest.approx(float(result.confidence.mean()), abs=1e-6)
        assert sum(dict(row["timings_ms"]).values()) > 0
        assert row["settings_sha256"] == run["settings_sha256"]


def test_a_row_is_there_once_whatever_is_killed_and_done_again(contents, segmenter, tmp_path):
    address, lines = str(tmp_path / "rows"), lines_of(segmenter, contents, ("png",))
    first = sink_of(address, segmenter, ("png",))
    for line in (lines[0], lines[1], lines[0]):
        first.add(line["row"])
    first.flush()
    first.add(lines[2]["row"])  # and its driver is killed
    (tmp_path / "rows" / f".{'0' * 16}.tmp").write_bytes(b"half")
    with pytest.raises(OutputError, match="holds 2 rows; --resume"):
        sink_of(address, segmenter, ("png",))
    again = sink_of(address, segmenter, ("png",), resume=True)
    assert again.ids == {"photos/0.png", "photos/1.png"}
    for line in lines:
        again.add(line["row"])
    again.finish([])
    assert sorted(read(address)["id"].to_pylist()) == [f"photos/{place}.png" for place in range(4)]
    assert not list((tmp_path / "rows").glob(".*"))
    with pytest.raises(OutputError, match=r"holds rows of other settings: settings\.columns"):
        sink_of(address, segmenter, ("coco",), resume=True)


def test_the_same_rows_written_again_are_the_same_file(contents, segmenter, tmp_path):
    lines = lines_of(segmenter, contents[:2], ("png",))
    names = []
    for order in (lines, lines[::-1]):
        sink = sink_of(str(tmp_path / f"rows{len(names)}"), segmenter, ("png",))
        for line in order:
            sink.add(line["row"])
        sink.flush()
        names.append(Store(sink.store.address).names(".parquet"))
    assert names[0] == names[1]
    assert len(names[0]) == 1


def test_a_full_disk_leaves_no_half_file_and_the_rows_wait(contents, segmenter, tmp_path, monkeypatch):
    sink = sink_of(str(tmp_path / "rows"), segmenter, ("png",))
    sink.add(lines_of(segmenter, contents[:1], ("png",))[0]["row"])

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            sink.finish([])
    assert os.listdir(tmp_path / "rows") == [RUN]
    sink.finish([])
    assert read(str(tmp_path / "rows")).num_rows == 1


def test_what_is_no_sink_of_ours_is_refused(segmenter, tmp_path):
    pq.write_table(pa.table({"id": [1]}), tmp_path / "theirs.parquet")
    with pytest.raises(OutputError, match=f"holds theirs.parquet without {RUN}"):
        sink_of(str(tmp_path), segmenter)
    (tmp_path / RUN).write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        sink_of(str(tmp_path), segmenter)


class Folders(MemoryFileSystem):
    """With renames."""

    protocol = "folders"
    store, pseudo_dirs, moved = {}, [""], []

    def mv(self, one, other, **more):
        self.moved.append((one, other))
        super().mv(one, other, **more)


class Unmovable(Folders):
    protocol = "unmovable"
    store, pseudo_dirs = {}, [""]

    def mv(self, one, other, **more):
        raise NotImplementedError


@pytest.mark.parametrize("kind", [Folders, Unmovable])
def test_files_appear_whole_on_filesystems_with_and_without_rename(kind):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    store = Store(f"{kind.protocol}://rows")
    store.prepare()
    for content in (b"first", b"second"):
        store.put("part.parquet", content)
        assert store.read("part.parquet") == content
    assert store.names(".parquet") == ["part.parquet"]
    assert [name for name in kind.store if name.endswith(".tmp")] == []
    assert kind is Unmovable or {to.rpartition("/")[2] for _, to in kind.moved} == {"part.parquet"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["s3://bucket/a.png"], "s3://bucket/a.png: addresses are read by --engine ray"),
        (["s3://k:v@bucket/a.png", "0.png", "--engine", "ray"], "0.png: not at an address, as s3://bucket/a.png is"),
        (["0.png", "--rows", "rows"], "--rows: expected --engine ray with it"),
        (
            ["0.png", "--rows", "rows", "--engine", "ray", "--format", "npz"],
            "--format: expected png or coco with --rows",
        ),
        (["@none.txt"], "none.txt: not a list that can be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("0.png")
    result = CliRunner().invoke(main, ["segment", *options, "--classes", "sky, tree"])
    assert result.exit_code in (1, 2), result.output
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_list_names_pictures_for_one_process_too(contents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for place in (0, 1):
        (tmp_path / "photos" / f"{place}.png").write_bytes(contents[place])
    (tmp_path / "photos" / "list.txt").write_text("# mine\n0.png\n")
    options = ["--classes", "sky, tree", "--method", "clip", "--device", "cpu", "--json", "--format", "png"]
    result = CliRunner().invoke(main, ["segment", "@photos/list.txt", *options])
    assert result.exit_code == 0, result.output
    assert [one["source"] for one in json.loads(result.stdout)["images"]] == ["photos/0.png"]
