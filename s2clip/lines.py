"""Logs: one JSON object a line, each with a checksum, added and never rewritten; a killed run loses one line at most.

    {"crc32":"9c3f01de", ...}    of the line's bytes without this entry

CRC-32 finds every change of up to 32 neighbouring bits; of others it misses one in four thousand million.
"""

import json
import logging
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from s2clip.errors import first_few
from s2clip.files import writing

logger = logging.getLogger(__name__)

_SEALED = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')
SHOWN = 5


def seal(record: Mapping[str, Any]) -> bytes:
    """The line of a record, without its end."""
    body = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return b'{"crc32":"%08x",' % zlib.crc32(body) + body[1:]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add the line of a record and wait until it is on the disk; whole, or not at all. Raises `OutputError`.

    A line that a killed run left half-written is ended first: it stays unreadable, and only that one.
    """
    line = seal(record) + b"\n"
    with writing(path), open(path, "ab+", buffering=0) as handle:
        end = handle.seek(0, os.SEEK_END)
        if end:
            handle.seek(-1, os.SEEK_END)
            line = line if handle.read(1) == b"\n" else b"\n" + line
        written = 0
        try:
            while written < len(line):
                written += handle.write(line[written:])
            os.fsync(handle.fileno())
        except BaseException:
            if handle.seek(0, os.SEEK_END) == end + written:  # no other process has added its own
                handle.truncate(end)
            raise


def read(path: Path, keys: Collection[str], *, consequence: str, tell_bare: bool = False) -> Iterator[dict[str, Any]]:
    """The records of the whole lines, oldest first; lines that are damaged or half are left out and said.

    keys: of the lines that earlier versions wrote without a checksum, which are taken where they have no others.
    consequence: what is said to follow from a damaged line. tell_bare: say, too, where lines have no checksum.
    """
    bad, bare = [], 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        found = _SEALED.match(line)
        body = b"{" + line[found.end() :] if found else line
        try:
            record = json.loads(body)
            sound = isinstance(record, dict) and (
                int(found[1], 16) == zlib.crc32(body) if found else set() < record.keys() <= set(keys)
            )
        except (ValueError, RecursionError):
            sound = False
        if not sound:
            bad.append(number)
            continue
        bare += not found
        yield record
    if bad:
        which = f"line{'s' * (len(bad) > 1)} {first_few(bad, SHOWN)}"
        logger.warning("%s: %s damaged or half-written; %s", path, which, consequence)
    if bare and tell_bare:
        logger.warning("%s: %d lines of an earlier version, without a checksum: damage would not be seen", path, bare)
