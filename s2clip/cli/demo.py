"""`s2clip demo`: a bundled scene by the embedded models."""

import json
import time
from io import BytesIO
from pathlib import Path

import click

from s2clip.cli.console import load_segmenter, say, usage_errors
from s2clip.cli.options import output_options

DEMO_SCENE = 24


@click.command()
@click.option("--scene", default=DEMO_SCENE, show_default=True, help="Seed of the painted scene.")
@click.option("--method", default="s2clip", show_default=True)
@click.option("--refine", default="sam", show_default=True, help="none or sam.")
@click.option("-o", "--output", default="out/demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@output_options
def demo(scene: int, method: str, refine: str, output: Path, as_json: bool, show_progress: bool) -> None:
    """Segment a bundled scene with the embedded models, offline: the coarse map, and as SAM refines it."""
    from PIL import Image

    from s2clip import scenes
    from s2clip.files import whole_file, writable_folder
    from s2clip.names import match_name
    from s2clip.published.catalogue import get_method
    from s2clip.results.visualize import overlay

    with usage_errors():
        refine, method = match_name("refine", refine, ("none", "sam")), get_method(method).name
        picture, truth = scenes.generate(scene)
    writable_folder(output)
    source = output / f"scene-{scene}.input.png"
    encoded = BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    with whole_file(source) as handle:
        handle.write(encoded.getvalue())
    start = time.perf_counter()
    regions = {"regions": "sam"} if get_method(method).uses_regions else {}
    segmenter = load_segmenter({"model": "tiny", **regions}, method=method, refine=refine)
    segmenter.set_classes(scenes.CLASSES)
    loading = 1000 * (time.perf_counter() - start)
    result = segmenter(source)
    files = {"input": source, **result.save(output, stem=f"scene-{scene}")}
    maps = {"pixel_accuracy": result.segmentation}
    if refine != "none":
        maps["pixel_accuracy_coarse"] = result.coarse
        files["coarse"] = output / f"scene-{scene}.coarse.png"
        with whole_file(files["coarse"]) as handle:
            overlay(result.image, result.coarse, result.classes).save(handle, "PNG")
    record = result.record(files)
    record["timings_ms"] = {"load": round(loading, 3), **record["timings_ms"]}
    record |= {name: (labels.cpu().numpy() == truth).mean().round(4).item() for name, labels in maps.items()}
    if as_json:
        say(json.dumps(record, allow_nan=False))
        return
    if not show_progress:
        return
    head = f"scene {scene}, {record['width']}x{record['height']}, model tiny, method {method}, refinement {refine}\n"
    click.echo(head)
    for name, share in sorted(record["shares"].items(), key=lambda item: -item[1]):
        if share:
            click.echo(f"  {name:<16}{100 * share:5.1f} %")
    before = f", {100 * record['pixel_accuracy_coarse']:.1f} % before SAM" if refine != "none" else ""
    click.echo(f"\n  {100 * record['pixel_accuracy']:.1f} % of the pixels are what was painted{before}\n")
    click.echo("  " + ", ".join(f"{name} {value:.0f} ms" for name, value in record["timings_ms"].items()) + "\n")
    for name, path in record["files"].items():
        say(f"  {name:<9}{path}")
