"""Films and cameras of `s2clip segment`: every n-th frame a label PNG, and all of them an overlay film."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from s2clip.cli.console import bar, say
from s2clip.cli.options import decorated, gathered
from s2clip.values import counted

if TYPE_CHECKING:
    from s2clip.segmenter import Segmenter

_OPTIONS = ("every", "frames")


def video_options(command: Any) -> Any:
    """How films are read, handed to the command as one dictionary `video_settings`."""
    options = [
        click.option("--every", type=click.IntRange(min=1), help="Of a film or camera, every n-th frame; default 1."),
        click.option("--frames", type=click.IntRange(min=1), help="Of a film or camera, at most so many frames."),
    ]
    return decorated(gathered(command, "video_settings", _OPTIONS), options)


def parted(sources: Sequence[str], settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(films and cameras, all else). Raises ValueError for options of films without one, MissingExtraError."""
    from s2clip.pictures.video import is_video, require_av

    films = list(dict.fromkeys(source for source in sources if is_video(source)))
    if films:
        require_av()
    elif stray := [name for name in _OPTIONS if settings[name] is not None]:
        raise ValueError(f"--{stray[0]}: is of films and cameras, and there is none")
    return films, [source for source in sources if source not in films]


def segment_film(
    segmenter: "Segmenter",
    source: str,
    folder: Path,
    *,
    settings: dict[str, Any],
    max_pixels: int,
    names: bool,
    show_progress: bool,
) -> tuple[dict[str, Any], str | None]:
    """(record, why it ended early or None): STEM.overlay.mp4 and STEM.frames/000000.png, numbered as in the film.

    What was done before an interruption or damage is kept. Raises ImageError for what cannot be opened.
    """
    import torch

    from s2clip.errors import ImageError
    from s2clip.files import writable_folder
    from s2clip.pictures.video import Video
    from s2clip.results.film import Film
    from s2clip.results.visualize import overlay

    every, most = settings["every"] or 1, settings["frames"]
    stem = source.replace(":", "-") if source.startswith("webcam:") else Path(source).stem
    target, problem, done = folder / f"{stem}.overlay.mp4", None, 0
    if target.exists() and os.path.exists(source) and target.samefile(source):
        raise ValueError(f"-o {folder}: the result {target} would replace the film; choose another folder")
    frames = writable_folder(folder / f"{stem}.frames")
    totals = torch.zeros(len(segmenter.classes), dtype=torch.float64)
    size = (0, 0)
    with Video(source, every, max_pixels) as video:
        film = Film(target, video.rate)
        count = min(filter(None, (video.count, most)), default=None)
        try:
            with bar(show_progress)(total=count, unit=" frames") as shown:
                for number, pixels in video:
                    result = segmenter(pixels)
                    result.save(frames, ("png",), stem=f"{number:06d}", sidecars=False)
                    film.add(_drawn(overlay, result, names))
                    totals += torch.tensor(list(result.shares.values()), dtype=torch.float64)
                    size, done = pixels.shape[:2], done + 1
                    shown.update()
                    if done == most:
                        break
        except ImageError as error:
            if not done:
                raise
            problem = str(error).removeprefix(f"{source}: ")
        except KeyboardInterrupt:
            say(f"{source}: {counted(done, 'frame')} done", err=True)
            if not source.startswith("webcam:"):
                raise
        finally:
            film.close()
    shares = dict(zip(segmenter.classes, (totals / max(done, 1)).tolist(), strict=True))
    record = {
        "source": source,
        "height": size[0],
        "width": size[1],
        "frames": done,
        "every": every,
        "files": {"film": str(target), "png": str(frames)},
        "shares": {name: round(share, 6) for name, share in shares.items()},
        "timings_ms": {},
    }
    return record, problem


def _drawn(overlay: Any, result: Any, names: bool) -> Any:
    """The tinted frame without legend, whose size would change with the classes."""
    import numpy as np

    return np.asarray(overlay(result.image, result.segmentation, result.classes, names=names, legend=False))
