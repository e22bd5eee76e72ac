"""`Segmenter`: pictures and class names in, label maps out.

Long because it is the one class that users call, and more than a third of it is what `help(Segmenter)` tells them.
"""

import copy
import dataclasses
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2clip import pipeline
from s2clip.decision import experts
from s2clip.decision.pixels import check_labels
from s2clip.decision.scores import ScoreMaps
from s2clip.encoding.encoded import Encoded
from s2clip.errors import first_few, reject
from s2clip.methods.method import Method
from s2clip.methods.stages import TemplateChoice
from s2clip.names import meant
from s2clip.pictures.images import MAX_PIXELS, MAX_SECONDS, Source
from s2clip.pictures.reading import Failure, Picture, read_batches
from s2clip.predictor import Predictor, Progress
from s2clip.published.catalogue import get_method
from s2clip.refinement.regions import Regions
from s2clip.refinement.results import refine_given
from s2clip.refinement.settings import Refinement
from s2clip.results.result import Result
from s2clip.shelter import sheltered
from s2clip.values import counted
from s2clip.words.text import Vocabulary

NAMES_SHOWN = 8


class Segmenter(Predictor):
    """Open-vocabulary segmentation: classes are named at run time, nothing is trained.

        segmenter = Segmenter.from_pretrained("tiny")
        segmenter.set_classes(["sky", "house; hut", "tree"])
        result = segmenter("photo.jpg")

    No setting of torch changes what is predicted (autocast, default dtype: `s2clip.shelter`), and predicting changes no
    global state: random numbers, precision, gradient and thread settings stay as they are. The
    same picture gives the same labels whatever else is in the list (on CUDA: see `mix_pictures` of `Encoder`).
    """

    _vocabulary: Vocabulary | None = None
    _background: int | None = None

    @classmethod
    @sheltered()
    def from_pretrained(
        cls,
        model: str = "tiny",
        *,
        vfm: str | None = None,
        refine: str = "none",
        sam: str | None = None,
        refine_options: Refinement | Mapping[str, Any] | None = None,
        diffusion_model: str | None = None,
        regions: Regions = None,
        region_options: Mapping[str, Any] | None = None,
        method: str | Method | None = None,
        compile: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        text_cache: bool | None = None,
        weights: str = "pretrained",
        short_side: int | None = None,
        crop: int | None = None,
        stride: int | None = None,
        max_batch: int | None = None,
        mix_pictures: bool | None = None,
        max_memory: str | int | None = None,
        cuda_graphs: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_seconds: float = MAX_SECONDS,
        **fields: Any,
    ) -> "Segmenter":
        """Load the models by name and put the method together.

        Args:
            model: CLIP, "tiny" (embedded), "ViT-B-16", "ViT-L-14", "ViT-H-14", "MetaCLIP-B-16" or "MetaCLIP-L-14".
            vfm: vision foundation model, loaded only where the method uses one; None: "tiny-dino" with model "tiny",
                else the one the method was published with, "dino-b8" mostly.
            refine: what follows the coarse map: "none"; "sam", SAM's masks for all regions at once; "trident", the
                same region by region on the host, to compare with (needs scikit-image, extra `trident`); the published
                computation with `refine_options={"faithful": True}`, in either;
                "sam+sd", Stable Diffusion's self-attention first and SAM after it (needs the extra `diffusion`).
            sam: "sam-tiny", "sam-vit-b", "sam-vit-l" or "sam-vit-h", loaded to refine or for a method that uses one;
                None: "sam-tiny" with model "tiny", else "sam-vit-b".
            refine_options: fields of `s2clip.refinement.settings.Refinement`, `{"sam_iou_threshold": 0.9}`.
            diffusion_model: Hub id or folder of Stable Diffusion for "sam+sd" or a method that uses it; None:
                `s2clip.refinement.diffusion.MODEL_ID`.
            regions: ids of every pixel's region, 0 for none, for a method that needs them ("corrclip"): "sam", its
                automatic masks; a folder of PNGs named as the pictures; a function of a picture's pixels [3,H,W] and
                path; or an array [H,W].
            region_options: fields of `s2clip.refinement.automatic.AutomaticMasks`, `{"points_per_side": 16}`.
            compile: compile the blocks of CLIP, the VFM and SAM's encoder; the first pictures wait minutes for it.
            method: a name of `s2clip.methods.METHODS`, or a `Method`; None: "s2clip", or "radseg" with RADIO-B-16 and
                RADIO-L-16, which are no CLIPs.
            device, dtype: default CUDA with fp16, or the CPU with fp32; a dtype may be its name, "float16".
            cache_dir, local_files_only: where weights lie, and whether to stay off the network.
            text_cache: keep word vectors in the folder s2clip-text beside the weights, where later processes find them;
                None: unless the model is "tiny", which is as fast as a disk. Never for random weights.
            weights: "pretrained"; a file for the CLIP; or "random": results without meaning, for tests and timing.
            short_side, crop, stride: pixels, instead of the method's own; 0: native size, whole picture. A model
                trained at another size brings its own (`s2clip.methods.RECIPES`) in place of the method's; what is
                given here replaces both.
            max_batch, mix_pictures: see `s2clip.encoding.encoder.Encoder`.
            max_memory: "8GB" (10^9 bytes), "7.5GiB" or bytes: windows, words, prompts and pictures are worked on in
                chunks that `s2clip.memory` says fit. None: as fast as they go.
            cuda_graphs: replay the decision as a CUDA graph for picture sizes that come often
                (`s2clip.decision.graphs`); off, because what that saves is not measured yet. For spliced methods
                without refinement.
            max_pixels: pictures with more pixels are refused before they are decoded.
            max_seconds: pictures whose decoding takes longer are refused; see `s2clip.pictures.bounded`.
            fields: any other field of `Method`, to change one value: `tau=2.0`, or `**{"extension.depth": 3}`.

        Raises:
            ValueError: unknown name (the valid ones are listed) or value.
            WeightsError: weights that are not there or not what their name says.
        """
        from s2clip.loading import load_parts

        _check_keywords(fields)
        parts = load_parts(
            model,
            method,
            fields=fields,
            geometry={"short_side": short_side, "crop": crop, "stride": stride},
            vfm=vfm,
            sam=sam,
            diffusion_model=diffusion_model,
            refine=refine,
            refine_options=refine_options,
            regions=regions,
            region_options=region_options,
            max_memory=max_memory,
            cuda_graphs=cuda_graphs,
            compile=compile,
            text_cache=text_cache,
            weights=weights,
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        limits: dict[str, Any] = {"max_pixels": max_pixels, "max_seconds": max_seconds}
        return cls(**parts, max_batch=max_batch, mix_pictures=mix_pictures, **limits)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that were set, or ()."""
        return self._vocabulary.classes if self._vocabulary else ()

    @sheltered()
    def set_classes(
        self,
        classes: str | Sequence[str],
        *,
        background: int | str | None = None,
        allow_repeats: bool = False,
        progress: Progress = iter,
    ) -> "Segmenter":
        """Name the classes of the pictures to come. Words are encoded once.

        Args:
            classes: entries as a list, or one string "sky, house; hut, tree"; words of one class are parted by ";".
            background: the class, by name or number, that pixels under the method's threshold are given; None: they
                belong to no class, 255 (65535 where 255 is a class).
            allow_repeats: take lists that hold a word twice, as published ones do; the first class wins it.
            progress: `tqdm.tqdm` shows a bar while words are encoded, which takes minutes for thousands.

        Raises:
            ValueError: no class, no order (a set), an empty or repeated name, an unknown background, or an
                area_threshold without one.
        """
        words, number = self._resolve(classes, background, allow_repeats, progress)
        self._rows(words, progress)
        self._vocabulary, self._background = words, number
        return self

    def __repr__(self) -> str:
        models = [self.clip.name, *([self.vfm.name] if self.vfm is not None else [])]
        refine = "" if self.refiner is None else f", refine {self.refiner.refine}"
        names = ": " + first_few(self.classes, NAMES_SHOWN) if self.classes else ""
        count = counted(len(self.classes), "class") if self.classes else "no classes set"
        where = f"{self.device} {str(self.clip.dtype).removeprefix('torch.')}"
        return f"Segmenter({' + '.join(models)}, method {self.method.name}{refine}, {where}, {count}{names})"

    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...]) -> list[Result]: ...

    @overload
    def __call__(self, source: Source) -> Result: ...

    def __call__(self, source: Source | list[Any] | tuple[Any, ...]) -> Result | list[Result]:
        """Segment one picture (path, bytes, PIL image, uint8 array [H,W,3] in RGB order, tensor [3,H,W]), or a list of
        them or a batch [B,3,H,W] or [B,H,W,3], which give a list of results.

        Raises `ImageError` for a picture that cannot be used, `ValueError` where no classes were set.
        """
        if isinstance(source, list | tuple) or (isinstance(source, Tensor | np.ndarray) and source.ndim == 4):
            return list(self.stream(source))
        return next(self.stream([source], workers=0))

    @overload
    def stream(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int = 8,
        on_error: Literal["raise"] = "raise",
        workers: int | None = None,
    ) -> Iterator[Result]: ...

    @overload
    def stream(
        self, sources: Iterable[Source], *, batch_size: int = 8, on_error: str, workers: int | None = None
    ) -> Iterator[Result | Failure]: ...

    def stream(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int = 8,
        on_error: str = "raise",
        workers: int | None = None,
    ) -> Iterator[Result | Failure]:
        """Segment pictures as they come, `batch_size` at a time, and yield in order.

        While one batch is computed the next is read by `workers` threads, so sources are pulled up to one batch before
        their results are asked for, on CUDA two: the GPU works one batch ahead of the reader.

        on_error: "raise" the error of the first picture that cannot be read or computed, after the ones before it were
        yielded; or "record": yield a `Failure` in its place and go on.
        workers: default one per core, at most 4; 0: read in place, and no further than the batch, as for a camera.

        Raises ValueError for such arguments, and where no classes were set.
        """
        if isinstance(sources, str | bytes | os.PathLike | Image.Image | Result | Encoded) or (
            isinstance(sources, Tensor | np.ndarray) and sources.ndim != 4
        ):
            reject("sources", "several pictures; of one make a list, or call the segmenter itself", _short(sources))
        workers = min(os.cpu_count() or 1, 4) if workers is None else workers
        if on_error not in ("raise", "record"):
            reject("on_error", "raise or record", repr(on_error))
        if batch_size < 1:
            reject("batch_size", "at least 1", batch_size)
        if workers < 0:
            reject("workers", "at least 0", workers)
        self._require_classes()
        return self._stream(sources, batch_size, workers, record=on_error == "record")

    def _stream(
        self, sources: Iterable[Source], batch_size: int, workers: int, record: bool
    ) -> Iterator[Result | Failure]:
        batches = read_batches(sources, self._read, batch_size=batch_size, workers=workers)
        try:
            yield from self._run(batches, record)
        finally:
            batches.close()

    def stream_batches(self, batches: Iterable[list[Picture | Failure]]) -> Iterator[Result | Failure]:
        """`stream` for who reads by himself (`s2clip.pictures.reading.read`) and decides which pictures share a batch.

        Failures are yielded in their place, as by `on_error="record"`. Raises ValueError where no classes were set.
        """
        self._require_classes()
        return self._run(batches, record=True)

    def _run(self, batches: Iterable[list[Picture | Failure]], record: bool) -> Iterator[Result | Failure]:
        return pipeline.run(batches, self._compute, self._queue, split=self._groups, record=record)

    def _groups(self, batch: Sequence[Picture | Failure]) -> list[int]:
        """How many neighbours of a batch are computed together: one where pictures are not mixed, else what fits."""
        if not self._encoder.mix_pictures:
            return [1] * len(batch)
        cap = self._encoder.cap
        if cap is None:
            return [len(batch)]
        plans = [None if isinstance(one, Failure) else self._encoder.plan(_size(one)) for one in batch]
        return cap.together([0 if plan is None else plan.resident for plan in plans])

    @sheltered()
    def _compute(self, pictures: Sequence[Picture]) -> pipeline.Finish:
        results = self._segment(self._encode(pictures), self._require_classes(), self._background)
        return lambda: _checked(results)

    @sheltered()
    def encode(self, source: Source) -> Encoded:
        """The picture's features, to be segmented with many sets of words: the expensive half."""
        encoded = self._encode([self._read_or_raise(source)])[0]
        if self.device.type == "cuda" and encoded.features.device.type == "cpu":
            torch.cuda.current_stream(self.device).synchronize()  # under a cap the copy to the host was only queued
        return encoded

    @sheltered()
    def encode_batch(self, pictures: Sequence[Picture]) -> list[Encoded]:
        """`encode` of pictures that were read (`s2clip.pictures.reading.read`), as many together as `stream` takes."""
        encoded: list[Encoded] = []
        for length in self._groups(pictures) if pictures else ():
            encoded += self._encode(pictures[len(encoded) : len(encoded) + length])
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # under a cap copies to the host were only queued
        return encoded

    @sheltered()
    def segment(
        self, encoded: Encoded, classes: str | Sequence[str] | None = None, *, background: int | str | None = None
    ) -> Result:
        """Segment an encoded picture with these classes, or with those that were set: the cheap half.

        Classes given here are for this call; their words stay in the cache. Raises as `set_classes`.
        """
        _check_encoded("segment", encoded)
        words, number = self._chosen(classes, background)
        return _checked(self._segment([encoded], words, number))[0]

    @sheltered()
    def scores(
        self, encoded: Encoded, classes: str | Sequence[str] | None = None, *, background: int | str | None = None
    ) -> ScoreMaps:
        """The scores P_c of an encoded picture before any refinement; `.whole((h, w))` gives all as [K,h,w] in 0..1.

        Classes as in `segment`.
        """
        _check_encoded("scores", encoded)
        words, number = self._chosen(classes, background)
        text, settings = self._rows(words), (words.class_index, number, self._models, self.method)
        if self.method.template_choice is not None:
            decision = self._by_experts(encoded, text, words, number, self.method, with_scores=True)
        else:
            decision = self._extension.decide(encoded, text, *settings, with_scores=True)
        maps = decision.scores
        assert maps is not None, "asked for above"
        return maps

    @sheltered()
    def refine(self, image: Source, labels: Tensor, scores: Tensor) -> Result:
        """Refine anybody's coarse map by SAM; no classes need to be set.

        Args:
            image: as everywhere.
            labels: integers [H,W] at the picture's size; ids outside of 0..K-1 (255, say) are void: they are no region,
                and stay where no mask of SAM reaches.
            scores: floats [K,h,w] of any resolution, the probability of each class.

        Returns the refined `Result`; its classes are those that were set if they are K, else "0" to "K-1".

        Raises:
            ValueError: no refinement was loaded, shapes do not fit, or a score is not finite.
        """
        if self.refiner is None:
            raise ValueError("refine: expected a Segmenter with refine='sam', 'sam+sd' or 'trident', received 'none'")
        picture = self._read_or_raise(image)
        return refine_given(self.refiner, picture, labels, scores, self.classes, self.settings)

    @sheltered()
    def choose_templates(self, images: Iterable[Source], *, count: int = 4) -> TemplateChoice:
        """FLOSS's choice for the classes that were set, from pictures without labels: the `count` templates of each
        that are surest of what they call it. `with_method(m, template_choice=...)` decides by it.

        Raises `ValueError` where there is no picture or no class.
        """
        words = self._require_classes()
        ranking = experts.Ranking(words.classes, words.class_index, self.method)
        for image in images:
            ranking.add(self.encode(image), self._by_template(words))
        return ranking.choice(count)

    def with_method(self, method: str | Method, **fields: Any) -> "Segmenter":
        """The same models, classes and encoded words with another method, unrefined.

        method, fields: as they are, without the model's recipe. Raises as the constructor.
        """
        _check_keywords(fields)
        other = Segmenter(
            self.clip,
            vfm=self.vfm,
            sam=self._models.sam,
            diffusion=self._models.diffusion,
            regions=self.regions,
            method=get_method(method, **fields),
            max_batch=self._encoder.max_batch,
            mix_pictures=self._encoder.mix_pictures,
            max_memory=None if self._encoder.cap is None else self._encoder.cap.size,
            max_pixels=self.max_pixels,
            max_seconds=self.max_seconds,
        )
        other._text, other._vocabulary, other._background = self._text, self._vocabulary, self._background
        return other

    def with_refinement(self, **options: Any) -> "Segmenter":
        """The same models with other fields of `Refinement`, `use_box=False`."""
        if self.refiner is None:
            raise ValueError("with_refinement: expected a Segmenter with refine='sam' or 'trident'")
        other = copy.copy(self)
        other.__dict__.pop("settings", None)
        other.refiner = self.refiner.with_settings(**options)
        return other

    def _chosen(
        self, classes: str | Sequence[str] | None, background: int | str | None
    ) -> tuple[Vocabulary, int | None]:
        """The classes of this call, or those that were set."""
        if classes is not None:
            return self._resolve(classes, background)
        words = self._require_classes()
        return words, self._background if background is None else words.find(background)

    def _require_classes(self) -> Vocabulary:
        if self._vocabulary is None:
            raise ValueError("no classes: call set_classes first, or give classes to segment")
        return self._vocabulary


def _check_keywords(fields: Iterable[str]) -> None:
    """`ValueError` naming the nearest keyword for one that is neither `from_pretrained`'s nor a field of `Method`."""
    own = list(inspect.signature(Segmenter.from_pretrained).parameters)[:-1]
    valid = [field.name for field in dataclasses.fields(Method)]
    for field in fields:
        if field not in valid and not field.startswith("extension."):
            near = meant(field, [*own, *valid]) or f"; its own are {', '.join(own)}"
            reject("keyword", "one of from_pretrained or a field of Method", repr(field) + near)


def _check_encoded(call: str, encoded: object) -> None:
    if not isinstance(encoded, Encoded):
        hint = f"; {call}(segmenter.encode(picture), classes), or segmenter(picture) with the classes set"
        reject("encoded", "what encode() gives", _short(encoded) + hint)


def _size(picture: Picture) -> tuple[int, int]:
    return picture.pixels.shape[1], picture.pixels.shape[2]


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str | Path) else type(value).__name__


def _checked(results: list[Result]) -> list[Result]:
    check_labels([result.segmentation if result.coarse is None else result.coarse for result in results])
    return results
