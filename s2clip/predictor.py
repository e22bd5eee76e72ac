"""The steps from pictures and words to results, with the models and the method fixed."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2clip import memory, pipeline
from s2clip.backbones.sam2 import Sam2
from s2clip.decision import experts
from s2clip.decision.decided import Decision
from s2clip.decision.graphs import GraphCache, classify
from s2clip.encoding.encoded import Encoded
from s2clip.encoding.encoder import Encoder
from s2clip.encoding.hooks import Models
from s2clip.errors import first_few, reject
from s2clip.methods.method import Method
from s2clip.pictures.images import MAX_PIXELS, MAX_SECONDS, Source
from s2clip.pictures.reading import Failure, Picture, Uploader, read
from s2clip.published.catalogue import get_method
from s2clip.published.extension import Extension, resolve_extension
from s2clip.refinement.regions import RegionSource, described
from s2clip.refinement.results import refine_results
from s2clip.results.result import Result
from s2clip.shelter import sheltered
from s2clip.stopwatch import Stopwatch, Timings
from s2clip.values import ignored_id
from s2clip.words.lists import equal_words, remarks
from s2clip.words.text import TextEncoder, Vocabulary, vocabulary
from s2clip.words.text_cache import VectorFiles

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from s2clip.backbones.clip import CLIPBackbone
    from s2clip.backbones.diffusion_affinity import DiffusionAffinity
    from s2clip.backbones.vision_features import VisionFeatures
    from s2clip.decision.scores import ScoreMaps
    from s2clip.refinement.refiner import Refiner

logger = logging.getLogger(__name__)

Progress = Callable[[Sequence[str]], Iterable[str]]
"""Gives words on while they are encoded, as tqdm does with a bar."""
SAID = 10
"""Words named in a warning."""


class Predictor:
    """Read, upload, encode, name, decide, refine: one method each. What users call is `s2clip.segmenter.Segmenter`."""

    def __init__(
        self,
        clip: "CLIPBackbone",
        *,
        vfm: "VisionFeatures | None" = None,
        sam: "Sam | None" = None,
        diffusion: "DiffusionAffinity | None" = None,
        regions: RegionSource | None = None,
        refiner: "Refiner | None" = None,
        text_files: VectorFiles | None = None,
        method: str | Method = "s2clip",
        max_batch: int | None = None,
        mix_pictures: bool | None = None,
        max_memory: str | int | None = None,
        cuda_graphs: bool = False,
        max_pixels: int = MAX_PIXELS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        """Backbones that are already loaded; the method is taken as it is, without the model's recipe.

        clip: `s2clip.backbones.clip.CLIPBackbone`. vfm: `s2clip.backbones.vfm.VisionFeatures` on the same device,
        needed where `method.uses_vfm`. sam: from `s2clip.backbones.sam.load_sam`, where `method.uses_sam`; that of a
        refiner serves as well. diffusion: a `DiffusionAffinity`, where `method.uses_diffusion`. regions:
        region ids of a picture, where `method.uses_regions`. refiner: `s2clip.refinement.refiner.Refiner`, None for
        the coarse map alone. text_files: where word vectors are kept between processes, None for nowhere. max_batch,
        mix_pictures: see `Encoder`. max_memory, cuda_graphs, max_pixels, max_seconds: see `from_pretrained`.
        """
        if isinstance(clip, str | os.PathLike):
            hint = f"; models are loaded by name with Segmenter.from_pretrained({os.fspath(clip)!r})"
            reject("clip", "a loaded CLIPBackbone", repr(clip) + hint)
        self.method = get_method(method)
        sam, diffusion = sam or getattr(refiner, "sam", None), diffusion or getattr(refiner, "diffusion", None)
        self._models = Models(clip, vfm, sam, diffusion)
        for argument, value, needed, what in (
            ("vfm", vfm, self.method.uses_vfm, "a vision foundation model"),
            ("sam", self._models.sam, self.method.uses_sam, "a SAM"),
            ("diffusion", diffusion, self.method.uses_diffusion, "a DiffusionAffinity"),
            (
                "regions",
                regions,
                self.method.uses_regions,
                "'sam', a folder of PNGs or a function that gives region ids",
            ),
        ):
            if needed and value is None:
                reject(argument, f"{what} for method {self.method.name}", None)
        if self.method.uses_sam and isinstance(self._models.sam, Sam2):
            reject("sam", f"a SAM whose attention {self.method.name} reads, not SAM 2", repr(self._models.sam.name))
        self.clip, self.vfm, self.regions = clip, vfm, regions
        self.max_pixels, self.max_seconds = max_pixels, max_seconds
        self.refiner = refiner
        self._extension = resolve_extension(self.method)
        cap = None
        if max_memory is not None and (self.method.purification or self.method.template_choice):
            reject("max_memory", "None with purification or template_choice, whose maps are held whole", max_memory)
        if max_memory is not None:
            load = memory.load_of(self._models, self.method, refines=refiner is not None)
            cap = memory.Cap(memory.parse_size(max_memory), load).check()
            if refiner is not None:
                asked: Any = refiner.sam
                asked.most_prompts = cap.prompts
        self._encoder = Encoder(self._models, self.method, max_batch=max_batch, mix_pictures=mix_pictures, cap=cap)
        self._graphs = GraphCache(classify) if cuda_graphs else None
        self._upload = Uploader(clip.device)
        # One stream for all calls: the allocator keeps memory per stream, and would fill it anew in every call.
        self._queue = pipeline.DeviceQueue(clip.device)
        self._text = TextEncoder(clip, files=text_files)
        self._class_index: tuple[tuple[int, ...], Tensor] | None = None
        self._remarked: Vocabulary | None = None

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What was resolved, as JSON values: models, sha256 of their weights, device, dtype, the method's fields."""
        models: dict[str, CLIPBackbone | VisionFeatures] = {"clip": self.clip}
        if self.method.uses_vfm and self.vfm is not None:
            models["vfm"] = self.vfm
        diffusion = self._models.diffusion
        hashes = {role: model.weights_sha256 for role, model in models.items()}
        if self.method.uses_sam and self._models.sam is not None:
            hashes["sam"] = self._models.sam.fingerprint.sha256
        return {
            **{role: model.name for role, model in models.items()},
            "weights_sha256": hashes,
            **(diffusion.described if self.method.uses_diffusion and diffusion is not None else {}),
            **(described(self.regions) if self.method.uses_regions and self.regions is not None else {}),
            "device": str(self.device),
            "dtype": str(self.clip.dtype).removeprefix("torch."),
            "refine": "none" if self.refiner is None else self.refiner.refine,
            **({} if self.refiner is None else self.refiner.described),
            "method": dataclasses.asdict(self.method),
        }

    @sheltered()
    def _read(self, source: Source) -> Picture | Failure:
        pin = self.device.type == "cuda"
        return read(source, max_pixels=self.max_pixels, max_seconds=self.max_seconds, pin=pin)

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
        assert self.regions is not None, "the constructor asks for them"
        ids, size = torch.as_tensor(self.regions(picture.pixels, picture.source)), tuple(picture.pixels.shape[1:])
        if tuple(ids.shape) != size or ids.is_floating_point() or ids.dtype == torch.bool:
            reject("regions", f"integers [H,W] = {list(size)}", f"{ids.dtype} {list(ids.shape)}")
        return ids.long()

    def _resolve(
        self,
        classes: str | Sequence[str],
        background: int | str | None,
        allow_repeats: bool = False,
        progress: Progress = iter,
    ) -> tuple[Vocabulary, int | None]:
        if classes is None:
            reject("classes", 'names, as "sky, house; hut, tree" or a list', None)
        words = vocabulary(classes, allow_repeats=allow_repeats)
        extra = self._extension.extra_words
        if extra:
            vocabulary([*words.classes, *extra], allow_repeats=allow_repeats)  # a class among them would lose its score
        number = words.find(background)
        if number is None and self.method.area_threshold:
            value = self.method.area_threshold
            reject("background", f"one of {', '.join(words.classes)}, for area_threshold={value}", None)
        if unknown := self.clip.unknown_words(list(words.words)):
            words_said = first_few(unknown, SAID)
            logger.warning("model %s does not know %s: expect nothing of these words", self.clip.name, words_said)
        self._remark(words, own=not allow_repeats, progress=progress)
        return words, number

    def _remark(self, words: Vocabulary, own: bool, progress: Progress) -> None:
        """Say what is seldom meant in these classes, once; of a data set's own list, only what has equal vectors."""
        if words == self._remarked:
            return
        self._remarked = words
        context_length = getattr(getattr(self.clip, "model", None), "context_length", None)
        every_pixel = not self.method.threshold and not self._extension.extra_words
        said = remarks(words.classes, every_pixel=every_pixel) if own else []
        for line in [*said, *equal_words(words.words, self._rows(words, progress), context_length)]:
            logger.warning("%s", line)

    def _rows(self, words: Vocabulary, progress: Progress = iter) -> Tensor:
        """Unit rows [Q+E,C] of the words, and of those that the method adds."""
        rows = self._text((*words.words, *self._extension.extra_words), self.method.templates, progress=progress)
        return rows.double() if self.clip.dtype == torch.float64 else rows

    def _by_template(self, words: Vocabulary) -> Tensor:
        """[T,Q,C], unit rows of each template alone."""
        rows = self._text.by_template(words.words, self.method.templates)
        return rows.double() if self.clip.dtype == torch.float64 else rows

    @sheltered()
    def encode_words(self, words: Sequence[str], templates: str | tuple[str, ...] | None = None) -> Tensor:
        """[Q,C] float32, the unit vector of each word: the mean over the templates, the method's own by default.

        Their products with the unit vectors of `encode(picture).features` are the cosines that labels are decided by.
        """
        return self._text(tuple(words), self.method.templates if templates is None else templates)

    def _segment(self, encoded: Sequence[Encoded], words: Vocabulary, background: int | None) -> list[Result]:
        """Results whose labels are still to be checked: on CUDA they may not have been computed yet."""
        results: list[Result] = []
        scores: list[ScoreMaps | None] = []
        for one in encoded:
            watch = Stopwatch(self.device)
            with sheltered():
                with watch("text"):
                    text = self._rows(words)
                with watch("classify"):
                    labels, confidence, maps = self._decide(one, text, words, background)
                    scores.append(maps)
            results.append(
                Result(
                    segmentation=_own(labels),
                    confidence=_own(confidence),
                    classes=words.classes,
                    background=background,
                    image=one.picture,
                    source=one.source,
                    timings=Timings((one.timings, 1.0), (watch, 1.0)),
                    settings=self.settings,
                )
            )
        if self.refiner is None:
            return results
        maps_of_all = [maps for maps in scores if maps is not None]
        assert len(maps_of_all) == len(results), "scores are asked for where there is a refiner"
        smooth = not self._extension.smooths_itself
        return refine_results(
            self.refiner, encoded, results, maps_of_all, smooth=smooth, threshold=self.method.threshold
        )

    def _decide(self, encoded: Encoded, text: Tensor, words: Vocabulary, background: int | None) -> Decision:
        method = self.method
        if method.threshold and background is None:
            unlabelled = ignored_id(len(words.classes))
            decision = self._decided(encoded, text, words, None, dataclasses.replace(method, threshold=0.0))
            return decision._replace(
                labels=decision.labels.masked_fill(decision.confidence < method.threshold, unlabelled)
            )
        return self._decided(encoded, text, words, background, method)

    def _decided(
        self, encoded: Encoded, text: Tensor, words: Vocabulary, background: int | None, method: Method
    ) -> Decision:
        if method.template_choice is not None:
            return self._by_experts(encoded, text, words, background, method, with_scores=self.refiner is not None)
        settings = (words.class_index, background, self._models, method)
        own_rules = (
            method.area_threshold is not None
            or method.pamr_iterations
            or method.propagation is not None
            or method.purification is not None
            or type(self._extension).decide is not Extension.decide
        )
        if self._graphs is None or self.refiner is not None or not encoded.spliced or own_rules:
            return self._extension.decide(encoded, text, *settings, with_scores=self.refiner is not None)
        if self._class_index is None or self._class_index[0] != words.class_index:
            self._class_index = words.class_index, torch.tensor(words.class_index, device=self.device)
        labels, confidence = self._graphs(
            encoded.features[0],
            text,
            self._class_index[1],
            classes=len(words.classes),
            background=-1 if background is None else background,
            scale=method.logit_scale,
            threshold=method.threshold,
            size=encoded.size,
        )
        return Decision(labels, confidence, None)

    def _by_experts(
        self,
        encoded: Encoded,
        text: Tensor,
        words: Vocabulary,
        background: int | None,
        method: Method,
        *,
        with_scores: bool,
    ) -> Decision:
        classes = (words.classes, words.class_index, background)
        return experts.decide(encoded, text, self._by_template(words), *classes, method, with_scores=with_scores)


def _own(tensor: Tensor) -> Tensor:
    """Ordinary memory of the result's own: a graph keeps what it wrote, and of a batch's maps one would hold all.

    What is whole is taken as it is: a picture of 70 megapixels has 840 MB of labels and confidence.
    """
    whole = tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and not tensor.is_inference() else tensor.clone()
