"""`s2clip segment --format features`: pictures one by one, whose features stay at hand until they are written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2clip.pictures.reading import Failure

if TYPE_CHECKING:
    from s2clip.encoding.encoded import Encoded
    from s2clip.results.result import Result
    from s2clip.segmenter import Segmenter

NAME = "features"


class FeatureStream:
    """The results of `Segmenter.stream(on_error="record")`, and the features that the latest one was made of."""

    def __init__(self, segmenter: "Segmenter", pictures: Sequence[Path]) -> None:
        self._segmenter = segmenter
        self._results = self._run(pictures)
        self._encoded: Encoded | None = None

    def __next__(self) -> "Result | Failure":
        return next(self._results)

    def close(self) -> None:
        self._results.close()

    def write(self, folder: Path, stem: str) -> Path:
        """The file of the latest picture."""
        from s2clip.adapters.features import SUFFIX, write_features
        from s2clip.files import writable_folder

        path = folder / f"{stem}{SUFFIX}"
        writable_folder(path.parent)
        return write_features(self._segmenter, self._encoded, path)

    def _run(self, pictures: Sequence[Path]) -> Iterator["Result | Failure"]:
        for picture in pictures:
            try:
                self._encoded = self._segmenter.encode(picture)
                yield self._segmenter.segment(self._encoded)
            except Exception as error:
                yield Failure(picture, error)
