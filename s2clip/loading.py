"""Names to models: what `Segmenter.from_pretrained` is asked for, checked first, then loaded."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2clip import memory
from s2clip.backbones.clip import CLIPBackbone, load_clip
from s2clip.backbones.model_table import MODELS
from s2clip.backbones.sam import ALIASES as SAM_ALIASES
from s2clip.backbones.sam import SAM_NAMES, load_sam
from s2clip.backbones.sam2 import NAMES as SAM2_NAMES
from s2clip.backbones.vfm import VFM_NAMES, load_vfm
from s2clip.backbones.vision_features import VisionFeatures
from s2clip.errors import reject
from s2clip.methods.method import Method
from s2clip.methods.recipe import RECIPES
from s2clip.names import match_name
from s2clip.published.catalogue import default_methods, get_method, methods_for
from s2clip.published.extension import resolve_extension
from s2clip.refinement.automatic import AutomaticMasks, SamRegions, resolve_automatic
from s2clip.refinement.eomt import NAMES as EOMT_NAMES
from s2clip.refinement.eomt import load_eomt
from s2clip.refinement.refiner import check_sam, load_refiner, shared_sam
from s2clip.refinement.regions import FROM_SAM, Regions, RegionSource, region_source
from s2clip.refinement.settings import Refinement, check_refinement, resolve_settings
from s2clip.words.text_cache import VectorFiles, default_folder

if TYPE_CHECKING:
    from s2clip.backbones.language_radio import LanguageRadio

logger = logging.getLogger(__name__)


def load_parts(
    model: str,
    method: str | Method | None,
    *,
    fields: Mapping[str, Any],
    geometry: Mapping[str, int | None],
    vfm: str | None,
    sam: str | None,
    diffusion_model: str | None,
    refine: str,
    refine_options: Refinement | Mapping[str, Any] | None,
    max_memory: str | int | None,
    cuda_graphs: bool,
    compile: bool,
    text_cache: bool | None,
    regions: Regions,
    region_options: AutomaticMasks | Mapping[str, Any] | None,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of `Segmenter`: the models, the resolved method, and what depends on them.

    geometry: short_side, crop and stride as `from_pretrained` is given them, like all else. options: weights, device,
    dtype, cache_dir and local_files_only, which every loader takes.
    """
    refine = check_refinement(refine)
    model = match_name("model", model, ("tiny", *MODELS["clip"]))
    method = get_method(default_methods(model, "s2clip")[0] if method is None else method)
    speaks = model in MODELS["clip"] and MODELS["clip"][model].family == "language-radio"
    if speaks and not resolve_extension(method).any_prefix:
        reject("method", f"{', '.join(methods_for(model))} for model {model}, which is no CLIP", repr(method.name))
    vfm = vfm or ("tiny-dino" if model == "tiny" else resolve_extension(method).default_vfm)
    sam = sam or ("sam-tiny" if model == "tiny" else "sam-vit-b")
    vfm = match_name("vfm", vfm, VFM_NAMES, SAM_ALIASES)
    sam = match_name("sam", sam, SAM_NAMES, SAM_ALIASES)
    method = _adapted(method, model, geometry, fields)
    settings = resolve_settings(sam, refine_options)
    if refine != "none":
        check_sam(sam, refine, settings)
    if method.uses_sam and sam in SAM2_NAMES:
        readable = [name for name in SAM_NAMES if name not in SAM2_NAMES]
        reject("sam", f"one of {', '.join(readable)}, whose attention {method.name} reads", repr(sam))
    if max_memory is not None:
        max_memory = memory.parse_size(max_memory)

    weights = options["weights"]
    if weights not in ("pretrained", "random") and not Path(weights).is_file():
        reject("weights", "'pretrained', 'random' or a file", repr(str(weights)))
    if speaks:
        from s2clip.backbones.language_radio import load_language_radio

        clip: CLIPBackbone | LanguageRadio = load_language_radio(model, **options)
    else:
        clip = load_clip(model, **options)
    if weights != "random":
        options = {**options, "weights": "pretrained"}  # a file is of one model, the CLIP
    features = load_vfm(vfm, **options) if method.uses_vfm else None
    own_sam = own_diffusion = refiner = None
    if regions is None and method.uses_regions:
        regions = FROM_SAM
    from_sam = isinstance(regions, str) and regions == FROM_SAM
    sources: RegionSource | None
    if isinstance(regions, str) and regions in EOMT_NAMES:
        if isinstance(region_options, AutomaticMasks):
            reject("region_options", f"fields of EomtMasks for {regions}", repr(region_options))
        sources = load_eomt(regions, region_options, **options) if method.uses_regions else None
        region_options = None
    else:
        sources = None if from_sam else region_source(regions)
    automatic = resolve_automatic(sam, region_options)
    from_sam = from_sam and method.uses_regions
    if method.uses_sam or from_sam:
        own_sam = shared_sam(features, sam) or load_sam(sam, **options)
    if method.uses_diffusion:
        from s2clip.backbones.diffusion_affinity import DiffusionAffinity
        from s2clip.backbones.stable_diffusion import MODEL_ID

        own_diffusion = DiffusionAffinity.load(diffusion_model or MODEL_ID, **options)
    if refine != "none":
        refiner = load_refiner(
            sam,
            settings,
            refine=refine,
            vfm=features,
            sam=own_sam,
            compile=compile,
            diffusion=own_diffusion,
            diffusion_model=diffusion_model,
            **options,
        )
    if cuda_graphs and clip.device.type != "cuda":
        reject("cuda_graphs", "False without a CUDA device", True)
    if compile:
        _compile_blocks(clip, features)
    keep_text = weights != "random" and (model != "tiny" if text_cache is None else text_cache)
    folder = default_folder(options["cache_dir"])
    return {
        "clip": clip,
        "vfm": features,
        "sam": own_sam,
        "diffusion": own_diffusion,
        "refiner": refiner,
        "regions": SamRegions(own_sam, automatic, sam) if from_sam else sources,
        "text_files": VectorFiles(folder, clip) if keep_text and folder is not None else None,
        "method": method,
        "max_memory": max_memory,
        "cuda_graphs": cuda_graphs,
    }


def _adapted(method: Method, model: str, geometry: Mapping[str, int | None], fields: Mapping[str, Any]) -> Method:
    """The method with the model's recipe, and with what was given in place of both; a length of 0 is none."""
    if model in RECIPES:
        method = RECIPES[model].adapt(method)
    given = {name: value or None for name, value in geometry.items() if value is not None}
    if geometry.get("stride") == 0:
        reject("stride", "at least 1 (pixels)", 0)
    crop = given.get("crop")
    if crop is not None and 0 < crop < method.stride and geometry.get("stride") is None:
        reject("crop", f"at least the stride, {method.stride}, or a stride with it", crop)
    return get_method(method, **given, **fields)


def _compile_blocks(clip: "CLIPBackbone | LanguageRadio", vfm: VisionFeatures | None) -> None:
    models = [model for model in (clip, vfm) if model is not None]
    logger.warning(
        "compiling the blocks of %s: the first pictures wait one to several minutes for it, in every new "
        "process and for every size of windows; worth it from some hundred pictures on",
        " and ".join(model.name for model in models),
    )
    for model in models:
        model.compile_blocks()
