"""Pictures and words of many askers → results: one cache of encoded pictures, one set of limits, one turn at a time."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from s2clip.encoding.encoded import Encoded
from s2clip.errors import S2ClipError
from s2clip.methods.method import Method
from s2clip.pictures.reading import Failure, Picture, read
from s2clip.results.result import Result
from s2clip.segmenter import Segmenter
from s2clip.serving.cache import EncodedCache
from s2clip.serving.limits import Limits, Refused
from s2clip.words.text import Vocabulary, vocabulary

CACHE = 1 << 30


class Query(NamedTuple):
    """One picture, as the bytes of its file, and what is asked of it; None: what the service was started with first."""

    picture: bytes
    classes: str | Sequence[str]
    method: str | None = None
    refine: str | None = None


@dataclass(frozen=True)
class Answer:
    """The result of a query. known: the picture was encoded before. stages: milliseconds of this query's own work."""

    result: Result
    sha256: str
    method: str
    refine: str
    known: bool
    stages: Mapping[str, float] = field(default_factory=dict)
    unknown_words: tuple[str, ...] = ()


class _Task(NamedTuple):
    """A query that was found answerable."""

    place: int
    picture: bytes
    sha256: str
    pair: tuple[str, str]
    words: Vocabulary


class Service:
    """segmenters: by (method, refine), the first one for who asks for neither. cache: bytes of encoded pictures.

    `answer` may be called from many threads; it computes one batch at a time.
    """

    def __init__(
        self, segmenters: Mapping[tuple[str, str], Segmenter], *, limits: Limits | None = None, cache: int = CACHE
    ) -> None:
        self.segmenters = dict(segmenters)
        self.limits = limits or Limits()
        self.cache = EncodedCache(cache)
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        methods: Sequence[str | Method] = ("s2clip",),
        refinements: Sequence[str] = ("none",),
        *,
        limits: Limits | None = None,
        cache: int = CACHE,
        **model_settings: Any,
    ) -> "Service":
        """A segmenter for each pair of method and refinement, by `Segmenter.from_pretrained`.

        Words of strangers are kept in memory only, unless `text_cache=True`. Raises as `from_pretrained`.
        """
        limits = limits or Limits()
        bounds = {"max_pixels": limits.max_pixels, "max_seconds": limits.max_seconds}
        settings = {"text_cache": False, **{k: v for k, v in model_settings.items() if v is not None}, **bounds}
        pairs = [(method, refine) for method in methods for refine in refinements]
        loaded = [Segmenter.from_pretrained(**settings, method=method, refine=refine) for method, refine in pairs]
        named = {(one.method.name, refine): one for one, (_, refine) in zip(loaded, pairs, strict=True)}
        return cls(named, limits=limits, cache=cache)

    def segment(
        self, picture: bytes, classes: str | Sequence[str], method: str | None = None, refine: str | None = None
    ) -> Result:
        """One query, answered. Raises `Refused`."""
        answer = self.answer([Query(picture, classes, method, refine)])[0]
        if isinstance(answer, Refused):
            raise answer
        return answer.result

    def answer(self, queries: Sequence[Query]) -> list[Answer | Refused]:
        """An answer in the place of each query. Pictures that are new are encoded together, each once."""
        answers: list[Answer | Refused | None] = [None] * len(queries)
        tasks: list[_Task] = []
        for place, query in enumerate(queries):
            found = self._understood(place, query)
            if isinstance(found, Refused):
                answers[place] = found
            else:
                tasks.append(found)
        with self._lock:
            for pair in dict.fromkeys(task.pair for task in tasks):
                self._answer_pair(pair, [task for task in tasks if task.pair == pair], answers)
        return [Refused(500, "no answer") if one is None else one for one in answers]

    def _understood(self, place: int, query: Query) -> _Task | Refused:
        first = next(iter(self.segmenters))
        pair = query.method or first[0], query.refine or first[1]
        limits = self.limits
        if len(query.picture) > limits.max_bytes:
            return Refused(413, f"picture: expected at most {limits.max_bytes} bytes, received {len(query.picture)}")
        if not query.picture:
            return Refused(422, "picture: expected the bytes of a picture, received none")
        if pair not in self.segmenters:
            served = ", ".join(f"{method} with refine {refine}" for method, refine in self.segmenters)
            return Refused(422, f"method: expected one that is served ({served}), received {pair[0]} with {pair[1]}")
        if not query.classes:
            return Refused(422, 'classes: expected names, as "sky, house; hut, tree", received none')
        try:
            words = vocabulary(query.classes)
        except ValueError as error:
            return Refused(422, _line(error))
        longest = max(words.words, key=len)
        if len(words.words) > limits.max_words:
            return Refused(422, f"classes: expected at most {limits.max_words} words, received {len(words.words)}")
        if len(longest) > limits.max_letters:
            return Refused(422, f"classes: expected words of at most {limits.max_letters} letters, not {len(longest)}")
        return _Task(place, query.picture, hashlib.sha256(query.picture).hexdigest(), pair, words)

    def _answer_pair(
        self, pair: tuple[str, str], tasks: Sequence[_Task], answers: list[Answer | Refused | None]
    ) -> None:
        segmenter = self.segmenters[pair]
        encoded: dict[str, Encoded | Refused] = {}
        for sha256 in dict.fromkeys(task.sha256 for task in tasks):
            if (kept := self.cache.get((sha256, pair))) is not None:
                encoded[sha256] = kept
        known = set(encoded)
        encoded |= self._encode(segmenter, {task.sha256: task.picture for task in tasks if task.sha256 not in known})
        for sha256, one in encoded.items():
            if sha256 not in known and isinstance(one, Encoded):
                self.cache.put((sha256, pair), one)
        for task in tasks:
            one = encoded[task.sha256]
            answers[task.place] = one if isinstance(one, Refused) else self._decided(segmenter, task, one, known)
            known.add(task.sha256)

    def _encode(self, segmenter: Segmenter, pictures: Mapping[str, bytes]) -> dict[str, Encoded | Refused]:
        done: dict[str, Encoded | Refused] = {}
        good: dict[str, Picture] = {}
        for sha256, content in pictures.items():
            picture = read(content, max_pixels=self.limits.max_pixels, max_seconds=self.limits.max_seconds)
            if isinstance(picture, Failure):
                done[sha256] = Refused(422, "picture: " + _line(picture.error).removeprefix("bytes: "))
            else:
                good[sha256] = picture
        encoded = _or_refused(lambda: segmenter.encode_batch(list(good.values())))
        if not isinstance(encoded, Refused):
            return done | dict(zip(good, encoded, strict=True))
        for sha256, picture in good.items():  # one of them is at fault; the others are answered
            alone = _or_refused(partial(segmenter.encode_batch, [picture]))
            done[sha256] = alone if isinstance(alone, Refused) else alone[0]
        return done

    def _decided(self, segmenter: Segmenter, task: _Task, encoded: Encoded, known: set[str]) -> Answer | Refused:
        result = _or_refused(lambda: segmenter.segment(encoded, task.words.classes))
        if isinstance(result, Refused):
            return result
        was_known = task.sha256 in known
        spent = encoded.timings if was_known else {}
        stages = {name: value - spent.get(name, 0.0) for name, value in result.timings.items()}
        unknown = tuple(segmenter.clip.unknown_words(list(task.words.words)))
        own = {name: value for name, value in stages.items() if value > 0}
        return Answer(result, task.sha256, *task.pair, was_known, own, unknown)


def _or_refused(compute: Callable[[], Any]) -> Any:
    """What it gives, or why not: a request's own fault, or a machine that is too small for it."""
    try:
        return compute()
    except ValueError as error:
        return Refused(422, _line(error))
    except (RuntimeError, MemoryError, S2ClipError) as error:  # torch's out of memory among them
        return Refused(500, f"cannot be computed here: {_line(error)}"[:300])


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
