"""Class names to unit vectors: words of a class, prompt templates, a cache."""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from s2clip.errors import reject
from s2clip.shelter import sheltered
from s2clip.values import is_whole
from s2clip.words.lists import SEMICOLONS, entries_of, key, visible
from s2clip.words.lists import parse_classes as parse_classes
from s2clip.words.lists import read_classes as read_classes

if TYPE_CHECKING:
    from s2clip.words.text_cache import VectorFiles

PLAIN = ("a photo of a {}.",)
SCENES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""What MaskCLIP and CLIPSurgery add to OpenAI's 80 ImageNet templates."""
CLIPER = (
    "a clean origami {}.",
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(f"a photo of a {size} {{}}." for size in ("small", "medium", "large")),
    *(f"This is a photo of a {size} {{}}." for size in ("small", "medium", "large")),
    *(f"There is a {size} {{}} in the scene." for size in ("small", "medium", "large")),
)
"""CLIPer's; the first is one of OpenAI's 80 that strayed in."""


@dataclass(frozen=True)
class Vocabulary:
    """Classes and their words. `class_index[q]` is the class of `words[q]`; words of one class are neighbours."""

    classes: tuple[str, ...]
    words: tuple[str, ...]
    class_index: tuple[int, ...]

    def find(self, name: int | str | None, argument: str = "background") -> int | None:
        """The class number of `name`: a number, a class entry, one of its words, or None. `argument` is for errors."""
        if name is None:
            return None
        if isinstance(name, str):
            for index, entry in enumerate(self.classes):
                if key(name) == key(entry):
                    return index
            for index, word in zip(self.class_index, self.words, strict=True):
                if key(name) == key(word):
                    return index
        elif is_whole(name) and 0 <= name < len(self.classes):
            return int(name)
        reject(argument, f"one of {', '.join(self.classes)}, or its number", repr(name))


def vocabulary(classes: str | Sequence[str], *, allow_repeats: bool = False) -> Vocabulary:
    """Classes as a list of entries, or as one string for `parse_classes`; an entry "a; b" holds words of one class.

    `ValueError` where there is no class, an empty one, no order (a set), or a word twice (case, blanks and Unicode's
    normal form aside): both classes would get
    the same score at every pixel, and the first would win them all. Published lists have such words; `allow_repeats`
    takes them as they are.
    """
    entries = entries_of(classes)
    if not entries or entries == [""]:
        reject("classes", "at least one name", "none")
    names: list[str] = []
    words: list[str] = []
    class_index: list[int] = []
    seen: dict[str, str] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, str):
            reject("classes", "strings", f"{entry!r} at position {index}")
        own = [" ".join(visible(word).split()) for word in re.split(f"[{SEMICOLONS}]", entry)]
        if "" in own:
            reject("classes", "no empty name", f"{entry!r} at position {index}")
        for word in own:
            if key(word) in seen and not allow_repeats:
                reject("classes", "every name once", f"{word!r} in {seen[key(word)]!r} and in {entry!r}")
            seen[key(word)] = entry
        names.append("; ".join(own))
        words += own
        class_index += [index] * len(own)
    return Vocabulary(tuple(names), tuple(words), tuple(class_index))


def resolve_templates(templates: str | tuple[str, ...]) -> tuple[str, ...]:
    """The strings behind a `Method.templates`; {} stands for the word."""
    if templates == "plain":
        return PLAIN
    if templates == "cliper15":
        return CLIPER
    if templates in ("imagenet80", "imagenet85"):
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        own = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
        return own + SCENES if templates == "imagenet85" else own
    assert not isinstance(templates, str), templates  # `Method` takes no other name
    return templates


class TextEncoder:
    """Words → unit vectors, t = mean over the templates of ê, normalised, by the text tower of `clip`.

    Every word is encoded on its own and cached by what it is (word and templates), so its vector does not depend on its
    company, and new class lists pay for their new words only. `capacity` vectors are kept, the least recently used go.
    files: a `s2clip.words.text_cache.VectorFiles` that other processes share; None: vectors live in memory only.
    """

    def __init__(self, clip, capacity: int = 4096, *, files: "VectorFiles | None" = None) -> None:
        self.clip = clip
        self.capacity = capacity
        self.files = files
        self._latest: tuple[tuple, Tensor] | None = None
        self._latest_apart: tuple[tuple, Tensor] | None = None
        self._cache: OrderedDict[tuple[str, tuple[str, ...]], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        """Without the lock: a copy in another process has one of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @sheltered()
    def __call__(
        self,
        words: Sequence[str],
        templates: str | tuple[str, ...] = "imagenet80",
        *,
        progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    ) -> Tensor:
        """[Q, C] float32, unit rows in the order of `words`. progress: gives the words on, as a bar of tqdm does."""
        patterns = resolve_templates(templates)
        key, latest = (tuple(words), patterns), self._latest
        if latest is None or latest[0] != key:  # one picture after the other asks for the same words
            alike: dict[tuple[tuple[int, ...], ...], Tensor] = {}
            latest = self._latest = key, torch.stack([self._word(word, patterns, alike) for word in progress(words)])
        return latest[1]

    @sheltered()
    def by_template(self, words: Sequence[str], templates: str | tuple[str, ...] = "imagenet80") -> Tensor:
        """[T, Q, C] float32, unit rows of every template alone; those of the last words are kept, in memory only."""
        patterns = resolve_templates(templates)
        key, latest = (tuple(words), patterns), self._latest_apart
        if latest is None or latest[0] != key:
            prompts = [pattern.replace("{}", word) for pattern in patterns for word in words]
            rows = F.normalize(self.clip.encode_text(prompts).float(), dim=-1)
            latest = self._latest_apart = key, rows.unflatten(0, (len(patterns), len(words)))
        return latest[1]

    def _word(self, word: str, patterns: tuple[str, ...], alike: dict[tuple[tuple[int, ...], ...], Tensor]) -> Tensor:
        key = (word, patterns)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        vector = self.files.load(word, patterns) if self.files is not None else None
        if vector is not None:
            vector = vector.to(self.clip.device)
        else:
            vector = self._encode(word, patterns, alike)
            if self.files is not None:
                self.files.store(word, patterns, vector)
        with self._lock:
            self._cache[key] = vector
            while len(self._cache) > self.capacity:
                self._cache.popitem(last=False)
        return vector

    def _encode(self, word: str, patterns: tuple[str, ...], alike: dict[tuple[tuple[int, ...], ...], Tensor]) -> Tensor:
        """alike: vectors by the tokens of their prompts; a small vocabulary makes the same of many words."""
        prompts = [pattern.replace("{}", word) for pattern in patterns]
        ids = getattr(getattr(self.clip, "tokenizer", None), "ids", None)
        if ids is None:  # byte pairs tell all words apart
            return _mean_direction(self.clip.encode_text(prompts))
        made_of = tuple(map(ids, prompts))
        if made_of not in alike:
            alike[made_of] = _mean_direction(self.clip.encode_text(prompts))
        return alike[made_of]


def _mean_direction(features: Tensor) -> Tensor:
    return F.normalize(F.normalize(features.float(), dim=-1).mean(0), dim=0)
