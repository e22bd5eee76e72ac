"""Draw docs/images/analysis-*.png and fill in the tables of docs/analysis.md: `make docs-figures`.

Embedded models, held-out scenes, no network; some minutes on two cores. Tables stand between `<!-- NAME -->` and
`<!-- end -->`; everything else on the page is left as it is.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from s2clip import Segmenter, scenes
from s2clip.analysis.consistency import semantic_consistency
from s2clip.analysis.entropy import layer_entropy
from s2clip.analysis.failures import find_failures
from s2clip.analysis.patches import patch_at
from s2clip.analysis.pictures import Picture, PictureSet, scene_pictures
from s2clip.analysis.plots.consistency import consistency_figure
from s2clip.analysis.plots.entropy import entropy_figure
from s2clip.analysis.plots.failures import failures_figure
from s2clip.analysis.plots.features import classes_figure, colours_figure, patch_figure
from s2clip.analysis.plots.separability import separability_figure
from s2clip.analysis.plots.style import save
from s2clip.analysis.projection import principal_colours
from s2clip.analysis.separability import separability
from s2clip.analysis.stages import heat_maps, stages
from s2clip.analysis.views import feature_maps, parse_view
from s2clip.backbones.vfm import load_vfm
from s2clip.files import whole_file

DOCS = Path(__file__).resolve().parent.parent / "docs"
METHODS = ("clip", "naclip", "s2clip-source")
VFMS = ("tiny-dino", "sam-tiny")
SCENE = 24  # a boat and a balloon of one palette, a house, sand, grass, sky
PLACE = (64, 70)  # x, y of a pixel of its sand


def noise_pictures(count: int) -> PictureSet:
    """Pixels without any order, of the scenes' size: a control."""

    def load(index: int) -> Picture:
        generator = torch.Generator().manual_seed(index)
        return Picture(f"noise-{index}", torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8))

    return PictureSet("noise", count, load)


def draw_entropy(count: int, segmenter: Segmenter) -> dict[str, str]:
    found = layer_entropy({"scenes": scene_pictures(count), "noise": noise_pictures(count)}, segmenter.clip)
    write("entropy", entropy_figure(found))
    header = ["", *(f"layer {layer}" for layer in found.layers)]
    rows = [
        [f"{name}, {title}", *(f"{value:.3f}" for value in values[index])]
        for index, name in enumerate(found.sets)
        for title, values in (("H (nats)", found.entropy), ("Gini", found.gini), ("correlation", found.correlation))
    ]
    return {"entropy": markdown(header, rows)}


def draw_consistency(count: int, segmenter: Segmenter) -> dict[str, str]:
    vfms = {name: segmenter.vfm if name == segmenter.vfm.name else load_vfm(name) for name in VFMS}
    found = semantic_consistency({"scenes": scene_pictures(count)}, segmenter.clip, vfms)
    write("consistency", consistency_figure(found))
    rows = [
        [row[1], f"{row[2]:.4f}", f"{row[3]:.4f} to {row[4]:.4f}", f"{row[5]:.4f}", f"{row[6]:,}"]
        for row in found.rows()[1]
    ]
    return {"consistency": markdown(["", "average precision", "unrounded, between", "chance", "pairs"], rows)}


def draw_separability(count: int, segmenters: dict[str, Segmenter]) -> dict[str, str]:
    found = {name: separability(scene_pictures(count), one, masks="true") for name, one in segmenters.items()}
    write("separability", separability_figure(found))
    rows = [
        [name, f"{one.variance.mean():.3f}", f"{one.distance.mean():.3f}", closest(one)] for name, one in found.items()
    ]
    return {"separability": markdown(["", "intra-class variance", "inter-class distance", "closest pair"], rows)}


def closest(one) -> str:
    names, distances = one.classes, one.distances.copy()
    distances[distances == 0] = 9
    first, second = divmod(int(distances.argmin()), len(names))
    return f"{names[first]} and {names[second]}, {distances.min():.3f}"


def draw_features(segmenter: Segmenter) -> None:
    picture = scene_pictures(SCENE + 1).load(SCENE)
    vfms = {segmenter.vfm.name: segmenter.vfm}
    names = ["2", "4", "qk", "qq", "kk", "vv", *vfms, "s2clip-source"]
    views = [parse_view(name, segmenter.clip) for name in names]
    maps = feature_maps(picture.pixels, views, segmenter.clip, vfms, {"s2clip-source": segmenter}, short_side=96)
    colours = {one.name: principal_colours([one.features])[0] for one in maps}
    write("colours", colours_figure(picture.pixels, colours))
    size = tuple(picture.pixels.shape[1:])
    heats = {one.name: one.affinity(patch_at(*PLACE, size, one.grid)) for one in maps}
    write("patch", patch_figure(picture.pixels, heats, PLACE))
    shown = torch.bincount(picture.labels.flatten(), minlength=len(scenes.CLASSES)).argsort(descending=True)[:4]
    write("classes", classes_figure(picture.pixels, heat_maps(stages(segmenter), picture.pixels), shown.tolist()))


def draw_failures(count: int, segmenter: Segmenter) -> dict[str, str]:
    found = find_failures(scene_pictures(count), segmenter)
    write("failures", failures_figure(found))
    rows = [[row[0], row[1], f"{100 * row[3]:.1f} %"] for row in found.rows()[1][:6]]
    crowds = [[str(classes), f"{100 * mean:.1f}", str(number)] for classes, (mean, number) in found.crowds.items()]
    return {
        "failures": markdown(["true class", "taken for", "share of the true class"], rows),
        "crowds": markdown(["classes in a scene", "mean mIoU of a scene (%)", "scenes"], crowds),
    }


def write(name: str, figure) -> None:
    (DOCS / "images").mkdir(exist_ok=True)
    print(save(figure, DOCS / "images" / f"analysis-{name}.png"))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, the way the other pages have theirs."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("|  |", "| |").replace(" --- ", "---")


def fill_in(tables: dict[str, str]) -> None:
    """Replace the tables of the page."""
    path = DOCS / "analysis.md"
    text = path.read_text()
    for name, table in tables.items():
        text, found = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"{path}: expected one place for the table {name}, found {found}")
    with whole_file(path) as handle:
        handle.write(text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=100, help="scenes for each analysis (default 100)")
    count = parser.parse_args().limit
    segmenters = {name: Segmenter.from_pretrained("tiny", method=name).set_classes(scenes.CLASSES) for name in METHODS}
    whole = segmenters["s2clip-source"]
    draw_features(whole)
    tables = draw_entropy(count, whole) | draw_consistency(count, whole)
    tables |= draw_separability(count, segmenters) | draw_failures(count, whole)
    fill_in(tables)


if __name__ == "__main__":
    main()
