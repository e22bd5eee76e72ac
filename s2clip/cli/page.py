"""The page behind `s2clip app`: pick a picture, name the classes, see the map. Offline with the embedded models.

gradio (extra `demo`) is imported here and by nothing else.
"""

import base64
import dataclasses
import functools
import html
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import numpy as np
import torch
from PIL import Image

from s2clip import Result, Segmenter, scenes
from s2clip.errors import S2ClipError
from s2clip.published.catalogue import METHODS, default_methods, methods_for
from s2clip.results.colours import class_colours
from s2clip.results.visualize import overlay
from s2clip.values import ignored_id
from s2clip.words.text import vocabulary

EXAMPLE_SCENES = (24, 7, 11)
REFINEMENTS = ("none", "sam")
CLASSES = ", ".join(scenes.CLASSES)
MEGAPIXELS = 24
"""Larger pictures are refused unread: one visitor's 70 megapixels would keep all others waiting."""
SECONDS = 20.0
WAITING = 30
SMALL = 1e-4
"""Of all pixels: less is the rounding of the shares."""
SIDE = 2048
"""Pixels a side of what is shown and kept; files have the picture's own size, in which 24 megapixels keep 360 MB."""
HOVER_SIDE = 96
"""Rows and columns of the grid that names are shown by under the pointer."""
TINY = (
    "It was trained on painted scenes: it knows the thirteen classes below and **no photographs**. For those start the "
    "page with `--model ViT-B-16`."
)
TO_THE_RESULT = """() => {
  if (innerWidth < 700) document.querySelector("#overlay").scrollIntoView({behavior: "smooth", block: "center"});
}"""
"""On a phone the result lies below the button, out of sight."""
CSS = """
.s2clip-view {position: relative; line-height: 0}
.s2clip-view img {width: 100%; image-rendering: auto; border-radius: 6px}
.s2clip-view svg {position: absolute; inset: 0; width: 100%; height: 100%}
.s2clip-legend {display: flex; flex-wrap: wrap; gap: 6px 16px; padding: 10px 2px 2px; line-height: 1.4; font-size: 15px}
.s2clip-legend i {display: inline-block; width: 14px; height: 14px; border-radius: 3px; margin-right: 6px;
  vertical-align: -2px}
.s2clip-legend small {opacity: .65}
.s2clip-legend .s2clip-none {background: #fff; outline: 1px solid #999; outline-offset: -1px}
"""


class Shown(NamedTuple):
    """What the page keeps of a visitor's last result: enough to draw it again, and no more than SIDE pixels a side."""

    result: Result
    shares: Mapping[str, float]
    """Of the whole result."""


class Page:
    """The models of one page, loaded when first asked for, and what its button does."""

    def __init__(self, model: str, device: str | None = None) -> None:
        self.model, self.device = model, device
        (self.method,) = default_methods(model, "s2clip")
        self.segmenter = functools.lru_cache(maxsize=4)(self._load)

    def _load(self, method: str, refine: str) -> Segmenter:
        regions = {"regions": "sam"} if METHODS[method].uses_regions else {}
        limits = {"max_pixels": MEGAPIXELS * 1_000_000, "max_seconds": SECONDS}
        return Segmenter.from_pretrained(
            self.model, method=method, refine=refine, device=self.device, **regions, **limits
        )

    def segment(
        self,
        picture: str | None,
        classes: str,
        method: str,
        refine: str,
        threshold: float,
        background: str,
        opacity: float,
    ) -> tuple:
        """What the page shows of a picture, and the result for what may be asked of it next."""
        if picture is None:
            raise mistake("Pick or upload a picture first.")
        try:
            words = vocabulary(classes)
            number = words.find(background.strip() or None)
            segmenter = self.segmenter(method, refine)
            result = segmenter.segment(segmenter.encode(picture), list(words.classes))
        except (S2ClipError, ValueError) as error:
            raise mistake(str(error).replace(str(picture), Path(picture).name)) from None
        if unknown := segmenter.clip.unknown_words(list(words.words)):
            gr.Warning(f"model {self.model} does not know: {', '.join(unknown)}")
        result = above(result, threshold, number)
        shown = Shown(at_most(result, SIDE), result.shares)
        return (
            shown,
            view(shown, opacity),
            *pictures_of(shown),
            times(result.timings),
            files_of(result, Path(picture)),
        )

    def blocks(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="s2clip", analytics_enabled=False, delete_cache=(3600, 7200)) as page:
            note = TINY if self.model == "tiny" else ""
            limit = f"Pictures of up to {MEGAPIXELS} megapixels."
            gr.Markdown(f"# s2clip\nName the classes, get the label map. {limit} Model `{self.model}`. {note}")
            with gr.Row():
                with gr.Column(min_width=300):
                    # the file itself: pixels that gradio made would clip 16 bits and show what lies under transparency
                    picture = gr.Image(
                        label="Picture",
                        **{
                            "type": "filepath",
                            "image_mode": None,
                            "format": "png",
                            "sources": ["upload"],
                            "height": 300,
                        },
                    )
                    gr.Examples([[scenes.generate(seed)[0]] for seed in EXAMPLE_SCENES], [picture], label="Scenes")
                    classes = gr.Textbox(
                        CLASSES, label="Classes", info="Commas part classes, semicolons words of one class.", lines=2
                    )
                    button = gr.Button("Segment", variant="primary")
                    with gr.Accordion("Method, threshold", open=False):
                        method = gr.Dropdown(methods_for(self.model), value=self.method, label="Method")
                        refine = gr.Radio(list(REFINEMENTS), value="none", label="Refinement")
                        threshold = gr.Slider(0, 1, 0, step=0.01, label="Threshold of the score")
                        background = gr.Textbox("", label="Pixels under it become", info="A class; empty: no class.")
                with gr.Column(min_width=300):
                    with gr.Tab("Overlay"):
                        shown = gr.HTML(elem_id="overlay")
                        opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity")
                    with gr.Tab("Label map"):
                        labels = gr.HTML(elem_id="labels")
                    with gr.Tab("Confidence"):
                        confidence = gr.Image(
                            label="Confidence, black 0 to white 1", format="png", elem_id="confidence"
                        )
                    spent = gr.Markdown(elem_id="time")
                    files = gr.Files(
                        label="Label map, COCO, all in one", elem_id="files", visible=False, interactive=False
                    )
            result = gr.State()
            asked = [picture, classes, method, refine, threshold, background, opacity]
            shows = [result, shown, labels, confidence, spent, files]
            done = button.click(self.segment, asked, shows, show_progress_on=shown)
            done.success(None, js=TO_THE_RESULT)
            # by the pointer, the keys or a number; of a slider on its way the last place counts
            opacity.change(
                view, [result, opacity], shown, queue=False, trigger_mode="always_last", show_progress="hidden"
            )
        # one after the other in the order of asking; who comes when WAITING wait is told so
        return page.queue(default_concurrency_limit=1, max_size=WAITING)


def mistake(text: str) -> gr.Error:
    """Said on the page until it is closed; nothing of it is the server's business."""
    return gr.Error(text, print_exception=False, duration=None)


def above(result: Result, threshold: float, background: int | None) -> Result:
    """The result with pixels of a lower score given to the background, or to no class."""
    if not threshold:
        return result
    other = ignored_id(len(result.classes)) if background is None else background
    labels = result.segmentation.masked_fill(result.confidence < threshold, other)
    return dataclasses.replace(result, segmentation=labels, background=background)


def at_most(result: Result, side: int) -> Result:
    """Every n-th pixel of the maps, and the picture in their size: no more than `side` pixels a side."""
    step = -(-max(result.segmentation.shape) // side)
    if step == 1:
        return result
    labels, confidence = (
        maps[step // 2 :: step, step // 2 :: step].clone() for maps in (result.segmentation, result.confidence)
    )
    image = Image.fromarray(result.image.permute(1, 2, 0).cpu().numpy())
    small = np.array(image.resize(labels.shape[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0))
    image = torch.from_numpy(small).permute(2, 0, 1)
    return dataclasses.replace(result, segmentation=labels, confidence=confidence, image=image)


def view(shown: Shown | None, opacity: float) -> str:
    """The tinted picture, a name under the pointer, and the legend below."""
    if shown is None:
        return ""
    result = shown.result
    picture = overlay(result.image, result.segmentation, result.classes, opacity=opacity, legend=False)
    return f'<div class="s2clip-view">{inline(picture)}{hovers(result)}</div>{legend(shown)}'


def pictures_of(shown: Shown) -> tuple[str, Image.Image]:
    """The label map in its colours, and the confidence."""
    result = shown.result
    labels = result.segmentation.cpu().numpy()
    colours = np.full((*labels.shape, 3), 255, np.uint8)
    known = labels < len(result.classes)
    colours[known] = class_colours(len(result.classes))[labels[known]]
    confidence = (255 * result.confidence.cpu().numpy()).round().astype(np.uint8)
    plain = f'<div class="s2clip-view">{inline(Image.fromarray(colours))}{hovers(result)}</div>{legend(shown)}'
    return plain, Image.fromarray(confidence)


def inline(picture: Image.Image) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def hovers(result: Result) -> str:
    """An invisible grid over the picture whose cells tell their class."""
    height, width = result.segmentation.shape
    step = max(1, -(-max(height, width) // HOVER_SIDE))
    small = result.segmentation.cpu()[step // 2 :: step, step // 2 :: step]
    cells = []
    for y, row in enumerate(small):
        ids, counts = torch.unique_consecutive(row, return_counts=True)
        x = 0
        for index, count in zip(ids.tolist(), counts.tolist(), strict=True):
            name = html.escape(first_word(result, index))
            cells.append(f'<rect x="{x}" y="{y}" width="{count}" height="1"><title>{name}</title></rect>')
            x += count
    rows, columns = small.shape
    box = f'viewBox="0 0 {columns} {rows}" preserveAspectRatio="none"'
    return f'<svg {box} fill="transparent" shape-rendering="crispEdges">{"".join(cells)}</svg>'


def first_word(result: Result, index: int) -> str:
    return result.classes[index].split(";")[0].strip() if index < len(result.classes) else "no class"


def legend(shown: Shown) -> str:
    """Colour, name and share of each class, the largest first; last the share that belongs to none."""
    result, shares = shown
    colours = class_colours(len(result.classes)).tolist()
    present = sorted(((share, -index) for index, share in enumerate(shares.values()) if share), reverse=True)
    rows = [
        f'<span><i style="background: rgb{tuple(colours[-index])}"></i>{html.escape(first_word(result, -index))} '
        f"<small>{100 * share:.1f} %</small></span>"
        for share, index in present
    ]
    if (none := 1 - sum(shares.values())) > SMALL:
        rows.append(f'<span><i class="s2clip-none"></i>no class <small>{100 * none:.1f} %</small></span>')
    return f'<div class="s2clip-legend">{"".join(rows)}</div>'


def times(timings: Mapping[str, float]) -> str:
    """The milliseconds of each stage in one line."""
    stages = ", ".join(f"{stage} {value:.0f}" for stage, value in timings.items() if value >= 0.5)
    return f"**{sum(timings.values()):.0f} ms** ({stages})"


def files_of(result: Result, picture: Path) -> dict:
    """The label map, COCO where pycocotools is installed, and all of it with the ids of the classes in a zip file."""
    folder = Path(tempfile.mkdtemp(prefix="s2clip-"))
    formats = ["png", "overlay", *(["coco"] if find_spec("pycocotools") else [])]
    stem = picture.stem[:60] or "result"
    written = dataclasses.replace(result, source=None).save(folder / "all", formats, stem=stem)
    packed = shutil.make_archive(str(folder / f"{stem}.s2clip"), "zip", folder / "all")
    shown = [str(path) for name, path in written.items() if name != "overlay"]
    return gr.update(value=[*shown, packed], visible=True)


def serve(model: str, device: str | None, host: str, port: int) -> None:
    """Load the models, then serve the page until interrupted. Raises what loading raises; OSError: a port is taken."""
    page = Page(model, device)
    page.segmenter(page.method, "none")
    # Plain font names: the default theme asks a font server that an offline page does not reach.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.blocks().launch(server_name=host, server_port=port, theme=theme, css=CSS)
