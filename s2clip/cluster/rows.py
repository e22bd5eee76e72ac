"""Results as rows of Parquet in place of files: a row for each picture, exactly once whatever was killed meanwhile.

    ADDRESS/_run.json            classes, settings, versions; what failed in the last run
    ADDRESS/part-*.parquet       up to 1,000 rows each, put there whole

    id               string    the picture's key: as its path was given, or NAME/ID of a shard
    source           string    where it was read
    height, width    int32
    png              binary    the label map, as `Result.save` writes it
    coco             list      {category_id, counts, area, bbox, score} of each class that is there; counts: COCO's RLE
    shares           list      double, share of the pixels by class, in the order of the classes
    confidence       double    mean over the pixels
    timings_ms       map       stage → milliseconds
    settings_sha256  string    of the classes and settings, as in _run.json

One process writes, the driver. A file is named by the ids in it, so that writing it again is no second one, and the
next run reads from the files which ids are there.
"""

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from s2clip.cluster.addresses import Store, one_line, public
from s2clip.errors import OutputError, first_few, reject
from s2clip.results import sidecars
from s2clip.results.result import Result
from s2clip.values import differences

if TYPE_CHECKING:
    import pyarrow

RUN = "_run.json"  # readers of a folder of Parquet pass over names that start so
MASKS = ("png", "coco")
ROWS, SECONDS = 1000, 20.0
"""When a file is written: so many rows wait, or the first has waited so long. What waits is lost with the driver."""


def check_masks(formats: Sequence[str]) -> tuple[str, ...]:
    """What of a picture's formats can be a column."""
    for name in formats:
        if name not in MASKS:
            reject("--format", "png or coco with --rows", name)
    return tuple(formats)


def row_of(result: Result, key: str, formats: Sequence[str]) -> dict[str, Any]:
    """The row, but for the hash of the settings, as JSON values: bytes in base64."""
    height, width = result.segmentation.shape
    row: dict[str, Any] = {"id": key, "source": result.source, "height": height, "width": width}
    if "png" in formats:
        row["png"] = base64.b64encode(result.to_bytes("png")).decode()
    if "coco" in formats:
        of_class = json.loads(result.to_bytes("coco"))["annotations"]
        kept = ("category_id", "area", "bbox", "score")
        row["coco"] = [
            {**{name: one[name] for name in kept}, "counts": one["segmentation"]["counts"]} for one in of_class
        ]
    confidence = float(result.confidence.double().mean()) if result.confidence.numel() else 0.0
    timings = {name: round(value, 3) for name, value in result.timings.items()}
    return {**row, "shares": list(result.shares.values()), "confidence": confidence, "timings_ms": timings}


def schema_of(formats: Sequence[str], classes: Sequence[str], digest: str) -> "pyarrow.Schema":
    """The columns, and as the files' own metadata the classes and the hash of the settings."""
    import pyarrow as pa

    of_class = pa.struct(
        {
            "category_id": pa.int32(),
            "counts": pa.string(),
            "area": pa.int64(),
            "bbox": pa.list_(pa.float64()),
            "score": pa.float64(),
        }
    )
    masks = {"png": pa.binary(), "coco": pa.list_(of_class)}
    columns = {
        "id": pa.string(),
        "source": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        **{name: masks[name] for name in MASKS if name in formats},
        "shares": pa.list_(pa.float64()),
        "confidence": pa.float64(),
        "timings_ms": pa.map_(pa.string(), pa.float64()),
        "settings_sha256": pa.string(),
    }
    about = {"classes": json.dumps(list(classes), ensure_ascii=False), "settings_sha256": digest}
    return pa.schema(columns, metadata={f"s2clip.{name}": value for name, value in about.items()})


class RowSink:
    """Where the rows of a run go. formats: of `MASKS`, a column each."""

    def __init__(self, address: str, formats: Sequence[str], *, resume: bool = False) -> None:
        self.store, self.formats, self.resume = Store(address), tuple(formats), resume
        self.ids: set[str] = set()
        self._waiting: list[dict[str, Any]] = []
        self._since = 0.0

    def settle(self, settings: Mapping[str, Any], classes: Sequence[str], background: int | None) -> None:
        """Say beside the rows to come what they are; `OutputError` where rows of other settings are there, or any
        without `resume`, or where the place cannot be read or written."""
        common = sidecars.identity({**settings, "columns": list(self.formats)}, classes, background)
        self._digest = sidecars.digest(common)
        self.store.prepare()
        self._settle_with(common)
        self._schema = schema_of(self.formats, classes, self._digest)
        self._common = common
        self._write_run([])

    def _settle_with(self, common: Mapping[str, Any]) -> None:
        """Learn which rows are there."""
        import pyarrow
        import pyarrow.parquet

        address = public(self.store.address)
        try:
            files, content = self.store.names(".parquet"), self.store.read(RUN)
            there = None if content is None else json.loads(content)["identity"]
            if files and there is None:
                raise OutputError(f"{address}: holds {first_few(files, 2)} without {RUN}, so nobody knows of what")
            if files and (differing := list(differences(there, common))):
                raise OutputError(
                    f"{address}: holds rows of other settings: {first_few(differing, 3)}; choose another place, or "
                    "repeat those settings"
                )
            for name in files:
                filesystem, path = self.store._at(name)
                ids = pyarrow.parquet.read_table(path, columns=["id"], filesystem=filesystem)
                self.ids.update(ids["id"].to_pylist())
        except OutputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            raise OutputError(f"{address}: cannot be read: {one_line(error)}; choose another place") from None
        if self.ids and not self.resume:
            raise OutputError(f"{address}: holds {len(self.ids)} rows; --resume goes on with them")

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row; it is written with others, soon. One whose id is there already is none."""
        if row["id"] in self.ids:
            return
        self.ids.add(row["id"])
        self._since = self._since if self._waiting else time.monotonic()
        own = {**row, "settings_sha256": self._digest, "timings_ms": list(row["timings_ms"].items())}
        if "png" in row:
            own["png"] = base64.b64decode(row["png"])
        self._waiting.append(own)
        if len(self._waiting) >= ROWS or time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises `OutputError`, and then it still waits."""
        import pyarrow
        import pyarrow.parquet

        if not self._waiting:
            return
        rows = sorted(self._waiting, key=lambda row: str(row["id"]))
        ids = json.dumps([row["id"] for row in rows])
        name = f"part-{hashlib.sha256(ids.encode()).hexdigest()[:32]}.parquet"
        buffer = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=self._schema), buffer, compression="zstd")
        self.store.put(name, buffer.getvalue().to_pybytes())
        self._waiting.clear()

    def finish(self, failed: Sequence[Mapping[str, str]]) -> None:
        """Write what waits, and what failed in this run."""
        self.flush()
        self._write_run(failed)

    def _write_run(self, failed: Sequence[Mapping[str, str]]) -> None:
        document = {"identity": self._common, "settings_sha256": self._digest, "versions": sidecars.versions()}
        text = json.dumps({**document, "rows": len(self.ids), "failed": list(failed)}, indent=2, ensure_ascii=False)
        self.store.put(RUN, text.encode("utf-8", "backslashreplace") + b"\n")
