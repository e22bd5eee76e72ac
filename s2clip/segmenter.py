"""`Segmenter`: pictures and class names in, label maps out."""

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2clip import memory, pipeline
from s2clip.decision import Decision, check_labels
from s2clip.encoder import Encoded, Encoder
from s2clip.errors import RefinementError, first_few, reject
from s2clip.graphs import GraphCache, classify
from s2clip.images import MAX_PIXELS, Source
from s2clip.methods import RECIPES, Method, get_method
from s2clip.published.extension import Extension, Models, resolve_extension
from s2clip.reading import Failure, Picture, Uploader, read, read_batches
from s2clip.refinement.scores import DenseScores, ScoreMaps
from s2clip.refinement.settings import Refinement, check_refinement, resolve_settings
from s2clip.result import Result
from s2clip.stopwatch import Stopwatch, Timings
from s2clip.text import TextEncoder, Vocabulary, vocabulary
from s2clip.text_cache import VectorFiles, default_folder

if TYPE_CHECKING:
    from s2clip.refinement.sam import Refined

logger = logging.getLogger(__name__)

SAID = 10
"""Words named in a warning."""

RegionSource = Callable[[Tensor, str | None], Tensor]
"""A picture uint8 [3,H,W] and its path, if it has one → integers [H,W], the id of each pixel's region."""


class Segmenter:
    """Open-vocabulary segmentation: classes are named at run time, nothing is trained.

        segmenter = Segmenter.from_pretrained("tiny")
        segmenter.set_classes(["sky", "house; hut", "tree"])
        result = segmenter("photo.jpg")

    Predicting changes no global state: random numbers, precision, gradient and thread settings stay as they are. The
    same picture gives the same labels whatever else is in the list (on CUDA: see `mix_pictures` of `Encoder`).
    """

    def __init__(
        self,
        clip,
        *,
        vfm=None,
        sam=None,
        diffusion=None,
        regions: RegionSource | None = None,
        refiner=None,
        text_files: VectorFiles | None = None,
        method: str | Method = "s2clip",
        max_batch: int | None = None,
        mix_pictures: bool | None = None,
        max_memory: str | int | None = None,
        cuda_graphs: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Backbones that are already loaded; the method is taken as it is, without the model's recipe.

        clip: `s2clip.backbones.clip.CLIPBackbone`. vfm: `s2clip.backbones.vfm.VisionFeatures` on the same device,
        needed where `method.uses_vfm`. sam: from `s2clip.backbones.sam.load_sam`, where `method.uses_sam`; that of a
        refiner serves as well. diffusion: `s2clip.diffusion.DiffusionAffinity`, where `method.uses_diffusion`. regions:
        region ids of a picture, where `method.uses_regions`. refiner: `s2clip.refinement.refiner.Refiner`, None for
        the coarse map alone. text_files: where word vectors are kept between processes, None for nowhere. max_batch,
        mix_pictures: see `Encoder`. max_memory, cuda_graphs, max_pixels: see `from_pretrained`.
        """
        self.method = get_method(method)
        sam, diffusion = sam or getattr(refiner, "sam", None), diffusion or getattr(refiner, "diffusion", None)
        self._models = Models(clip, vfm, sam, diffusion)
        for argument, value, needed, what in (
            ("vfm", vfm, self.method.uses_vfm, "a vision foundation model"),
            ("sam", self._models.sam, self.method.uses_sam, "a SAM"),
            ("diffusion", diffusion, self.method.uses_diffusion, "a DiffusionAffinity"),
            ("regions", regions, self.method.uses_regions, "a function that gives a picture's region ids"),
        ):
            if needed and value is None:
                reject(argument, f"{what} for method {self.method.name}", None)
        self.clip, self.vfm, self.regions, self.max_pixels = clip, vfm, regions, max_pixels
        self.refiner = refiner
        self._extension = resolve_extension(self.method)
        cap = None
        if max_memory is not None:
            load = memory.load_of(self._models, self.method, refines=refiner is not None)
            cap = memory.Cap(memory.parse_size(max_memory), load).check()
            if refiner is not None:
                refiner.sam.most_prompts = cap.prompts
        batches = {"max_batch": max_batch, "mix_pictures": mix_pictures, "cap": cap}
        self._encoder = Encoder(self._models, self.method, **batches)
        self._graphs = GraphCache(classify) if cuda_graphs else None
        self._upload = Uploader(clip.device)
        # One stream for all calls: the allocator keeps memory per stream, and would fill it anew in every call.
        self._queue = pipeline.DeviceQueue(clip.device)
        self._text = TextEncoder(clip, files=text_files)
        self._class_index: tuple[tuple[int, ...], Tensor] | None = None
        self._vocabulary: Vocabulary | None = None
        self._background: int | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str = "tiny",
        *,
        vfm: str | None = None,
        refine: str = "none",
        sam: str | None = None,
        refine_options: Refinement | Mapping[str, Any] | None = None,
        diffusion_model: str | None = None,
        regions: RegionSource | None = None,
        method: str | Method = "s2clip",
        compile: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
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
        **fields: Any,
    ) -> "Segmenter":
        """Load the models by name and put the method together.

        Args:
            model: CLIP, "tiny" (embedded), "ViT-B-16", "ViT-L-14" or "ViT-H-14".
            vfm: vision foundation model, loaded only where the method uses one; None: "tiny-dino" with model "tiny",
                else the one the method was published with, "dino-b8" mostly.
            refine: what follows the coarse map: "none"; "sam", SAM's masks for all regions at once; "trident", the same
                as published, region by region on the host, to compare with (needs scikit-image, extra `trident`);
                "sam+sd", Stable Diffusion's self-attention first and SAM after it (needs the extra `diffusion`).
            sam: "sam-tiny", "sam-vit-b", "sam-vit-l" or "sam-vit-h", loaded to refine or for a method that uses one;
                None: "sam-tiny" with model "tiny", else "sam-vit-b".
            refine_options: fields of `s2clip.refinement.settings.Refinement`, `{"sam_iou_threshold": 0.9}`.
            diffusion_model: Hub id or folder of Stable Diffusion for "sam+sd" or a method that uses it; None:
                `s2clip.diffusion.MODEL_ID`.
            regions: region ids of a picture, from its pixels and path, for a method that needs them.
            compile: compile the blocks of CLIP, the VFM and SAM's encoder; the first pictures wait minutes for it.
            method: a name of `s2clip.methods.METHODS`, or a `Method`.
            device, dtype: default CUDA with fp16, or the CPU with fp32.
            cache_dir, local_files_only: where weights lie, and whether to stay off the network.
            text_cache: keep word vectors in the folder s2clip-text beside the weights, where later processes find them;
                None: unless the model is "tiny", which is as fast as a disk. Never for random weights.
            weights: "pretrained", or "random": results without meaning, for tests and timing.
            short_side, crop, stride: pixels, instead of the method's own; 0: native size, whole picture. A model
                trained at another size brings its own (`s2clip.methods.RECIPES`) in place of the method's; what is
                given here replaces both.
            max_batch, mix_pictures: see `s2clip.encoder.Encoder`.
            max_memory: "8GB" (10^9 bytes), "7.5GiB" or bytes: windows, words, prompts and pictures are worked on in
                chunks that `s2clip.memory` says fit. None: as fast as they go.
            cuda_graphs: replay the decision as a CUDA graph for picture sizes that come often (`s2clip.graphs`); off,
                because what that saves is not measured yet. For spliced methods without refinement.
            max_pixels: pictures with more pixels are refused before they are decoded.
            fields: any other field of `Method`, to change one value: `tau=2.0`, or `**{"extension.depth": 3}`.

        Raises:
            ValueError: unknown name (the valid ones are listed) or value.
            WeightsError: weights that are not there or not what their name says.
        """
        from s2clip.backbones.clip import CLIP_NAMES, load_clip
        from s2clip.backbones.sam import SAM_NAMES, load_sam
        from s2clip.backbones.vfm import VFM_NAMES, load_vfm
        from s2clip.refinement.refiner import load_refiner, shared_sam

        check_refinement(refine)
        method = get_method(method)
        vfm = vfm or ("tiny-dino" if model == "tiny" else resolve_extension(method).default_vfm)
        sam = sam or ("sam-tiny" if model == "tiny" else "sam-vit-b")
        names = (("model", model, CLIP_NAMES), ("vfm", vfm, VFM_NAMES), ("sam", sam, SAM_NAMES))
        for argument, name, valid in names:
            if name not in valid:
                reject(argument, f"one of {', '.join(valid)}", repr(name))
        if model in RECIPES:
            method = RECIPES[model].adapt(method)
        geometry = {"short_side": short_side, "crop": crop, "stride": stride}
        given = {name: value or None for name, value in geometry.items() if value is not None}
        method = get_method(method, **given, **fields)
        settings = resolve_settings(sam, refine_options)
        if max_memory is not None:
            max_memory = memory.parse_size(max_memory)

        options = {
            "weights": weights,
            "device": device,
            "dtype": dtype,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        clip = load_clip(model, **options)
        features = load_vfm(vfm, **options) if method.uses_vfm else None
        own_sam = own_diffusion = refiner = None
        if method.uses_sam:
            own_sam = shared_sam(features, sam) or load_sam(sam, **options)
        if method.uses_diffusion:
            from s2clip.diffusion import MODEL_ID, DiffusionAffinity

            own_diffusion = DiffusionAffinity.load(diffusion_model or MODEL_ID, **options)
        if refine != "none":
            options |= {"vfm": features, "sam": own_sam, "compile": compile}
            options |= {"diffusion": own_diffusion, "diffusion_model": diffusion_model}
            refiner = load_refiner(sam, settings, refine=refine, **options)
        if cuda_graphs and clip.device.type != "cuda":
            reject("cuda_graphs", "False without a CUDA device", True)
        if compile:
            logger.warning(
                "compiling the blocks of %s: the first pictures wait one to several minutes for it, in every new "
                "process and for every size of windows; worth it from some hundred pictures on",
                " and ".join(model.name for model in (clip, features) if model is not None),
            )
            for encoder in (clip, features):
                if encoder is not None:
                    encoder.compile_blocks()
        keep_text = weights != "random" and (model != "tiny" if text_cache is None else text_cache)
        return cls(
            clip,
            vfm=features,
            sam=own_sam,
            diffusion=own_diffusion,
            regions=regions,
            refiner=refiner,
            text_files=VectorFiles(default_folder(cache_dir), clip) if keep_text else None,
            method=method,
            max_batch=max_batch,
            mix_pictures=mix_pictures,
            max_memory=max_memory,
            cuda_graphs=cuda_graphs,
            max_pixels=max_pixels,
        )

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that were set, or ()."""
        return self._vocabulary.classes if self._vocabulary else ()

    def set_classes(
        self,
        classes: str | Sequence[str],
        *,
        background: int | str | None = None,
        allow_repeats: bool = False,
    ) -> "Segmenter":
        """Name the classes of the pictures to come. Words are encoded once.

        Args:
            classes: entries as a list, or one string "sky, house; hut, tree"; words of one class are parted by ";".
            background: the class, by name or number, that pixels under the method's threshold are given.
            allow_repeats: take lists that hold a word twice, as published ones do; the first class wins it.

        Raises:
            ValueError: no class, an empty or repeated name, an unknown background, or a threshold without background.
        """
        words, number = self._resolve(classes, background, allow_repeats)
        self._rows(words)
        self._vocabulary, self._background = words, number
        return self

    def __call__(self, source: Source | Sequence[Source]) -> Result | list[Result]:
        """Segment one picture (path, PIL image, uint8 array [H,W,3] in RGB order, tensor [3,H,W]) or a list of them.

        Raises `ImageError` for a picture that cannot be used, `ValueError` where no classes were set.
        """
        if isinstance(source, list | tuple):
            return list(self.stream(source))
        return next(self.stream([source], workers=0))

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
        """`stream` for who reads by himself (`s2clip.reading.read`) and decides which pictures share a batch.

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
        sizes = [None if isinstance(one, Failure) else tuple(one.pixels.shape[1:]) for one in batch]
        return cap.together([0 if size is None else self._encoder.plan(size).resident for size in sizes])

    def _compute(self, pictures: Sequence[Picture]) -> pipeline.Finish:
        results = self._segment(self._encode(pictures), self._require_classes(), self._background)
        return lambda: _checked(results)

    def encode(self, source: Source) -> Encoded:
        """The picture's features, to be segmented with many sets of words: the expensive half."""
        return self._encode([self._read_or_raise(source)])[0]

    def segment(
        self, encoded: Encoded, classes: str | Sequence[str] | None = None, *, background: int | str | None = None
    ) -> Result:
        """Segment an encoded picture with these classes, or with those that were set: the cheap half.

        Classes given here are for this call; their words stay in the cache. Raises as `set_classes`.
        """
        words, number = self._chosen(classes, background)
        return _checked(self._segment([encoded], words, number))[0]

    @torch.inference_mode()
    def scores(
        self, encoded: Encoded, classes: str | Sequence[str] | None = None, *, background: int | str | None = None
    ) -> ScoreMaps:
        """The scores P_c of an encoded picture before any refinement; `.whole((h, w))` gives all as [K,h,w] in 0..1.

        Classes as in `segment`.
        """
        words, number = self._chosen(classes, background)
        settings = words.class_index, number, self._models, self.method
        return self._extension.decide(encoded, self._rows(words), *settings, with_scores=True).scores

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
        labels, scores = torch.as_tensor(labels), torch.as_tensor(scores)
        size = tuple(picture.pixels.shape[1:])
        if tuple(labels.shape) != size or labels.is_floating_point() or labels.dtype == torch.bool:
            reject("labels", f"integers [H,W] = {list(size)}", f"{labels.dtype} {list(labels.shape)}")
        if scores.ndim != 3 or not scores.is_floating_point() or 0 in scores.shape:
            reject("scores", "floats [K,h,w], none of them 0", f"{scores.dtype} {list(scores.shape)}")
        watch = Stopwatch(self.device)
        with torch.inference_mode():
            labels, maps = labels.to(self.device).long(), DenseScores(scores.to(self.device))
            with watch("sam_encoder"):
                embedding = self.refiner.embed(picture.pixels)
            if self.refiner.diffusion is not None:  # the given labels stay: ids that are no class would be lost
                from s2clip.diffusion import refine_scores

                with watch("diffusion"):
                    maps = DenseScores(refine_scores(self.refiner.diffusion, picture.pixels.float() / 255, maps.scores))
            refined = self.refiner([embedding], [labels], [maps], watch)[0]
            confidence = maps.own(labels)
        names = self.classes if len(self.classes) == maps.classes else tuple(map(str, range(maps.classes)))
        coarse = Result(
            segmentation=labels.clone(),
            confidence=confidence.clone(),
            classes=names,
            image=picture.pixels,
            source=picture.source,
            timings=Timings(({"read": picture.milliseconds}, 1.0), (watch, 1.0)),
            settings=self.settings,
        )
        return _with_refined(coarse, refined, coarse.timings)

    def with_method(self, method: str | Method, **fields: Any) -> "Segmenter":
        """The same models, classes and encoded words with another method, unrefined.

        method, fields: as they are, without the model's recipe. Raises as the constructor.
        """
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

    def _segment(self, encoded: Sequence[Encoded], words: Vocabulary, background: int | None) -> list[Result]:
        """Results whose labels are still to be checked: on CUDA they may not have been computed yet."""
        results, scores = [], []
        for one in encoded:
            watch = Stopwatch(self.device)
            with torch.inference_mode():
                with watch("text"):
                    text = self._rows(words)
                with watch("classify"):
                    labels, confidence, maps = self._decide(one, text, words, background)
                    scores.append(maps)
            results.append(
                Result(
                    segmentation=labels.clone(),  # outside inference mode: tensors that may be written to
                    confidence=confidence.clone(),
                    classes=words.classes,
                    background=background,
                    image=one.picture,
                    source=one.source,
                    timings=Timings((one.timings, 1.0), (watch, 1.0)),
                    settings=self.settings,
                )
            )
        return results if self.refiner is None else self._refined(encoded, results, scores)

    def _decide(self, encoded: Encoded, text: Tensor, words: Vocabulary, background: int | None) -> Decision:
        settings, method = (words.class_index, background, self._models, self.method), self.method
        own_rules = (
            method.area_threshold is not None
            or method.pamr_iterations
            or type(self._extension).decide is not Extension.decide
        )
        if self._graphs is None or self.refiner is not None or not encoded.spliced or own_rules:
            return self._extension.decide(encoded, text, *settings, with_scores=self.refiner is not None)
        if self._class_index is None or self._class_index[0] != words.class_index:
            self._class_index = words.class_index, torch.tensor(words.class_index, device=self.device)
        rules = {"classes": len(words.classes), "background": -1 if background is None else background}
        rules |= {"scale": method.logit_scale, "threshold": method.threshold, "size": encoded.size}
        return Decision(*self._graphs(encoded.features[0], text, self._class_index[1], **rules), None)

    def _refined(self, encoded: Sequence[Encoded], coarse: list[Result], scores: Sequence[ScoreMaps]) -> list[Result]:
        watch = Stopwatch(self.device)
        embeddings = [one.sam or self.refiner.embed(one.picture) for one in encoded]
        try:
            if self.refiner.diffusion is not None and not self._extension.smooths_itself:
                smooth = [self._diffused(*one, watch) for one in zip(coarse, scores, strict=True)]
                before, scores = [one for one, _ in smooth], [maps for _, maps in smooth]
            else:
                before = coarse
            refined = self.refiner(embeddings, [one.segmentation for one in before], scores, watch)
        except (RuntimeError, ValueError) as error:
            raise RefinementError(f"refine: {error}", coarse) from error
        coarse = before
        return [
            _with_refined(result, one, Timings((result.timings, 1.0), (watch, 1 / len(encoded))))
            for result, one in zip(coarse, refined, strict=True)
        ]

    def _diffused(self, coarse: Result, scores: ScoreMaps, watch: Stopwatch) -> tuple[Result, ScoreMaps]:
        """The coarse map and its scores after Stable Diffusion's self-attention."""
        from s2clip.diffusion import diffuse

        limits = {"threshold": self.method.threshold, "background": coarse.background}
        with watch("diffusion"):
            labels, confidence, maps = diffuse(self.refiner.diffusion, coarse.image.to(self.device), scores, **limits)
        return dataclasses.replace(coarse, segmentation=labels.clone(), confidence=confidence.clone()), maps

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What was resolved, as JSON values: models, sha256 of their weights, device, dtype, the method's fields."""
        models = {"clip": self.clip} | ({"vfm": self.vfm} if self.method.uses_vfm else {})
        hashes = {role: model.weights_sha256 for role, model in models.items()}
        if self.method.uses_sam:
            hashes["sam"] = self._models.sam.fingerprint.sha256
        return {
            **{role: model.name for role, model in models.items()},
            "weights_sha256": hashes,
            **(self._models.diffusion.described if self.method.uses_diffusion else {}),
            "device": str(self.device),
            "dtype": str(self.clip.dtype).removeprefix("torch."),
            "refine": "none" if self.refiner is None else self.refiner.refine,
            **({} if self.refiner is None else self.refiner.described),
            "method": dataclasses.asdict(self.method),
        }

    def _read(self, source: Source) -> Picture | Failure:
        return read(source, max_pixels=self.max_pixels, pin=self.device.type == "cuda")

    def _read_or_raise(self, source: Source) -> Picture:
        picture = self._read(source)
        if isinstance(picture, Failure):
            raise picture.error
        return picture

    def _encode(self, pictures: Sequence[Picture]) -> list[Encoded]:
        regions = [self._regions_of(picture) for picture in pictures] if self.method.uses_regions else None
        uploaded = [self._upload(picture) for picture in pictures]
        complete = []
        for one, picture, pixels in zip(self._encoder(uploaded, regions), pictures, uploaded, strict=True):
            embedding, watch = one.sam, Stopwatch(self.device)
            if self.refiner is not None and embedding is None:
                with watch("sam_encoder"):
                    embedding = self.refiner.embed(pixels)
            timings = Timings(({"read": picture.milliseconds}, 1.0), (one.timings, 1.0), (watch, 1.0))
            complete.append(
                dataclasses.replace(one, picture=picture.pixels, source=picture.source, timings=timings, sam=embedding)
            )
        return complete

    def _regions_of(self, picture: Picture) -> Tensor:
        ids, size = torch.as_tensor(self.regions(picture.pixels, picture.source)), tuple(picture.pixels.shape[1:])
        if tuple(ids.shape) != size or ids.is_floating_point() or ids.dtype == torch.bool:
            reject("regions", f"integers [H,W] = {list(size)}", f"{ids.dtype} {list(ids.shape)}")
        return ids.long()

    def _resolve(
        self, classes: str | Sequence[str], background: int | str | None, allow_repeats: bool = False
    ) -> tuple[Vocabulary, int | None]:
        words = vocabulary(classes, allow_repeats=allow_repeats)
        if extra := self._extension.extra_words:
            vocabulary([*words.classes, *extra], allow_repeats=allow_repeats)  # a class among them would lose its score
        number = words.find(background)
        if number is None:
            for field in ("threshold", "area_threshold"):
                if getattr(self.method, field):
                    value = getattr(self.method, field)
                    reject("background", f"one of {', '.join(words.classes)}, for {field}={value}", None)
        if unknown := self.clip.unknown_words(list(words.words)):
            words_said = first_few(unknown, SAID)
            logger.warning("model %s does not know %s: expect nothing of these words", self.clip.name, words_said)
        return words, number

    def _rows(self, words: Vocabulary) -> Tensor:
        """Unit rows [Q+E,C] of the words, and of those that the method adds."""
        return self._text((*words.words, *self._extension.extra_words), self.method.templates)

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


def _checked(results: list[Result]) -> list[Result]:
    check_labels([result.segmentation if result.coarse is None else result.coarse for result in results])
    return results


def _with_refined(coarse: Result, refined: "Refined", timings: Mapping[str, float]) -> Result:
    """The result after SAM: where a mask decided, its Q is the confidence, elsewhere the coarse one stays."""
    return dataclasses.replace(
        coarse,
        segmentation=refined.labels.clone(),
        confidence=torch.where(refined.score > 0, refined.score.to(coarse.confidence), coarse.confidence),
        timings=timings,
        coarse=coarse.segmentation,
        refined=refined,
    )
