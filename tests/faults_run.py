"""`make test-faults`: what ends amid a run on Ray, at random moments; nothing may be lost, half there, or there twice.

    python tests/faults_run.py --trials 60 --seed 0

A Ray cluster of a head and two worker nodes on this machine runs `segment` into files, `segment` into rows and
`evaluate`, while an actor, a node or the driver is killed, the disk is full, or a picture kills whoever works on it.
Then the run goes on by `--resume`. Prints a line a trial; exit code 1 where anything was not as one process leaves it.
Only `evaluate` loads models, or all with --models; else a stand-in makes the label maps, whose actors start at once.
"""

import argparse
import base64
import collections
import contextlib
import errno
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

FAULTS = ("actor", "node", "driver", "disk", "poison")
WORKS = ("files", "rows", "files", "rows", "evaluate")
PICTURES, ROWS, SECONDS, LONGEST = 16, 4, 0.05, 240.0
CLASSES = "sky, tree, house; hut, meadow"
OPTIONS = ("--classes", CLASSES, "--method", "clip", "--device", "cpu", "--quiet")
COMMANDS = {
    "files": ("segment", "photos", "--format", "png", *OPTIONS, "-o", "{}"),
    "rows": ("segment", "photos", "--format", "png", *OPTIONS, "--rows", "{}"),
    "evaluate": ("evaluate", "--images", "photos", "--labels", "labels", *OPTIONS, "-o", "{}"),
}


class StandIn:
    """Rows → lines, as `Segmenting` gives them, by a hash of the picture in place of its label map. No torch."""

    settings = {"stand-in": True}  # noqa: RUF012 - as JSON values

    def __init__(self, output):
        self.output = output

    def __call__(self, rows):
        return [self._line(row) for row in rows]

    def _line(self, row):
        from s2clip.errors import OutputError
        from s2clip.files import whole_file

        record = {"source": row["path"], "height": 40, "width": 56, "shares": {}, "timings_ms": {}, "files": {}}
        line = {"key": row["key"], "stem": row["stem"], "record": record}
        content = stand_in(row["content"])
        if self.output is None:
            own = {"id": row["key"], "source": row["path"], "shares": [], "confidence": 0.5, "timings_ms": {}}
            return {**line, "row": {**own, "height": 40, "width": 56, "png": base64.b64encode(content).decode()}}
        try:
            with whole_file(self.output / f"{row['stem']}.png") as handle:
                handle.write(content)
        except OutputError as error:
            return {"key": row["key"], "error": str(error)}
        record["files"]["png"] = str(self.output / f"{row['stem']}.png")
        return line


def stand_in(content):
    return hashlib.sha512(content).digest() * 10


class Faulty:
    """An actor's work, slow enough to be hit, on a disk that is full for some writes, with a deadly picture."""

    def __init__(self, work, plan):
        self.work, self.settings, self.poison = work, work.settings, plan.get("poison")
        fill_disk(*plan.get("disk", (0, 0)))

    def __call__(self, rows):
        lines = []
        for row in rows:
            time.sleep(SECONDS)
            if row["key"] == self.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += self.work([row])
        return lines


def fill_disk(first, last):
    """From the `first` write of this process on to the `last` there is no room."""
    calls, fsync = [], os.fsync

    def full(handle):
        calls.append(handle)
        if first <= len(calls) < last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    os.fsync = full


def load_faulty(load, plan, output):
    return Faulty(StandIn(output) if load is None else load(), plan)


def drive(arguments, plan):
    """(exit code, output) of a command in this process. plan: of the faults; "models": whether they are loaded."""
    from dataclasses import replace
    from unittest.mock import patch

    from click.testing import CliRunner

    from s2clip import cli
    from s2clip.cli.engines import chosen_cluster
    from s2clip.cluster import pool

    def small(*given):
        return replace(chosen_cluster(*given), rows=ROWS)

    def spread(dataset, load, *more):
        output = None if models else load.__self__.output
        return own(dataset, partial(load_faulty, load if models else None, plan, output), *more)

    def introduced(load, cluster):
        return knows(load, cluster) if models else (StandIn.settings, [])

    own, knows, fsync, models = pool.spread, pool.introduced, os.fsync, plan.get("models")
    fill_disk(*plan.get("disk of the driver", (0, 0)))
    with (
        patch("s2clip.cluster.pool.spread", spread),
        patch("s2clip.cluster.pool.introduced", introduced),
        patch.object(importlib.import_module("s2clip.cli.segment"), "chosen_cluster", small),
        patch.object(importlib.import_module("s2clip.cli.evaluate"), "chosen_cluster", small),
        patch("s2clip.cluster.rows.SECONDS", 0.2),
    ):
        done = CliRunner().invoke(cli.main, arguments)
    os.fsync = fsync
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


class Nodes:
    """A head, where the driver is, and two nodes for the actors."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        health = {
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 5,
            "health_check_initial_delay_ms": 0,
        }
        self.small = {"object_store_memory": 80_000_000, "include_dashboard": False}
        self.cluster = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": health, **self.small})
        self.workers = [self.add() for _ in range(2)]
        self.address = self.cluster.address
        self._connect()

    def _connect(self):
        """One connection for all runs but those whose driver is killed, so that they find Ray warm."""
        import logging

        import ray

        from s2clip.cluster import session

        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
        session._hush()
        here = ray.get_runtime_context().get_node_id()
        assert here == self.cluster.head_node.node_id, "the driver is on a node that is going to be killed"

    def add(self):
        return self.cluster.add_node(num_cpus=2, **{**self.small, "include_dashboard": None})

    def kill_node(self, rng):
        """The machine is gone: its raylet and all below it, in one moment."""
        import psutil

        place = rng.randrange(2)
        raylet = psutil.Process(self.workers[place].all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return True

    def heal(self):
        """Another machine in place of one that is gone."""
        for place, node in enumerate(self.workers):
            if node.all_processes["raylet"][0].process.poll() is not None:
                self.workers[place] = self.add()

    def kill_actor(self, rng):
        """One of the actors that are there; False where none is."""
        import psutil

        below = psutil.Process().children(recursive=True)
        actors = []
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                actors += [process] if "MapWorker" in " ".join(process.cmdline()) else []
        if not actors:
            return False
        rng.choice(actors).kill()
        return True


def progress(work, output):
    """How many pictures are done."""
    if work == "files":
        return len(list(output.glob("*.png")))
    if work == "rows":
        return len(ids(output))
    return len(indices(output))


def ids(output):
    import pyarrow.parquet as pq

    return [one for path in output.glob("part-*") for one in pq.read_table(path, columns=["id"])["id"].to_pylist()]


def indices(output):
    """Of the pictures that are scored, in the order of the log."""
    found = []
    for path in output.glob("*/*/*/records/*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the end of a killed run
                found += [one["index"] for one in json.loads(line)["pictures"] if "counts" in one]
    return found


def result(work, output):
    """What has to be equal, and complaints about what nobody may leave."""
    import pyarrow.parquet as pq

    wrong = [f"leftover {path.name}" for path in output.rglob("*.tmp")]
    if work == "files":
        listed = [json.loads(line)["source"] for line in (output / "manifest.jsonl").read_text().splitlines()]
        images = [one["source"] for one in json.loads((output / "run.json").read_text())["images"]]
        for name, those in (("manifest", listed), ("run.json", images)):
            wrong += [f"{name}: {one} {count} times" for one, count in collections.Counter(those).items() if count > 1]
        files = {f"photos/{path.name}": path.read_bytes() for path in output.glob("*.png")}
        wrong += [] if set(files) == set(listed) == set(images) else ["manifest, run.json and files differ"]
        return files, wrong
    if work == "rows":
        own = ids(output)
        wrong += [f"{one} {count} times" for one, count in collections.Counter(own).items() if count > 1]
        table = pq.read_table(output, columns=["id", "png"])
        return dict(zip(table["id"].to_pylist(), table["png"].to_pylist(), strict=True)), wrong
    wrong += [f"index {one} {count} times" for one, count in collections.Counter(indices(output)).items() if count > 1]
    return {"confusion": next(output.glob("*/*/*/confusion.csv")).read_text()}, wrong


def settled(work, output):
    """What the next run may not touch: states of the files of pictures that are said to be done."""
    if work == "evaluate":
        return {path: path.read_bytes()[: 1 + path.read_bytes().rfind(b"\n")] for path in output.rglob("*.jsonl")}
    if work == "rows":
        return {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    manifest = output / "manifest.jsonl"
    stems = []
    for line in manifest.read_text().splitlines() if manifest.exists() else ():
        with contextlib.suppress(ValueError):
            stems.append(json.loads(line)["stem"])
    return {output / f"{stem}.png": (output / f"{stem}.png").stat().st_mtime_ns for stem in stems}


def touched(before):
    """Those that are another file now."""
    return [
        str(path)
        for path, state in before.items()
        if (not path.read_bytes().startswith(state) if isinstance(state, bytes) else path.stat().st_mtime_ns != state)
    ]


def trial(work, fault, models, rng, nodes, output, reference):
    """(what was wrong, what was tried)."""
    key = str(rng.randrange(PICTURES))
    plan = {"models": models}
    if fault == "poison":
        plan["poison"] = key if work == "evaluate" else f"photos/{int(key):02}.png"
    if fault == "disk":
        first = rng.randrange(1, PICTURES)
        plan[rng.choice(["disk", "disk of the driver"])] = (first, first + rng.randrange(1, PICTURES))
    arguments = [part.format(output) for part in COMMANDS[work]]
    arguments += ["--engine", "ray", "--address", nodes.address]
    two = ["--workers", "2"] if fault in ("node", "driver") else []
    moment, stop = (rng.randrange(PICTURES), rng.random()), threading.Event()
    strike = {"actor": partial(nodes.kill_actor, rng), "node": partial(nodes.kill_node, rng)}.get(fault)
    tried, wrong = f"{fault} after {moment[0]} pictures" if strike or fault == "driver" else f"{plan}", []
    if fault == "driver":
        command = [sys.executable, __file__, "--driver", json.dumps(plan), *arguments, *two]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        strike_when(lambda: process.kill() or True, work, output, moment, lambda: process.poll() is not None)
        process.wait(LONGEST)
        code, told = process.returncode, ""
    else:
        how = (strike, work, output, moment, stop.is_set)
        striker = threading.Thread(target=strike_when, args=how) if strike else None
        if striker:
            striker.start()
        code, told = drive([*arguments, *two], plan)
        stop.set()
        if striker:
            striker.join()
    if fault in ("actor", "node") and code != 0:
        tried += f" (exit code {code}: {told.strip()[-200:]})"
    if fault == "poison" and (code != 1 or "ended the process that worked on it, 3 times" not in told):
        wrong.append(f"the poisoned picture was not named: {code}, {told.strip()[-300:]}")
    if fault == "disk" and code not in (0, 1, 3):
        wrong.append(f"a full disk: exit code {code}, {told.strip()[-300:]}")
    nodes.heal()
    for _ in range(3):
        before = settled(work, output)
        finished = (output / "run.json").exists() or (output / "_run.json").exists() or bool(before)
        code, told = drive([*arguments, *(["--resume"] if finished else [])], {"models": models})
        wrong += [f"done again: {one}" for one in touched(before)]
        if code == 0:
            break
    if code != 0:
        return [*wrong, f"never ends well: {code}, {told.strip()[-300:]}"], tried
    found, complaints = result(work, output)
    wrong += complaints
    wanted = reference[work if models else "stand-in"]
    if found != wanted:
        names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        wrong.append(f"not what one process leaves: {names[:5]}")
    return wrong, tried


def strike_when(strike, work, output, moment, over):
    """Once so many pictures are done, and a moment later; where the strike finds nothing yet, again."""
    count, delay = moment
    while not over() and progress(work, output) < count:
        time.sleep(0.1)
    time.sleep(delay)
    while not over() and not strike():
        time.sleep(0.1)


def prepare(folder):
    """Pictures, label maps, and what one process makes of them."""
    import numpy as np
    from click.testing import CliRunner
    from PIL import Image

    from s2clip import cli, scenes

    os.chdir(folder)
    for name in ("photos", "labels"):
        Path(name).mkdir()
    for seed in range(PICTURES):
        picture, labels = scenes.generate(seed, (40, 56))
        Image.fromarray(picture).save(f"photos/{seed:02}.png")
        Image.fromarray((np.asarray(labels) % 4).astype(np.uint8)).save(f"labels/{seed:02}.png")
    reference = {}
    for work in ("files", "evaluate"):
        done = CliRunner().invoke(cli.main, [part.format(f"alone-{work}") for part in COMMANDS[work]])
        assert done.exit_code == 0, done.output
        reference[work] = result(work, Path(f"alone-{work}"))[0]
    painted = {f"photos/{path.name}": stand_in(path.read_bytes()) for path in Path("photos").iterdir()}
    return {**reference, "rows": reference["files"], "stand-in": painted}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="Number of the first trial.")
    parser.add_argument("--seconds", type=float, default=1e9, help="No trial begins later than that.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--work", choices=sorted(set(WORKS)))
    parser.add_argument("--models", action="store_true", help="Load them for every kind of work.")
    arguments = parser.parse_args()
    from s2clip.cluster.session import prepare as quiet

    quiet()
    found, tried, start = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        reference, nodes = prepare(folder), Nodes()
        try:
            for number in range(arguments.first, arguments.first + arguments.trials):
                if time.perf_counter() - start > arguments.seconds:
                    break
                rng = random.Random(arguments.seed << 32 | number)
                fault = arguments.fault or FAULTS[number % len(FAULTS)]
                work = arguments.work or WORKS[number // len(FAULTS) % len(WORKS)]
                output, began = Path(f"trial-{number}"), time.perf_counter()
                models = arguments.models or work == "evaluate"
                wrong, what = trial(work, fault, models, rng, nodes, output, reference)
                tried, found = tried + 1, found + bool(wrong)
                print(f"{number} {work}, {what}: {time.perf_counter() - began:.0f} s, {wrong or 'right'}", flush=True)
                shutil.rmtree(output)
        finally:
            import ray

            ray.shutdown()
            nodes.cluster.shutdown()
    print(f"{tried} trials in {time.perf_counter() - start:.0f} s, {found} not as they must be", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--driver"]:
        sys.exit(drive(sys.argv[3:], json.loads(sys.argv[2]))[0])
    main()
