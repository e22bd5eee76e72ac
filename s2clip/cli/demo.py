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
@click.option("-o", "--output", default="out/demo", show_default=True, type=click.Path(path_type=Path), help="Folder.")
@output_options
def demo(scene: int, method: str, output: Path, as_json: bool, show_progress: bool) -> None:
    """Segment a bundled scene with the embedded models, offline."""
    from PIL import Image

    from s2clip import scenes
    from s2clip.files import whole_file, writable_folder

    writable_folder(output)
    with usage_errors():
        picture, truth = scenes.generate(scene)
    source = output / f"scene-{scene}.input.png"
    encoded = BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    with whole_file(source) as handle:
        handle.write(encoded.getvalue())
    start = time.perf_counter()
    segmenter = load_segmenter({"model": "tiny"}, method=method)
    segmenter.set_classes(scenes.CLASSES)
    loading = 1000 * (time.perf_counter() - start)
    result = segmenter(source)
    record = result.record({"input": source, **result.save(output, stem=f"scene-{scene}")})
    record["timings_ms"] = {"load": round(loading, 3), **record["timings_ms"]}
    record["pixel_accuracy"] = (result.segmentation.cpu().numpy() == truth).mean().round(4).item()
    if as_json:
        say(json.dumps(record, allow_nan=False))
        return
    click.echo(f"scene {scene}, {record['width']}x{record['height']}, model tiny, method {method}\n")
    for name, share in sorted(record["shares"].items(), key=lambda item: -item[1]):
        if share:
            click.echo(f"  {name:<16}{100 * share:5.1f} %")
    click.echo(f"\n  {100 * record['pixel_accuracy']:.1f} % of the pixels are what was painted\n")
    click.echo("  " + ", ".join(f"{name} {value:.0f} ms" for name, value in record["timings_ms"].items()) + "\n")
    for name, path in record["files"].items():
        say(f"  {name:<9}{path}")
