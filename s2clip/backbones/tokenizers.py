"""Texts to token ids by open_clip: CLIP's byte pairs, which it brings along, or pieces of words from the Hub."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from s2clip.backbones.checkpoints import first_line, is_offline
from s2clip.errors import MissingExtraError, WeightsError

Tokenizer = Callable[[list[str]], Tensor]
"""n texts → int64 [n,T], each padded to the length of the tower."""


class HashTokenizer:
    """Numbers for words in place of pieces, which are a download: for random weights, whose output means nothing
    anyway. end: the id that follows the last word, where the tower looks for one."""

    def __init__(self, length: int, size: int, end: int | None = None) -> None:
        self.length, self.size, self.end = length, size, end

    def __call__(self, texts: list[str]) -> Tensor:
        tokens = torch.zeros(len(texts), self.length, dtype=torch.int64)
        first, last = (1, []) if self.end is None else (self.end + 1, [self.end])
        for row, text in enumerate(texts):
            ids = [first + zlib.crc32(word.encode()) % (self.size - first) for word in text.lower().split()]
            ids = [*ids[: self.length - len(last)], *last]
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens


def load_tokenizer(
    architecture: str,
    *,
    name: str,
    extra: str,
    random: bool = False,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Tokenizer:
    """The tokenizer of an architecture of open_clip; name: what errors are about, extra: what brings transformers.

    random: `HashTokenizer` in place of a download. Raises `MissingExtraError` without transformers where it is needed,
    `WeightsError` where the file is not on this machine.
    """
    words = (open_clip.get_model_config(architecture) or {})["text_cfg"]
    repository = words.get("hf_tokenizer_name")
    if not repository:
        return open_clip.get_tokenizer(architecture)
    if random:
        end = words["eos_id"] if words.get("pool_type") == "eos" else None
        return HashTokenizer(words["context_length"], words["vocab_size"], end)
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"{name}: its words need transformers: pip install 's2clip[{extra}]'") from error
    try:
        return open_clip.get_tokenizer(
            architecture,
            cache_dir=None if cache_dir is None else str(cache_dir),
            local_files_only=local_files_only or is_offline(),
        )
    except OSError as error:
        fix = f"hf download {repository} tokenizer.json tokenizer_config.json"
        raise WeightsError(f"{name}: its tokenizer is not on this machine: {fix} ({first_line(error)})") from error
