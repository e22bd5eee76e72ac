"""Scenes whose results are kept: a folder a method, as of a benchmark, with a line of the log for each scene."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from s2clip import scenes
from s2clip.errors import OutputError
from s2clip.evaluation import protocol, records
from s2clip.evaluation.answers import SegmenterAnswers
from s2clip.evaluation.own import Facts
from s2clip.evaluation.ranks import WHOLE
from s2clip.evaluation.report import MODELS, Report
from s2clip.evaluation.runner import peak_mib
from s2clip.evaluation.scenes import SCENES_PER_SEED, Column
from s2clip.files import writable_folder


class Scene(NamedTuple):
    name: str


@dataclass(frozen=True)
class Scenes:
    """The scenes of a seed as a data set, for the protocol."""

    seed: int
    name: str = "scenes"
    background: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(scenes.CLASSES)

    @property
    def facts(self) -> Facts:
        return Facts("painted scenes", f"seed {self.seed}", {}, (0, len(scenes.CLASSES) - 1))

    def __len__(self) -> int:
        return SCENES_PER_SEED

    def __getitem__(self, index: int) -> Scene:
        return Scene(f"scene-{SCENES_PER_SEED * self.seed + index}")


class KeptColumn(Column):
    """One method's answers in a folder: what an earlier run of the same settings wrote counts as done.

    Raises OutputError for a folder of other settings, or of an earlier run without `resume`.
    """

    def __init__(self, folder: Path, segmenter: Any, seed: int, seeds: Sequence[int], *, resume: bool) -> None:
        super().__init__()
        answers = SegmenterAnswers(segmenter.set_classes(scenes.CLASSES))
        self.folder, self._device, self._asked = writable_folder(folder), segmenter.device, range(len(seeds))
        self._protocol = protocol.describe(Scenes(seed), answers.settings, batch_size=1)
        protocol.settle(self.folder, self._protocol)
        if not resume and records.foreign(self.folder, WHOLE):
            raise OutputError(
                f"{folder}: holds the records of an earlier run: --resume goes on with it, or choose another folder "
                "with -o"
            )
        before = self._tally()
        self.matrix += before.matrix
        self.seconds, self.done = before.seconds, {seeds[index] for index in before.done}
        self.stages.update({name: spent for name, spent in before.stages_ms.items() if name != MODELS})

    def add(self, seed: int, matrix: Tensor, seconds: float, stages: Mapping[str, float]) -> None:
        super().add(seed, matrix, seconds, stages)
        scene = {"index": seed % SCENES_PER_SEED, "name": f"scene-{seed}", "counts": records.sparse(matrix)}
        spent = {MODELS: 1000 * seconds, **stages}
        line = {
            "pictures": [scene],
            "seconds": round(seconds, 6),
            "stages_ms": {name: round(value, 3) for name, value in spent.items()},
            "peak_mib": peak_mib(self._device),
        }
        records.append(records.shard_path(self.folder, WHOLE), line)

    def write(self) -> Path:
        """The files of the result; their folder."""
        Report(self._protocol, self._tally(), len(self._asked), self.folder).write()
        return self.folder

    def _tally(self) -> records.Tally:
        return records.tally(records.read(self.folder), len(scenes.CLASSES), self._asked)
