"""Every published method as a value, with its source; `get_method` is the way to them."""

import dataclasses

from s2clip.backbones.model_table import MODELS
from s2clip.errors import reject
from s2clip.methods.method import Method
from s2clip.methods.needs import replace_fields
from s2clip.names import match_name, meant
from s2clip.published.cliper import Cliper
from s2clip.published.clipsurgery import ClipSurgery
from s2clip.published.corrclip import CorrClip
from s2clip.published.gem import Gem
from s2clip.published.radseg import RadSeg
from s2clip.published.scclip import ScClip
from s2clip.published.trident import Trident
from s2clip.values import plain

_LAST_BLOCK_ALONE = {"residual": False, "feed_forward": False, "merge": "pixel"}
_WHOLE_LAST_BLOCK = {"residual": True, "feed_forward": True, "merge": "pixel"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="clip",
            source="CLIP (Radford et al. 2021), patch tokens instead of CLS; windows of SCLIP's protocol",
            terms=("qk",),
            crop=224,
            **_WHOLE_LAST_BLOCK,
        ),
        Method(
            name="maskclip",
            source="MaskCLIP (Zhou et al. 2022) in its residual-free form; residual and FFN on is the original",
            terms=(),
            crop=224,
            **_LAST_BLOCK_ALONE,
        ),
        Method(
            name="clipsurgery",
            source="CLIPSurgery (Li et al. 2023), architecture surgery; the demo takes squares of 224, here windows",
            terms=("vv",),
            crop=224,
            merge="pixel",
            templates="imagenet85",
            extension=ClipSurgery(),
        ),
        Method(
            name="gem",
            source="GEM (Bousselham et al. 2024): the whole picture as a square of 448",
            short_side=448,
            long_side=None,
            crop=None,
            merge="pixel",
            templates="plain",
            logit_scale=100.0,
            extension=Gem(),
        ),
        Method(
            name="sclip",
            source="SCLIP (Wang et al. 2024), the two softmaxes added, not averaged",
            terms=("qq", "kk"),
            weights=(1.0, 1.0),
            crop=224,
            **_WHOLE_LAST_BLOCK,
        ),
        Method(
            name="clearclip",
            source="ClearCLIP (Lan et al. 2024)",
            terms=("qq",),
            short_side=448,
            crop=448,
            stride=224,
            logit_scale=50.0,
            **_LAST_BLOCK_ALONE,
        ),
        Method(
            name="naclip",
            source="NACLIP (Hajimiri et al. 2025), reduced form; its code adds PAMR, pamr_iterations=10, by default",
            terms=("kk",),
            gaussian_sigma=5.0,
            crop=224,
            **_LAST_BLOCK_ALONE,
        ),
        Method(
            name="proxyclip",
            source="ProxyCLIP (Lan et al. 2024); the mean is taken per window, rows keep their diagonal",
            terms=(),
            vfm_weight=1.0,
            **_LAST_BLOCK_ALONE,
        ),
        Method(
            name="cliper",
            source="CLIPer (Sun et al. 2024), linsun449/cliper.code c05fa41; published with stable_diffusion=True",
            long_side=None,
            crop=None,
            merge="pixel",
            templates="cliper15",
            logit_scale=100.0,
            extension=Cliper(),
        ),
        Method(
            name="trident",
            source="Trident (Shi et al. 2024); its SAM refinement is refine='trident', or 'sam' for all at once",
            terms=(),
            cls_token=False,
            vfm_weight=1.0,
            stride=224,
            short_side=448,
            extension=Trident(),
        ),
        Method(
            name="scclip",
            source="SC-CLIP (Bai et al. 2024), SuleBai/SC-CLIP 0417ba9; ViT-L/14 settings of its 74471da and issue 5",
            terms=("kk",),
            crop=224,
            merge="pixel",
            extension=ScClip(),
        ),
        Method(
            name="corrclip",
            source="CorrCLIP (Zhang et al. 2025), version 1, zdk258/CorrCLIP; published with MetaCLIP, SAM 2's masks",
            merge="pixel",
            extension=CorrClip(),
        ),
        Method(
            name="radseg",
            source="RADSeg (2025), RADSeg-OVSS/RADSeg 05ec86f; published with C-RADIOv3, --model RADIO-B-16",
            short_side=576,
            stride=224,
            logit_scale=100.0,
            extension=RadSeg(),
        ),
        Method(
            name="s2clip",
            source="s2clip-source with what it leaves open settled on scenes: docs/scenes.md",
            terms=("kk", "vv"),
            levels="middle",
            mu=2.0,
            progressive=False,
            vfm_weight=1.0,
        ),
        Method(
            name="s2clip-source",
            source="the outline of s2clip's source: levels weighted by entropy, progressive, CLIP-VFM affinity",
            terms=("kk", "vv"),
            levels="middle",
            vfm_weight=0.5,
        ),
    )
}


def get_method(name: str | Method, **fields: object) -> Method:
    """A method by name, with `fields` replaced; `**{"extension.depth": 3}` is a field of its extension.

    An unknown name or field raises `ValueError` listing the valid ones.
    """
    method = name if isinstance(name, Method) else METHODS[match_name("method", name, METHODS)]
    valid = [field.name for field in dataclasses.fields(Method)]
    fields = {field: plain(value) for field, value in fields.items()}
    own = {field: value for field, value in fields.items() if not field.startswith("extension.")}
    for field in own:
        if field not in valid:
            reject("method", f"the fields {', '.join(valid)}", repr(field) + meant(field, valid))
    inner = {field.removeprefix("extension."): value for field, value in fields.items() if field not in own}
    method = dataclasses.replace(method, **own)
    return dataclasses.replace(method, extension=replace_fields(method.extension, inner))


def methods_for(model: str) -> tuple[str, ...]:
    """Names of the methods that run on a model: all; on one that is no CLIP, as RADIO-B-16, those made for it."""
    row = MODELS["clip"].get(model)
    alone = row is not None and row.family == "language-radio"
    return tuple(name for name, one in METHODS.items() if not alone or (one.extension and one.extension.any_prefix))


def default_methods(model: str, *names: str) -> tuple[str, ...]:
    """Where nobody chose: those of `names` that run on the model; where none does, the first that does."""
    fitting = methods_for(match_name("model", model, ("tiny", *MODELS["clip"])))
    return tuple(name for name in names if name in fitting) or fitting[:1]
