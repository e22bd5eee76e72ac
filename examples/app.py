"""A web page around `Segmenter`: pick a picture, name the classes, see the map. Offline with the embedded models.

pip install 's2clip[demo]'
python examples/app.py [--model tiny] [--port 7860]
"""

import argparse
import functools
from collections.abc import Mapping

import gradio as gr
import numpy as np
from PIL import Image

from s2clip import Segmenter, scenes
from s2clip.errors import S2ClipError
from s2clip.published.catalogue import METHODS
from s2clip.results.colours import class_colours
from s2clip.results.visualize import overlay
from s2clip.words.text import vocabulary

EXAMPLE_SCENES = (24, 7, 11)
REFINEMENTS = ("none", "sam")
CLASSES = ", ".join(scenes.CLASSES)


class Page:
    """The models of one page, loaded when first asked for, and what the button does."""

    def __init__(self, model: str, device: str | None = None) -> None:
        self.model, self.device = model, device
        self.segmenter = functools.lru_cache(maxsize=4)(self._load)

    def _load(self, method: str, refine: str) -> Segmenter:
        return Segmenter.from_pretrained(self.model, method=method, refine=refine, device=self.device)

    def segment(self, picture: str | None, classes: str, method: str, refine: str) -> tuple:
        """Overlay with legend, label map, confidence, shares by class, time by stage."""
        if picture is None:
            raise gr.Error("Pick or upload a picture first.")
        try:
            segmenter = self.segmenter(method, refine)
            segmenter.set_classes(classes)
            result = segmenter(picture)
        except (S2ClipError, ValueError) as error:
            raise gr.Error(str(error)) from error
        if unknown := segmenter.clip.unknown_words(list(vocabulary(classes).words)):
            gr.Warning(f"model {self.model} does not know: {', '.join(unknown)}")
        colours = class_colours(len(result.classes))[result.segmentation.cpu().numpy()]
        confidence = Image.fromarray((255 * result.confidence.cpu().numpy()).round().astype(np.uint8))
        shares = {name.split(";")[0].strip(): share for name, share in result.shares.items() if share}
        picture = overlay(result.image, result.segmentation, result.classes)
        return picture, Image.fromarray(colours), confidence, shares, times(result.timings)

    def blocks(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(title="s2clip", analytics_enabled=False) as page:
            gr.Markdown(f"# s2clip\nName the classes, get the label map. Model `{self.model}`.")
            with gr.Row():
                with gr.Column():
                    # the file itself: pixels that gradio made would clip 16 bits and show what lies under transparency
                    picture = gr.Image(
                        label="Picture", type="filepath", image_mode=None, format="png", sources=["upload"], height=320
                    )
                    classes = gr.Textbox(
                        CLASSES, label="Classes", info="Commas part classes, semicolons words of one class."
                    )
                    method = gr.Dropdown(list(METHODS), value="s2clip", label="Method")
                    refine = gr.Radio(list(REFINEMENTS), value="none", label="Refinement")
                    button = gr.Button("Segment", variant="primary")
                    gr.Examples([[scenes.generate(seed)[0]] for seed in EXAMPLE_SCENES], [picture], label="Scenes")
                with gr.Column():
                    with gr.Tab("Overlay"):
                        shown = gr.Image(label="Overlay", format="png", elem_id="overlay")
                    with gr.Tab("Label map"):
                        labels = gr.Image(label="Label map", format="png", elem_id="labels")
                    with gr.Tab("Confidence"):
                        confidence = gr.Image(
                            label="Confidence, black 0 to white 1", format="png", elem_id="confidence"
                        )
                    shares = gr.Label(label="Share of the pixels", elem_id="shares", show_heading=False)
                    spent = gr.Markdown(elem_id="time")
            button.click(self.segment, [picture, classes, method, refine], [shown, labels, confidence, shares, spent])
        return page


def times(timings: Mapping[str, float]) -> str:
    """The milliseconds of each stage in one line."""
    stages = ", ".join(f"{stage} {value:.0f}" for stage, value in timings.items() if value >= 0.5)
    return f"**{sum(timings.values()):.0f} ms** ({stages})"


def main() -> None:
    """Serve the page until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="tiny, ViT-B-16, ViT-L-14, ViT-H-14")
    parser.add_argument("--device", help="cpu or cuda; default: CUDA where there is one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    # Plain font names: the default theme asks a font server that an offline page does not reach.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page = Page(arguments.model, arguments.device).blocks()
    page.launch(server_name=arguments.host, server_port=arguments.port, theme=theme)


if __name__ == "__main__":
    main()
