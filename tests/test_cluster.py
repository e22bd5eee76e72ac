"""`--engine ray`: what actors do, by themselves; and runs on a real Ray of this machine."""

import contextlib
import errno
import io
import json
import os
import tarfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from s2clip import Segmenter, scenes
from s2clip.cli import main
from s2clip.cluster.attempts import Attempts, guarded
from s2clip.cluster.files import local_rows, with_content
from s2clip.cluster.pool import Actor, Cluster, spread
from s2clip.cluster.segmenting import Job, Segmenting
from s2clip.cluster.shards import Columns, _read, shard_names, stem_of

pytestmark = pytest.mark.filterwarnings(  # of Ray's own modules, by each other
    "ignore::DeprecationWarning:ray[.].*", "ignore::FutureWarning:ray[.].*", "ignore::ResourceWarning"
)

CLASSES = "sky, tree, house; hut"


class Died(BaseException):
    """The end of a process, as far as a test goes."""


def worker(deadly, done):
    def work(rows):
        for row in rows:
            if row["key"] in deadly:
                raise Died
        done.extend(row["key"] for row in rows)
        return [{"key": row["key"], "record": {}} for row in rows]

    return work


def until_it_lives(rows, work, attempts, most=3):
    """As Ray: a process that died is started again with the same rows."""
    for deaths in range(100):
        try:
            return guarded(rows, work, attempts, most), deaths
        except Died:
            continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_row_that_ends_its_process_is_found_and_named_and_the_others_are_done(most):
    attempts, done = Attempts(most), []
    rows = [{"key": key} for key in "abcdefgh"]
    lines, deaths = until_it_lives(rows, worker("cf", done), attempts, most)
    assert {line["key"] for line in lines if "error" in line} == {"c", "f"}
    assert [line["key"] for line in lines] == list("abcdefgh")
    assert f"{most} times" in lines[2]["error"]
    assert set(done) == set("abdegh")
    assert deaths == 1 + most + most


def test_rows_that_happened_to_be_there_when_a_process_was_killed_are_not_blamed():
    attempts, done, kills = Attempts(3), [], iter([True, True, False])

    def work(rows):
        if next(kills, False):
            raise Died
        return worker("", done)(rows)

    lines, deaths = until_it_lives([{"key": "a"}, {"key": "b"}], work, attempts)
    assert deaths == 2
    assert not any("error" in line for line in lines)
    again = [{"key": "a"}, {"key": "b"}]  # a lost result is computed again, together as at first
    assert attempts.begin([row["key"] for row in again]) == []


def test_a_process_that_ends_after_its_work_is_not_started_for_ever():
    attempts, rows = Attempts(3), [{"key": "a"}, {"key": "b"}]
    tries = [[]]
    while lines := guarded(rows, worker("", tries[-1]), attempts, 3):
        if not tries[-1] or len(tries) > 100:
            break
        tries.append([])
    assert len(tries) == 1 + 5
    assert all("ended again and again" in line["error"] for line in lines)


def rows_of(folder, count=3):
    for seed in range(count):
        Image.fromarray(scenes.generate(seed, (40, 56))[0]).save(folder / f"{seed}.png")
    paths = [folder / f"{seed}.png" for seed in range(count)]
    return [with_content({"key": path.name, "path": str(path), "stem": path.stem}) for path in paths]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("tiny", device="cpu", method="clip").set_classes(CLASSES)


def job(output, **more):
    return Job({"method": "clip"}, CLASSES.split(", "), None, output, ("png",), **more)


def test_an_actor_writes_what_one_process_writes_and_may_do_it_twice(segmenter, tmp_path):
    rows, work = rows_of(tmp_path), Segmenting(segmenter, job(tmp_path / "out"))
    first, again = work(rows), work(rows[:1])
    assert [line["key"] for line in first] == ["0.png", "1.png", "2.png"]
    assert first[0]["record"]["files"] == again[0]["record"]["files"] == {"png": str(tmp_path / "out" / "0.png")}
    for row in rows:
        written = (tmp_path / "out" / f"{row['stem']}.png").read_bytes()
        assert written == segmenter(row["path"]).to_bytes("png")
    assert sorted(os.listdir(tmp_path / "out")) == ["0.png", "1.png", "2.png"]


def test_one_thread_loads_and_does_all_the_work_of_an_actor(monkeypatch):
    """OpenMP's team of a second thread costs a third of the speed."""
    monkeypatch.setattr("s2clip.cluster.pool.Remote", lambda handle: handle)
    seen = []

    def load():
        seen.append(threading.get_ident())
        return lambda rows: [{"key": row["key"], "thread": threading.get_ident()} for row in rows]

    actor = Actor(load, Attempts(), 3)
    lines = [json.loads(line.as_py()) for key in "ab" for line in actor(pa.table({"key": [key]}))["line"]]
    assert [line["key"] for line in lines] == ["a", "b"]
    assert {line["thread"] for line in lines} == set(seen) != {threading.get_ident()}


def test_a_bad_a_lost_and_an_unwritable_picture_end_no_others(segmenter, tmp_path, monkeypatch):
    rows = rows_of(tmp_path)
    rows[0]["content"] = b"no picture"
    rows.insert(1, with_content({"key": "gone", "path": str(tmp_path / "gone.png"), "stem": "gone"}))
    fsync, full = os.fsync, iter([True])

    def disk(handle):
        if next(full, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", disk)
    lines = Segmenting(segmenter, job(tmp_path / "out"))(rows)
    said = [line.get("error", "done") for line in lines]
    for text, wanted in zip(said, ("not a picture that can be", "No such file", "No space left", "done"), strict=True):
        assert wanted in text
    assert os.listdir(tmp_path / "out") == ["2.png"]


def shards_of(folder, kind):
    """Two shards of three pictures; the second one's first picture is damaged."""
    rows = rows_of(folder)
    contents = [row["content"] for row in rows]
    for number, bad in ((0, None), (1, 0)):
        own = [b"no picture" if place == bad else content for place, content in enumerate(contents)]
        if kind == "tar":
            with tarfile.open(folder / f"{number}.tar", "w") as tar:
                for place, content in enumerate(own):
                    for name, data in ((f"s/{place}.png", content), (f"s/{place}.json", b"{}")):
                        member = tarfile.TarInfo(name)
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        elif kind == "bytes":
            pq.write_table(pa.table({"image": own, "id": ["x", "y", "z"]}), folder / f"{number}.parquet")
        else:
            paths = [row["path"] for row in rows[:2]] + [str(folder / "gone.png")]
            pq.write_table(pa.table({"image": paths, "id": ["x", "y", "z"]}), folder / f"{number}.parquet")
    return contents


def read_shards(sources, done=()):
    columns, rows = Columns(id="id"), 2
    names = shard_names(sources)
    tables = [
        table
        for source, name in zip(sources, names, strict=True)
        for table in _read(pa.table({"shard": [source], "name": [name]}), columns, frozenset(done), rows)
    ]
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("kind", ["tar", "bytes", "paths"])
def test_shards_give_their_pictures_with_keys_that_stay(kind, tmp_path):
    contents = shards_of(tmp_path, kind)
    suffix = "tar" if kind == "tar" else "parquet"
    sources = [str(tmp_path / f"{number}.{suffix}") for number in range(2)]
    rows = read_shards(sources)
    own = [f"s/{place}.png" for place in range(3)] if kind == "tar" else ["x", "y", "z"]
    assert [row["key"] for row in rows] == [f"{number}/{one}" for number in range(2) for one in own]
    assert [row["stem"] for row in rows[:3]] == [f"0/{one.removesuffix('.png')}" for one in own]
    assert rows[0]["content"] == contents[0]
    assert ("No such file" in (rows[2]["error"] or "")) == (kind == "paths")
    assert [row["key"] for row in read_shards(sources, done=[rows[0]["key"], rows[4]["key"]])] == [
        rows[place]["key"] for place in (1, 2, 3, 5)
    ]


def test_shards_are_read_from_other_filesystems(tmp_path):
    shards_of(tmp_path, "tar")
    fsspec.filesystem("memory").pipe("/bucket/0.tar", (tmp_path / "0.tar").read_bytes())
    there, here = read_shards(["memory://bucket/0.tar"]), read_shards([str(tmp_path / "0.tar")])
    assert [row["content"] for row in there] == [row["content"] for row in here]
    assert there[0]["path"] == "memory://bucket/0.tar#s/0.png"


def test_shards_of_one_name_are_told_apart_and_no_picture_gets_out_of_the_output(tmp_path):
    assert shard_names(["a/1.tar", "b/1.tar", "s3://c/2.tar"]) == ["a/1", "b/1", "c/2"]
    assert stem_of("1/../../etc/x.png") == "1/etc/x"
    with tarfile.open(tmp_path / "1.tar", "w") as tar:
        for name in ("a.jpg", "a.png"):
            member = tarfile.TarInfo(name)
            member.size = 3000
            tar.addfile(member, io.BytesIO(bytes(3000)))
    assert [row["stem"] for row in read_shards([str(tmp_path / "1.tar")])] == ["1/a", "1/a.png"]
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:5000])
    assert "cannot be read on" in read_shards([str(tmp_path / "1.tar")])[-1]["error"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--engine", "spark"], 2, "--engine: expected one of local, ray, received 'spark'"),
        (["--workers", "2"], 2, "--workers: expected --engine ray with it"),
        (["--engine", "ray", "--workers", "0"], 2, "--workers: expected at least 1, received 0"),
        (["--engine", "ray", "--gpus-per-worker", "-1"], 2, "--gpus-per-worker: expected 0 to 64"),
        (["--engine", "ray", "--format", "yolo"], 2, "--engine ray: not for --format (yolo)"),
        (["1.tar"], 2, "1.tar: shards are read by --engine ray"),
        (["1.tar", "--engine", "ray"], 2, "0.png: not a shard, as 1.tar is"),
        (["--column", "x"], 2, "--column: of shards (.parquet), and none is named"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(options, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows_of(tmp_path, 1)
    shards = [one for one in options if one.endswith(".tar")]
    rest = [one for one in options if one not in shards]
    result = CliRunner().invoke(main, ["segment", "0.png", *shards, "--classes", CLASSES, *rest])
    assert result.exit_code == code, result.output
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_without_ray_a_line_says_what_to_install(tmp_path, monkeypatch):
    from s2clip.cluster import session

    monkeypatch.setattr(session, "find_spec", lambda name: None)
    rows_of(tmp_path, 1)
    arguments = ["segment", str(tmp_path / "0.png"), "--classes", CLASSES, "--engine", "ray", "-o", str(tmp_path / "o")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.output.strip()) == (3, "Error: --engine ray needs Ray: pip install 's2clip[ray]'")


def answers(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture
def pretended(monkeypatch):
    """Ray without Ray: rows are lists, and actors are this process, which does the last rows first."""
    from s2clip.cluster import files, pool, session, shards

    def lines(rows, load, cluster, blocks=None):
        work = load()
        for start in reversed(range(0, len(rows), 2)):
            yield from work(rows[start : start + 2])

    def read(sources, columns, done, rows, readers):
        for source in sources:
            shards._check(source, columns)
        return read_shards(sources, done)

    monkeypatch.setattr(files, "_rows", lambda items, *more: list(map(with_content, items)))
    monkeypatch.setattr(shards, "shard_rows", read)
    monkeypatch.setattr(pool, "spread", lines)
    monkeypatch.setattr(pool, "introduced", lambda load, cluster: (load().settings, []))
    monkeypatch.setattr(session, "connected", lambda address, workers: contextlib.nullcontext())


COMMON = ("--classes", CLASSES, "--method", "clip", "--device", "cpu", "--json")


def photos(folder):
    (folder / "photos" / "below").mkdir(parents=True)
    rows_of(folder / "photos", 5)
    rows_of(folder / "photos" / "below", 1)
    (folder / "photos" / "bad.png").write_bytes(b"no picture")


def equal_to_one_process(folder, *options):
    common = ["segment", "photos", "--recursive", *COMMON]
    alone = CliRunner().invoke(main, [*common, "-o", "alone"])
    spread = CliRunner().invoke(main, [*common, "-o", "spread", "--engine", "ray", *options])
    assert (alone.exit_code, spread.exit_code) == (1, 1), spread.output
    told = [json.loads(one.stdout) for one in (alone, spread)]
    assert told[0]["failed"] == told[1]["failed"]
    images = [{one["source"]: one["shares"] for one in told_by["images"]} for told_by in told]
    assert images[0] == images[1]
    assert len(images[0]) == 6
    assert answers(folder / "alone") == answers(folder / "spread") != {}
    assert answers(folder / "alone" / "below") == answers(folder / "spread" / "below") != {}
    settings = [json.loads((folder / one / "run.json").read_text())["settings"] for one in ("alone", "spread")]
    assert settings[0] == settings[1]


def test_actors_write_what_one_process_writes_and_resume_does_the_rest(pretended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path)
    equal_to_one_process(tmp_path)
    (tmp_path / "spread" / "3.png").unlink()
    others = (path for path in (tmp_path / "spread").rglob("*.png") if path.name != "3.overlay.png")
    states = {path: path.stat().st_mtime_ns for path in others}
    common = ["segment", "photos", "--recursive", *COMMON]
    again = CliRunner().invoke(main, [*common, "-o", "spread", "--engine", "ray", "--resume"])
    assert "5 of 7 pictures were done before" in again.stderr
    assert answers(tmp_path / "alone") == answers(tmp_path / "spread")
    assert len((tmp_path / "spread" / "manifest.jsonl").read_text().splitlines()) == 7
    assert {path: path.stat().st_mtime_ns for path in states} == states


def test_shards_become_rows_and_resume_adds_what_is_missing(pretended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = shards_of(tmp_path, "bytes")
    common = ["segment", "*.parquet", "--id-column", "id", *COMMON, "--engine", "ray", "--rows", "rows"]
    first = CliRunner().invoke(main, [*common])
    assert first.exit_code == 1, first.output  # one of six is damaged
    assert "failed: 1/x" in first.stderr
    pq.write_table(pa.table({"image": contents, "id": ["x", "y", "z"]}), "1.parquet")
    refused = CliRunner().invoke(main, [*common])
    assert (refused.exit_code, refused.output) == (3, "Error: rows: holds 5 rows; --resume goes on with them\n")
    again = CliRunner().invoke(main, [*common, "--resume"])
    assert again.exit_code == 0, again.output
    assert "5 pictures were done before" in again.stderr
    assert [one["source"] for one in json.loads(again.stdout)["images"]] == ["1.parquet#x"]
    table = pq.read_table("rows").sort_by("id")
    assert table["id"].to_pylist() == [f"{number}/{own}" for number in range(2) for own in "xyz"]
    assert table["png"].to_pylist()[:3] == table["png"].to_pylist()[3:]
    assert not Path("out").exists()


def test_two_pictures_of_one_id_are_told(pretended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = shards_of(tmp_path, "bytes")
    pq.write_table(pa.table({"image": [contents[0], contents[1], contents[0]], "id": ["x", "x", "z"]}), "0.parquet")
    common = ["segment", "0.parquet", *COMMON, "--engine", "ray"]
    named = CliRunner().invoke(main, [*common, "--id-column", "id", "--rows", "named"])
    assert named.exit_code == 1, named.output
    assert "failed: 0/x: another picture has the same id" in named.stderr
    assert sorted(pq.read_table("named")["id"].to_pylist()) == ["0/x", "0/z"]


@pytest.fixture(scope="module")
def ray_here():
    """One small Ray for all tests of this module; commands find it connected."""
    from s2clip.cluster import session

    session.prepare()
    import ray

    how = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False, "logging_level": "error"}
    ray.init("local", num_cpus=2, object_store_memory=80_000_000, **how)
    session._hush()
    yield
    ray.shutdown()


@pytest.mark.slow
def test_actors_of_ray_write_what_one_process_writes(ray_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path)
    equal_to_one_process(tmp_path, "--workers", "2")


@pytest.mark.long
def test_a_picture_that_ends_its_process_is_named_and_the_others_are_done(ray_here, tmp_path):
    """By two actors, which have all processors of this Ray: readers need none."""
    rows_of(tmp_path, 6)
    paths = sorted(tmp_path.glob("*.png"))

    def load():
        import signal

        def work(rows):
            if any(row["stem"] == "2" for row in rows):
                os.kill(os.getpid(), signal.SIGKILL)
            return [{"key": row["key"], "record": {"size": len(row["content"])}} for row in rows]

        return work

    lines = list(
        spread(local_rows(paths, [path.stem for path in paths], 2, 1), load, Cluster(workers=2, rows=3, tries=1), 2)
    )
    assert {Path(line["key"]).stem for line in lines if "error" in line} == {"2"}
    assert {Path(line["key"]).stem: line["record"]["size"] for line in lines if "record" in line} == {
        path.stem: path.stat().st_size for path in paths if path.stem != "2"
    }


def test_evaluation_by_actors_counts_what_one_process_counts(tmp_path, monkeypatch):
    """What actors do with their rows, in this process, in another order, one of them given up."""
    from data_trees import make_tree

    from s2clip.cluster import scoring, session

    def lines(items, load, cluster):
        assert cluster.workers == 2
        work = load()
        yield from work(items[3:])
        yield from work(items[:2])
        yield {"key": items[2]["key"], "error": "ended the process"}

    monkeypatch.setattr(scoring, "spread_items", lines)
    monkeypatch.setattr(scoring, "introduced", lambda load, cluster: (load().settings, []))
    monkeypatch.setattr(session, "connected", lambda address, workers: contextlib.nullcontext())
    make_tree("voc21", tmp_path / "data", count=5)
    monkeypatch.chdir(tmp_path)
    common = ["evaluate", "voc21", "--data", "data", "--method", "clip", "--device", "cpu", "--json"]
    alone = CliRunner().invoke(main, [*common, "-o", "alone"])
    spread = CliRunner().invoke(main, [*common, "-o", "spread", "--engine", "ray", "--workers", "2"])
    assert (alone.exit_code, spread.exit_code) == (0, 1), spread.output
    assert "ended the process" in spread.stderr
    options = [*common, "-o", "spread", "--engine", "ray", "--workers", "2", "--resume"]
    monkeypatch.setattr(scoring, "spread_items", lambda items, load, cluster: iter(load()(items)))
    spread = CliRunner().invoke(main, options)
    assert spread.exit_code == 0, spread.output
    figures = [json.loads(one.stdout)["rows"][0] for one in (alone, spread)]
    assert figures[0]["miou"] == figures[1]["miou"] > 0
    confusion = [next((tmp_path / one).rglob("confusion.csv")).read_text() for one in ("alone", "spread")]
    assert confusion[0] == confusion[1]
    assert np.sum([int(value) for line in confusion[0].splitlines()[1:] for value in line.split(",")[1:]]) > 0


def test_no_cluster_at_the_address_is_a_line():
    from s2clip.cluster.session import connected
    from s2clip.errors import ClusterError

    with pytest.raises(ClusterError, match=r"no Ray at 127\.0\.0\.1:1: "), connected("127.0.0.1:1", workers=1):
        pass


def test_without_an_address_no_cluster_of_others_is_joined(monkeypatch):
    import ray

    from s2clip.cluster.session import connected

    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *given, **more: asked.append(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with connected(None, workers=1):
        assert asked == [("local",)]
