"""Feature maps of a whole picture: every layer of CLIP, and other backbones beside it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from s2clip.encoding.features import enlarge
from s2clip.errors import reject
from s2clip.methods.method import Method
from s2clip.methods.recipe import RECIPES
from s2clip.pictures.windows import resize, resized_size
from s2clip.shelter import sheltered


def default_short_side(model: str) -> int:
    """Pixels of the shorter side: the window that methods give this model, 336 for the released ones."""
    return RECIPES[model].crop if model in RECIPES else Method.crop


def vfm_features(vfm: torch.nn.Module, images: Tensor, clip) -> Tensor:
    """[B,h,w,C]: the VFM sees the pictures as large as it does beside this CLIP in a method."""
    scale = RECIPES[clip.name].vfm_scale if clip.name in RECIPES else Method.vfm_scale
    return vfm.features(enlarge(images, scale))


def check_layers(clip, layers: Sequence[int] | None) -> tuple[int, ...]:
    """Blocks l = 1..L as given, all of them for None; `ValueError` with the valid range for any other."""
    if layers is None:
        return tuple(range(1, clip.layers + 1))
    for layer in layers:
        if not 1 <= layer <= clip.layers:
            reject("layers", f"1 to {clip.layers} for {clip.name}", layer)
    return tuple(layers)


def prepare(pixels: Tensor, clip, short_side: int | None = None) -> Tensor:
    """uint8 [3,H,W] → float [1,3,h,w] in [0,1] on CLIP's device: the whole picture, ratio kept to half a patch.

    short_side: pixels; None: `default_short_side`; 0: the picture's own. Sides are multiples of CLIP's patch.
    """
    side = default_short_side(clip.name) if short_side is None else short_side
    if side < 0:
        reject("short_side", "0 for the picture's own size, or pixels", side)
    size = resized_size(*pixels.shape[1:], side or None, Method.long_side, clip.patch_size)
    return resize(pixels.to(clip.device), size)[None]


def layer_tokens(clip, images: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
    """([X_0 .. X_L], each [B,1+N,D] with the class token first, (rows, columns)); the last block runs as trained."""
    states, grid = clip.hidden_states(images)
    return [*states, clip.block(states[-1], clip.layers - 1)], grid


def layer_maps(clip, images: Tensor, layers: Sequence[int] | None = None) -> dict[int, Tensor]:
    """{l: X_l without the class token, [B,h,w,D]} for blocks l of 1..L; images [B,3,H,W] in [0,1]."""
    chosen = check_layers(clip, layers)
    states, grid = layer_tokens(clip, images)
    return {layer: states[layer][:, 1:].unflatten(1, grid) for layer in chosen}


@sheltered()
def picture_maps(
    pixels: Tensor,
    clip,
    vfms: Mapping[str, torch.nn.Module] | None = None,
    *,
    layers: Sequence[int] | None = None,
    short_side: int | None = None,
) -> dict[str, Tensor]:
    """Maps [h,w,C] of one picture uint8 [3,H,W]: "CLIP l" for each layer, and each VFM's under its name.

    A SAM has two: its own, and "<name> last values", the values of its last attention, by which Trident joins cells.
    Every map covers the whole picture; a VFM's grid is its own.
    """
    images = prepare(pixels, clip, short_side)
    maps = {layer_name(layer): tokens[0] for layer, tokens in layer_maps(clip, images, layers).items()}
    for name, vfm in (vfms or {}).items():
        maps[name] = vfm_features(vfm, images, clip)[0]
        if hasattr(getattr(vfm, "model", None), "image_encoder"):
            from s2clip.backbones.sam_attention import value_features

            maps[f"{name} last values"] = value_features(vfm.model, images)[0]
    return maps


def layer_name(layer: int) -> str:
    """What a layer is called in tables and figures."""
    return f"CLIP {layer}"
