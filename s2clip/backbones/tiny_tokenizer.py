"""Words to token ids for the embedded CLIP: one id per known word.

Its world has thirteen classes and one grammar of captions, so byte-pair merges would only cost room: a word is either
in `data/tiny/vocabulary.txt` or becomes ``<unk>``, and ``unknown_words`` tells which, so that a caller can warn.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

import torch

PADDING, START, UNKNOWN = 0, 1, 2
_SPECIAL_TOKENS = 3
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SIGN = r"[a-z0-9]|[^\x00-\xbf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20]"
_WRITTEN = re.compile(rf"(?:{_SIGN})+(?:-(?:{_SIGN})+)*")
"""A word of any script, or pictographs, as its writer sees it: of ASCII the same as _WORD."""


def read_vocabulary() -> tuple[str, ...]:
    """The known words, in the order of their ids."""
    return tuple((files("s2clip.data") / "tiny" / "vocabulary.txt").read_text(encoding="utf-8").split())


def split_words(text: str) -> list[str]:
    """Lower-case words; a hyphen inside a word stays, any other sign parts words."""
    return _WORD.findall(text.lower())


class WordTokenizer:
    """texts → ids [n, context_length] int64: start, the words, end, then padding.

    The end has the highest id, so CLIP's text tower, which reads the position of the largest id, finds it. A text
    with more words than fit is cut, its end kept.
    """

    def __init__(self, vocabulary: Sequence[str], context_length: int) -> None:
        self.context_length = context_length
        self._ids = {word: index for index, word in enumerate(vocabulary, start=_SPECIAL_TOKENS)}
        self.end = _SPECIAL_TOKENS + len(vocabulary)
        self.vocab_size = self.end + 1

    def __call__(self, texts: str | Iterable[str]) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [self.ids(text) for text in texts]
        padded = [(*ids, *[PADDING] * (self.context_length - len(ids))) for ids in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(texts), self.context_length)

    def ids(self, text: str) -> tuple[int, ...]:
        """What a text becomes, without the padding: two texts of the same ids are one to the model."""
        ids = [self._ids.get(word, UNKNOWN) for word in split_words(text)][: self.context_length - 2]
        return START, *ids, self.end

    def unknown_words(self, texts: str | Iterable[str]) -> list[str]:
        """Words of the texts that the model never saw, each once, in order of appearance."""
        texts = [texts] if isinstance(texts, str) else texts
        written = (word for text in texts for word in _WRITTEN.findall(text.lower()))
        return list(dict.fromkeys(word for word in written if word not in self._ids))
