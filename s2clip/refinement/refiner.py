"""One SAM, its view of pictures, and the refinement that was asked for."""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from segment_anything.modeling import Sam
from torch import Tensor

from s2clip.backbones.sam import AnySam, Embedding, encode_images, load_sam, share_embeddings
from s2clip.backbones.sam2 import NAMES as SAM2_NAMES
from s2clip.backbones.sam2 import Sam2
from s2clip.decision.scores import ScoreMaps
from s2clip.errors import reject
from s2clip.refinement import sam as together
from s2clip.refinement import trident
from s2clip.refinement.settings import Refinement
from s2clip.results.refined import Refined
from s2clip.shelter import sheltered
from s2clip.stopwatch import Stopwatch

logger = logging.getLogger(__name__)


class Refiner:
    """`embed` once per picture, then refine any number of coarse maps of it."""

    def __init__(
        self,
        sam: AnySam,
        settings: Refinement,
        *,
        refine: str = "sam",
        name: str = "",
        compile: bool = False,
        diffusion: Any = None,
    ) -> None:
        """sam: from `load_sam`. refine: "sam", "sam+sd" or "trident". compile: SAM's image encoder, by torch.compile.

        diffusion: a `DiffusionAffinity` on SAM's device, which smooths the scores before SAM is asked.
        """
        check_sam(sam.name if isinstance(sam, Sam2) else name, refine, settings)
        self.sam, self.settings, self.refine, self.name = sam, settings, refine, name
        self.diffusion = diffusion
        if compile:
            logger.warning(
                "compiling SAM's image encoder: the first picture waits one to several minutes for it, in every new "
                "process; worth it from some hundred pictures on"
            )
            (sam.encoder if isinstance(sam, Sam2) else sam.image_encoder).compile(dynamic=False)

    @property
    def described(self) -> dict[str, Any]:
        """For run.json: which SAM, of which weights, with which settings."""
        return {
            "sam": self.name,
            "sam_sha256": self.sam.fingerprint.sha256,
            "refinement": dataclasses.asdict(self.settings),
            **({} if self.diffusion is None else self.diffusion.described),
        }

    def with_settings(self, **options: Any) -> "Refiner":
        """The same SAM with some settings replaced."""
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, **options)
        check_sam(self.sam.name if isinstance(self.sam, Sam2) else "", self.refine, other.settings)
        return other

    @sheltered()
    def embed(self, picture: Tensor) -> Embedding:
        """uint8 [3,H,W] → SAM's embedding: nearly all of the stage's cost."""
        images = picture.to(self.sam.device)[None].float() / 255
        return Embedding(*encode_images(self.sam, images))

    @sheltered()
    def __call__(
        self,
        embeddings: Sequence[Embedding],
        labels: Sequence[Tensor],
        scores: Sequence[ScoreMaps],
        watch: Stopwatch | None = None,
    ) -> list[Refined]:
        """Coarse maps [H,W] with their scores → refined ones, all pictures together."""
        if not labels:
            return []
        what = (embeddings, labels, scores, self.settings, watch or Stopwatch(self.sam.device))
        if self.refine == "trident":
            assert isinstance(self.sam, Sam), "the constructor has looked"
            return trident.refine(self.sam, *what)
        return together.refine(self.sam, *what)


def check_sam(name: str, refine: str, settings: Refinement) -> None:
    """Raise ValueError where SAM 2 is asked for what was published for SAM."""
    if name in SAM2_NAMES and refine == "trident":
        reject("refine", f"'sam' or 'sam+sd' with {name}", repr(refine))
    if name in SAM2_NAMES and settings.faithful:
        reject("Refinement.faithful", f"False with {name}: Trident's code has SAM", True)


def load_refiner(
    name: str,
    settings: Refinement,
    *,
    refine: str = "sam",
    vfm: Any = None,
    sam: AnySam | None = None,
    compile: bool = False,
    diffusion: Any = None,
    diffusion_model: str | None = None,
    **options: Any,
) -> Refiner:
    """The SAM `name` with `load_sam`'s options; `sam`, `diffusion`: what is loaded already, for the method's own use.

    A `vfm` that is this SAM is shared, too.
    """
    if refine == "trident":
        trident.check_extra()
    if refine == "sam+sd" and diffusion is None:
        from s2clip.backbones.diffusion_affinity import DiffusionAffinity
        from s2clip.backbones.stable_diffusion import MODEL_ID

        diffusion = DiffusionAffinity.load(diffusion_model or MODEL_ID, **options)
    sam = sam or shared_sam(vfm, name) or load_sam(name, **options)
    return Refiner(sam, settings, refine=refine, name=name, compile=compile, diffusion=diffusion)


def shared_sam(vfm: Any, name: str) -> Sam | None:
    """The SAM inside a `VisionFeatures`, if it is the one called `name`; it remembers what it has seen from now on."""
    model = getattr(vfm, "model", None)
    if isinstance(model, Sam) and vfm.name == name:
        share_embeddings(model)
        return model
    return None
