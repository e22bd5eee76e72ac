"""Result folders of one protocol, added up without data or models."""

from collections.abc import Sequence
from pathlib import Path

from s2clip import lines
from s2clip.errors import OutputError, reject
from s2clip.evaluation import protocol, records
from s2clip.evaluation.report import Report
from s2clip.files import whole_file, writable_folder


def merge_folders(folders: Sequence[Path], output: Path, limit: int | None = None) -> Report:
    """The report of all records in `folders`, written into `output` with the records, so that it can be resumed there.

    limit: how many pictures are asked for, as it was given to the runs; None: all of the data set.

    Raises:
        ValueError: a limit below 1.
        OutputError: no result folder, other settings in one than in another, or pictures that nobody has done.
    """
    if limit is not None and limit < 1:
        reject("limit", "at least 1", limit)
    described = protocol.load(folders[0])
    for folder in folders[1:]:
        protocol.compare(folder, protocol.load(folder), described)
    batches = [batch for folder in folders for batch in records.read(folder)]
    dataset = described["dataset"]
    asked = range(min(limit or dataset["pictures"], dataset["pictures"]))
    report = Report(described, records.tally(batches, len(dataset["classes"]), asked), len(asked), output)
    if not report.complete:
        tried = report.tally.done | report.tally.failed.keys()
        first = next(index for index in asked if index not in tried)
        raise OutputError(
            f"{', '.join(map(str, folders))}: {report.tried} of {len(asked)} pictures are done, number {first} is not; "
            "evaluate the missing shards, or give the --limit of the runs"
        )
    writable_folder(output)
    protocol.settle(output, described)
    path = records.shard_path(output, (0, 1))
    writable_folder(path.parent)
    with whole_file(path) as handle:
        handle.writelines(lines.seal(batch) + b"\n" for batch in batches)
    report.write()
    return report
