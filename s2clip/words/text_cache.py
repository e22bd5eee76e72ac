"""Word vectors on disk, named by what they were made of: encoding 171 classes by 80 templates takes a CPU two minutes.

A file holds the sha256 of its data and one vector in little-endian fp32. Its name is the sha256 of everything that the
vector depends on, so nothing ever has to be invalidated: another checkpoint, template, number format, device type or
version of torch is another name. Files are written whole or not at all, so several processes may share a folder.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s2clip.errors import OutputError
from s2clip.files import at_home, whole_file, writable_folder

logger = logging.getLogger(__name__)

FOLDER = "s2clip-text"
DIGEST = hashlib.sha256().digest_size


def default_folder(cache_dir: str | Path | None = None) -> Path | None:
    """Beside the weights: in `cache_dir`, else in torch.hub's folder of checkpoints; None without anybody's home."""
    folder = Path(torch.hub.get_dir()) / "checkpoints" if cache_dir is None else at_home(cache_dir)
    return None if str(folder).startswith("~") else folder / FOLDER


class VectorFiles:
    """Vectors of words under one text tower. A folder that cannot be written is said once, and nothing is kept."""

    def __init__(self, folder: Path, clip) -> None:
        self.folder, self.clip = folder, clip
        self._writable: bool | None = None

    def load(self, word: str, patterns: Sequence[str]) -> Tensor | None:
        """[C] fp32 on the CPU; None where there is no such file, or, with a warning, a damaged one."""
        path = self._path(word, patterns)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            logger.warning("%s: cannot be read (%s), %r is encoded again", path, error.strerror, word)
            return None
        digest, data = content[:DIGEST], content[DIGEST:]
        if len(data) != 4 * self.clip.embed_dim or hashlib.sha256(data).digest() != digest:
            logger.warning("%s: damaged, %r is encoded again", path, word)
            return None
        return torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))

    def store(self, word: str, patterns: Sequence[str], vector: Tensor) -> None:
        """Keep a vector [C]."""
        if self._writable is None:
            try:
                writable_folder(self.folder)
                self._writable = True
            except OutputError as error:
                logger.warning("%s; word vectors are not kept", error)
                self._writable = False
        if not self._writable:
            return
        data = vector.cpu().numpy().astype("<f4").tobytes()
        try:
            with whole_file(self._path(word, patterns)) as handle:
                handle.write(hashlib.sha256(data).digest() + data)
        except OutputError as error:
            logger.warning("%s; word vectors are not kept", error)
            self._writable = False

    def _path(self, word: str, patterns: Sequence[str]) -> Path:
        made_of = {
            "model": self.clip.name,
            "weights": self.clip.weights_sha256,
            "dtype": str(self.clip.dtype),
            "device": self.clip.device.type,
            "torch": str(torch.__version__),
            "templates": list(patterns),
            "word": word,
        }
        return self.folder / hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
