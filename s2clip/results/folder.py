"""A folder of results that belong together: one list of classes, one set of settings, a line of the manifest a picture.

    classes.json, run.json   written before the first picture, and once more when all are done
    manifest.jsonl           a line for each picture whose files are there, on the disk before the next one begins

A run that is killed loses what was in flight, and nothing that it left is wrong. So does one whose disk is full; some
room is kept for its run.json. A later run with the same classes and settings adds to the folder; one with others is
refused.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2clip import lines
from s2clip.files import Together, place, writable_folder
from s2clip.results import sidecars
from s2clip.results.formats.dataset import Dataset
from s2clip.results.result import Result
from s2clip.temporaries import Room, remove_leftovers

ROOM = 1 << 16
"""Bytes kept for run.json, beside twice what the manifest has; that of 100 pictures takes as much."""


class OutputFolder:
    """What a folder holds of earlier runs, and what this one adds to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = {record["path"]: record for record in sidecars.read_manifest(path) if "path" in record}
        self._settings: Mapping[str, Any] = {}
        self._digest = ""
        self._room = Room(path)

    @property
    def stems(self) -> dict[str, str]:
        """Place → stem of the pictures that have results here."""
        return {path: record["stem"] for path, record in self.records.items()}

    @property
    def digest(self) -> str:
        """sha256 of the settings that were settled, in hexadecimal."""
        return self._digest

    def record_of(self, picture: Path) -> dict[str, Any] | None:
        """The line of the manifest of a picture that has results here."""
        return self.records.get(place(picture))

    def settle(self, settings: Mapping[str, Any], classes: Sequence[str], background: int | None) -> None:
        """Say beside the results to come what they are, or refuse the folder (`OutputError` naming what differs)."""
        common = sidecars.identity(settings, classes, background)
        sidecars.check_same(self.path, common)
        self._settings, self._digest = settings, sidecars.digest(common)
        writable_folder(self.path)
        for folder in {self.path / Path(stem).parent for stem in self.stems.values()}:
            remove_leftovers(folder)
        sidecars.write_classes(self.path, classes, background)
        self._write_run([])
        self._hold_room()

    def has(self, picture: Path, formats: Iterable[str]) -> bool:
        """Whether the picture's files of these formats are there, whole, made of the file that it still is."""
        record = self.records.get(place(picture))
        try:
            return record is not None and self._whole(record, formats) and _state(picture) == record["source_state"]
        except OSError:
            return False

    def keys(self, formats: Iterable[str]) -> set[str]:
        """The keys of `add_key` whose files of these formats are there, whole."""
        formats = set(formats)
        return {key for key, record in self.records.items() if "key" in record and self._whole(record, formats)}

    def _whole(self, record: Mapping[str, Any], formats: Iterable[str]) -> bool:
        try:
            sizes = all(os.path.getsize(self.path / name) == size for name, size in record["bytes"].items())
        except OSError:
            return False
        own = record.get("settings_sha256") == self._digest
        return own and sizes and set(formats) <= record["files"].keys()

    def put(
        self,
        picture: Path,
        stem: str,
        result: Result,
        formats: Sequence[str],
        datasets: Mapping[str, Dataset],
        *,
        names: bool = True,
        more: Mapping[str, Path] | None = None,
    ) -> dict[str, Any]:
        """Write all that there is of a picture, or nothing: its files, its part of data sets, its line of the manifest.

        more: files of the picture that were written before, by format. Returns its record. Raises `OutputError`, or
        what a format makes of the result.
        """
        added: list[Dataset] = []
        files = Together()
        try:
            with files:
                paths = result.stage(files, self.path, formats, stem, names=names)
                for name, dataset in datasets.items():
                    paths[name] = dataset.put(result, stem, files)
                    added.append(dataset)
            record = result.record({**paths, **(more or {})})
            self.add(picture, stem, record)
        except BaseException:
            files.take_back()
            for path in (more or {}).values():
                path.unlink(missing_ok=True)
            for dataset in added:
                dataset.take_back()
            raise
        return record

    def add(self, picture: Path, stem: str, record: Mapping[str, Any]) -> None:
        """The files of `record` are written: put its line on the disk."""
        self._put(place(picture), _state(picture), stem, record)

    def add_key(self, key: str, stem: str, record: Mapping[str, Any]) -> None:
        """`add` for a picture that is no file of its own: a row or a member of a shard, which has this key."""
        self._put(key, [], stem, {**record, "key": key})

    def _put(self, path: str, state: list[int], stem: str, record: Mapping[str, Any]) -> None:
        before = self.records.pop(path, {})
        files, sizes = dict(record["files"]), {}
        if before.get("source_state") == state and before.get("settings_sha256") == self._digest:
            files, sizes = before["files"] | files, dict(before["bytes"])
        sizes |= {
            os.path.relpath(file, self.path): os.path.getsize(file)
            for file in record["files"].values()
            if os.path.isfile(file)
        }
        line = {**record, "files": files, "path": path, "stem": stem, "source_state": state, "bytes": sizes}
        line["settings_sha256"] = self._digest
        lines.append(self.path / sidecars.MANIFEST, line)
        self.records[path] = line
        self._hold_room()

    def finish(self, failed: Sequence[Mapping[str, str]]) -> None:
        """run.json: all pictures of the folder, those of earlier runs too, and what failed in this one."""
        self._room.release()
        self._write_run(failed)

    def _hold_room(self) -> None:
        with contextlib.suppress(OSError):
            self._room.hold(ROOM * (1 + 2 * os.path.getsize(self.path / sidecars.MANIFEST) // ROOM))

    def _write_run(self, failed: Sequence[Mapping[str, str]]) -> None:
        own = ("path", "key", "stem", "source_state", "bytes", "settings_sha256")
        images = [{key: value for key, value in one.items() if key not in own} for one in self.records.values()]
        known = {image.get("source") for image in images}
        earlier = [one for one in sidecars.read_images(self.path) if one.get("source") not in known]
        sidecars.write_run(
            self.path, self._settings, [*earlier, *images], settings_sha256=self._digest, failed=list(failed)
        )


def _state(picture: Path) -> list[int]:
    """[bytes, nanoseconds of the last change]: a picture that was edited since is another one."""
    found = os.stat(picture)
    return [found.st_size, found.st_mtime_ns]
