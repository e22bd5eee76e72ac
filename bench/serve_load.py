"""Mixed requests of many clients against `s2clip serve` on this machine: who is answered how, how fast, what it holds.

    python bench/serve_load.py [--requests 1000] [--clients 16] [--seed 0]

Kinds: `valid`, whose answers must equal the library's own byte by byte; `bomb`, a header of 10^10 pixels; `huge`, more
bytes than are taken; `broken`, no picture, no words, no such form; `slow`, an upload that never ends; `silent`, half a
request line; `cut`, a connection that is closed amid the upload. Each has a status that it must be given (0: closed
without one). Traffic goes to 127.0.0.1 only, and ends with the requests.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

# Last: this folder's profile.py must not hide the standard library's.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

HOST = "127.0.0.1"
SECONDS = 2.0
MEGABYTES = 0.5
# All known to the embedded model: two that it cannot tell apart are told by the last bit, which a batch may change.
WORDS = ("sky, house; hut, tree", "sea, boat, sky", "meadow, rock, house, sky, tree")
FORMS = {"png": "image/png", "overlay": "image/png; content=overlay", "coco": "application/json; content=coco"}
PARTS = {"valid": 60, "broken": 14, "bomb": 6, "huge": 6, "cut": 8, "slow": 3, "silent": 3}
"""Of 100 requests."""
STATUS = {"valid": {200}, "broken": {406, 422}, "bomb": {422}, "huge": {413}, "cut": {0}, "slow": {408}, "silent": {0}}
LONGEST = 120.0


class Case(NamedTuple):
    """A request to be sent, and the body that must come back (None: any)."""

    kind: str
    target: str
    accept: str
    body: bytes
    expected: bytes | None = None


class Outcome(NamedTuple):
    """What came back. known: the picture had been encoded before."""

    kind: str
    status: int
    seconds: float
    right: bool
    known: bool = False


def pictures(count: int, size: tuple[int, int] = (48, 64)) -> list[bytes]:
    """PNG files of painted scenes."""
    from PIL import Image

    from s2clip import scenes

    files = []
    for seed in range(count):
        buffer = io.BytesIO()
        Image.fromarray(scenes.generate(seed, size)[0]).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def bomb() -> bytes:
    """A PNG whose header says 100,000 x 100,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 64


def make_cases(count: int, seed: int, different: int = 12, method: str = "s2clip") -> list[Case]:
    """The same cases for the same seed; every kind comes at least once from 100 on."""
    from s2clip import Segmenter

    rng, files = random.Random(seed), pictures(different)
    segmenter = Segmenter.from_pretrained("tiny", device="cpu", method=method)
    own = {}
    for place, words in itertools.product(range(different), WORDS):
        result = segmenter.segment(segmenter.encode(files[place]), words)
        own |= {(place, words, form): result.to_bytes(form) for form in FORMS}
    kinds = [kind for kind, share in PARTS.items() for _ in range(share)]
    rng.shuffle(kinds)
    return [_case(kind, rng, files, own) for kind in itertools.islice(itertools.cycle(kinds), count)]


def _case(kind: str, rng: random.Random, files: Sequence[bytes], own: Mapping[tuple, bytes]) -> Case:
    place, words, form = rng.randrange(len(files)), rng.choice(WORDS), rng.choice(list(FORMS))
    target, accept = f"/segment?classes={quote(words)}", FORMS[form]
    picture = files[place]
    if kind == "valid":
        return Case(kind, target, accept, picture, own[place, words, form])
    if kind == "broken":
        worst = (
            Case(kind, target, accept, picture[: rng.randrange(1, len(picture) // 2)]),
            Case(kind, target, accept, rng.randbytes(200)),
            Case(kind, "/segment", accept, picture),
            Case(kind, target + "&method=nothing", accept, picture),
            Case(kind, target, "text/html", picture),
        )
        return rng.choice(worst)
    return Case(kind, target, accept, {"bomb": bomb(), "huge": b"\0" * round(1e6 * MEGABYTES + 1)}.get(kind, picture))


async def ask(port: int, case: Case) -> Outcome:
    """One request on a connection of its own."""
    start = time.perf_counter()
    try:
        async with asyncio.timeout(LONGEST):
            status, headers, body = await _exchange(port, case)
    except TimeoutError:
        return Outcome(case.kind, -1, time.perf_counter() - start, False)
    right = status in STATUS[case.kind] and (case.expected is None or body == case.expected)
    known = headers.get("x-s2clip-cache", "").startswith("hit")
    return Outcome(case.kind, status, time.perf_counter() - start, right, known)


async def _exchange(port: int, case: Case) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        if case.kind == "silent":
            writer.write(b"POST /segm")
            return _parsed(await reader.read())
        lines = [f"POST {case.target} HTTP/1.1", f"Host: {HOST}", f"Accept: {case.accept}", "Connection: close"]
        head = "\r\n".join([*lines, f"Content-Length: {len(case.body)}", "", ""]).encode()
        whole = case.kind not in ("cut", "slow")
        writer.write(head + (case.body if whole else case.body[: len(case.body) // 2]))
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            await writer.drain()
        if case.kind == "cut":
            return 0, {}, b""
        if case.kind == "slow":
            answer = asyncio.create_task(reader.read())
            for _ in range(3):  # and then no more: a byte sent after the answer would reset the connection
                writer.write(b"\0")
                await asyncio.wait([answer], timeout=SECONDS / 4)
            return _parsed(await answer)
        return _parsed(await reader.read())
    except ConnectionError:
        return 0, {}, b""
    finally:
        writer.close()


def _parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    if not answer:
        return 0, {}, b""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines}, body


async def send(port: int, cases: Sequence[Case], clients: int, held: list[tuple[float, float]], tree: int) -> list:
    """All cases by so many clients, each one after the other; `held` gets (seconds, bytes) of the processes' memory."""
    waiting, outcomes, start = iter(cases), [], time.perf_counter()

    async def client() -> None:
        for case in waiting:
            outcomes.append(await ask(port, case))
            if len(outcomes) % 10 == 0:
                held.append((len(outcomes), resident(tree)))

    await asyncio.gather(*(client() for _ in range(clients)))
    held.append((len(outcomes), resident(tree)))
    return [outcomes, time.perf_counter() - start]


def resident(pid: int) -> float:
    """Bytes of memory of a process and its descendants, each shared page by its share."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    return total


@contextlib.contextmanager
def serving(*options: str, environment: Mapping[str, str] | None = None) -> Iterator[tuple[int, subprocess.Popen]]:
    """(port, process) of a server that is ready; it is terminated afterwards, and must end by itself."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "s2clip", "serve", "--port", str(port), "--device", "cpu", *options]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, **(environment or {})})
        try:
            _wait_until_ready(port, process)
            yield port, process
            process.terminate()
            process.wait(60)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(port: int, process: subprocess.Popen) -> None:
    import http.client

    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError("the server is not ready after two minutes")


def slope(held: Sequence[tuple[float, float]]) -> float:
    """Bytes a request, by least squares, of the second half: what start-up and the cache take is in the first."""
    later = held[len(held) // 2 :]
    return statistics.linear_regression(*zip(*later, strict=True)).slope if len(later) > 2 else 0.0


def options(method: str = "s2clip") -> list[str]:
    """What the server is started with."""
    return ["--method", method, "--max-seconds", str(SECONDS), "--max-megabytes", str(MEGABYTES), "--quiet"]


def table(outcomes: Sequence[Outcome]) -> str:
    """Per kind: how many, how many as they must be, p50 and p95 in milliseconds; valid ones by what was known."""
    rows = ["| requests | count | right | p50 ms | p95 ms |", "|---|---|---|---|---|"]
    for kind in STATUS:
        for known in (False, True) if kind == "valid" else (False,):
            those = [one for one in outcomes if one.kind == kind and one.known == known]
            if those:
                times = sorted(1000 * one.seconds for one in those)
                name = f"{kind}, picture {'known' if known else 'new'}" if kind == "valid" else kind
                p50, p95 = times[len(times) // 2], times[min(len(times) - 1, round(0.95 * len(times)))]
                rows.append(f"| {name} | {len(those)} | {sum(one.right for one in those)} | {p50:.0f} | {p95:.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table, requests per second and what memory did; exit code 1 where anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases, held = make_cases(arguments.requests, arguments.seed), []
    with serving(*options()) as (port, process):
        before = resident(process.pid)
        outcomes, seconds = asyncio.run(send(port, cases, arguments.clients, held, process.pid))
    print(table(outcomes))
    print(
        f"\n{len(outcomes)} requests of {arguments.clients} clients in {seconds:.0f} s; memory of all processes ",
        end="",
    )
    print(f"{before / 1e6:.0f} MB before, {held[-1][1] / 1e6:.0f} MB after, slope {slope(held) / 1e3:.1f} kB a request")
    sys.exit(0 if all(one.right for one in outcomes) else 1)


if __name__ == "__main__":
    main()
