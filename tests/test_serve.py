"""`s2clip serve` over its own HTTP, and the service behind it without."""

import asyncio
import contextlib
import http.client
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import serve_load as load
from click.testing import CliRunner
from PIL import Image

from s2clip import Segmenter, scenes
from s2clip.cli import main
from s2clip.serving.answers import chosen_form
from s2clip.serving.cache import EncodedCache, size_of
from s2clip.serving.limits import Limits, Refused
from s2clip.serving.service import Query, Service

ROOT = Path(__file__).parents[1]
TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def files():
    return load.pictures(4)


@pytest.fixture(scope="module")
def service():
    return Service.load(
        ("clip", "s2clip"), device="cpu", limits=Limits(max_pixels=100_000, max_words=5, max_letters=20)
    )


@pytest.fixture(scope="module")
def server():
    with load.serving(*load.options("clip"), "--refine", "none", "--max-queue", "24") as (port, process):
        yield port, process


def labels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_known_picture_costs_the_decision_and_gives_the_same(service, files):
    first = service.answer([Query(files[0], "sky, tree", "s2clip")])[0]
    again = service.answer([Query(files[0], "sea, house", "s2clip")])[0]
    assert (first.known, again.known) == (False, True)
    assert set(again.stages) <= {"text", "classify"} < set(first.stages)
    assert sum(first.stages.values()) >= 5 * sum(again.stages.values())
    alone = Segmenter.from_pretrained("tiny", device="cpu")
    assert again.result.to_bytes("png") == alone.set_classes("sea, house")(files[0]).to_bytes("png")


def test_a_batch_encodes_each_new_picture_once_and_answers_every_query_in_its_place(service, files, monkeypatch):
    segmenter, encoded = service.segmenters["clip", "none"], []
    own = segmenter.encode_batch
    monkeypatch.setattr(segmenter, "encode_batch", lambda some: encoded.append(len(some)) or own(some))
    queries = [Query(files[1], "sky"), Query(files[1], "sky, sea"), Query(b"no picture", "sky"), Query(files[2], "sky")]
    answers = service.answer(queries)
    assert encoded == [2]
    assert [len(one.result.classes) if not isinstance(one, Refused) else one.status for one in answers] == [
        1,
        2,
        422,
        1,
    ]
    assert [answers[0].known, answers[1].known] == [False, True]


def test_one_picture_that_cannot_be_computed_spoils_no_other(service, files, monkeypatch):
    segmenter = service.segmenters["clip", "none"]
    own = segmenter.encode_batch

    def failing(some):
        if any(one.pixels.shape[1] == 40 for one in some):
            raise RuntimeError("out of memory")
        return own(some)

    monkeypatch.setattr(segmenter, "encode_batch", failing)
    large = load.pictures(1, (40, 64))[0]
    bad, good = service.answer([Query(large, "sky"), Query(files[3], "sky")])
    assert (bad.status, str(bad)) == (500, "cannot be computed here: out of memory")
    assert good.result.segmentation.shape == (48, 64)


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        (("", "sky"), 422, "picture: expected the bytes"),
        (("picture", ""), 422, "classes: expected names"),
        (("picture", "sky, sky"), 422, "every name once"),
        (("picture", "a, b, c, d, e; f"), 422, "classes: expected at most 5 words, received 6"),
        (("picture", "x" * 21), 422, "words of at most 20 letters, not 21"),
        (("picture", "sky", "gem"), 422, "clip with refine none, s2clip with refine none"),
        (("bomb", "sky"), 422, "pixels"),
        (("cut", "sky"), 422, "picture: "),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(service, files, query, status, said):
    contents = {"": b"", "picture": files[0], "bomb": load.bomb(), "cut": files[0][: len(files[0]) // 2]}
    with pytest.raises(Refused, match=said) as refused:
        service.segment(contents[query[0]], *query[1:])
    assert refused.value.status == status


def test_the_cache_stays_within_its_bytes_and_forgets_the_oldest(files):
    segmenter = Segmenter.from_pretrained("tiny", device="cpu", method="clip")
    encoded = [segmenter.encode(one) for one in files]
    size = size_of(encoded[0])
    assert size >= encoded[0].picture.nbytes + encoded[0].features.nbytes
    cache = EncodedCache(2 * size)
    for key, one in enumerate(encoded[:2]):
        cache.put(key, one)
    assert cache.get(0) is encoded[0]
    cache.put(2, encoded[2])
    assert (cache.get(1), len(cache), cache.bytes, cache.evicted) == (None, 2, 2 * size, 1)
    small = EncodedCache(size - 1)
    small.put(0, encoded[0])
    assert (len(small), small.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("image/*", "png"),
        ("image/png", "png"),
        ("image/png; content=overlay", "overlay"),
        ("application/json;content=coco", "coco"),
        ("text/html, image/png;q=0.5, application/json;q=0.4", "png"),
        ("image/png;q=0.1, application/json", "json"),
    ],
)
def test_the_accept_header_chooses(accept, form):
    assert chosen_form(accept) == form


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/png; content=depth", "image/png;q=x"])
def test_an_accept_header_that_nothing_meets_is_told_the_forms(accept):
    with pytest.raises(Refused, match="content=overlay") as refused:
        chosen_form(accept)
    assert refused.value.status == 406


def test_mixed_requests_of_many_clients_are_answered_as_they_must_be(server):
    port, process = server
    cases, held = load.make_cases(100, seed=0, different=3, method="clip"), []
    outcomes, _ = asyncio.run(load.send(port, cases, 16, held, process.pid))
    assert {one.kind for one in outcomes} == set(load.PARTS)
    assert [one for one in outcomes if not one.right] == []
    assert len(outcomes) == len(cases)
    assert any(one.known for one in outcomes)


def ask(port, method, path, body=None, headers=()):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_the_server_tells_how_it_is(server, files):
    port, _ = server
    _, told, headers = ask(port, "POST", "/segment?classes=sky,sea,zebra", files[0])
    assert json.loads(told)["unknown_words"] == ["zebra"]
    assert re.search(r"classify;dur=\d", headers["server-timing"])
    status, metrics, _ = ask(port, "GET", "/metrics")
    assert status == 200
    for line in (
        r's2clip_requests_total\{status="200"\} [1-9]',
        r's2clip_stage_seconds_count\{stage="classify"\} [1-9]',
    ):
        assert re.search(line, metrics), line
    assert re.search(r's2clip_cache_bytes\{worker="0"\} [1-9]', metrics)
    assert "s2clip_queue 0.0" in metrics
    described = json.loads(ask(port, "GET", "/openapi.json")[1])["paths"]["/segment"]["post"]
    assert {one["name"] for one in described["parameters"]} == {"classes", "method", "refine"}
    assert set(described["requestBody"]["content"]) == {"application/octet-stream", "multipart/form-data"}
    assert {"200", "413", "422", "503"} <= set(described["responses"])


def test_a_full_queue_is_refused_at_once(server, files):
    """24 may wait; of 40 that never finish their upload the others are told to come back."""
    port, _ = server

    async def crowd():
        case = load.Case("slow", "/segment?classes=sky", "*/*", files[0])
        return [one.status for one in await asyncio.gather(*(load.ask(port, case) for _ in range(40)))]

    statuses = asyncio.run(crowd())
    assert statuses.count(503) == 16
    # 0: the connection was closed while the client was still sending, which may cost it the answer.
    assert statuses.count(408) + statuses.count(0) == 24


def test_the_pages_curl_lines_work(server, tmp_path, monkeypatch):
    port, _ = server
    Image.fromarray(scenes.generate(0, (48, 64))[0]).save(tmp_path / "photo.jpg")
    text = (ROOT / "docs" / "serve.md").read_text().replace("naclip", "clip").replace(":8000", f":{port}")
    lines = re.findall(r"^curl .*$", text, flags=re.MULTILINE)
    assert len(lines) == 6
    told = [subprocess.run([*shlex.split(line), "-f"], cwd=tmp_path, capture_output=True, check=True) for line in lines]
    assert [row["name"] for row in json.loads(told[0].stdout)["classes"]] == ["sky", "house; hut", "tree"]
    assert labels((tmp_path / "labels.png").read_bytes()).shape == (48, 64)
    assert labels((tmp_path / "overlay.png").read_bytes()).shape[2] == 3
    assert json.loads(told[3].stdout)["annotations"]
    assert told[4].stdout == b"ok"


def test_a_token_is_asked_for_everywhere_but_at_health():
    from starlette.testclient import TestClient

    from s2clip.serving.gate import Gate

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    client = TestClient(Gate(inner, path="/segment", limits=Limits(), token=TOKEN))
    for path in ("/segment", "/metrics", "/docs", "/"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer other"}).status_code == 401
        assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/health").text == "inside"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--method", "nothing"], 2, "method"),
        (["--refine", "nothing"], 2, "refine"),
        (["--model", "nothing"], 2, "model"),
        (["--host", "example.org"], 2, "--host: expected one of 127.0.0.1"),
        (["--port", "80"], 2, "--port: expected 1024 to 65535, received 80"),
        (["--cache", "much"], 2, "much"),
        (["--max-queue", "0"], 2, "max"),
        (["--token-file", "none.txt"], 2, "--token-file none.txt: No such file"),
    ],
)
def test_a_server_that_cannot_be_is_refused_in_a_line(options, code, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["serve", *options])
    assert result.exit_code == code, result.output
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.long
def test_models_that_are_not_there_end_the_start_with_a_line(tmp_path, capfd):
    options = ["--model", "ViT-B-16", "--local-files-only", "--cache-dir", str(tmp_path)]
    with pytest.raises(RuntimeError, match="ended with 3"), load.serving(*options):
        pass
    assert "ViT-B-16" in (said := capfd.readouterr().err)
    assert "Traceback" not in said
