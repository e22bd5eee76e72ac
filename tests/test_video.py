"""`s2clip segment clip.mp4`: every n-th frame, label PNGs and an overlay film (extra `video`)."""

import errno
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from s2clip import Segmenter, scenes
from s2clip.errors import ImageError
from s2clip.pictures.video import Video
from s2clip.results.film import Film

CLASSES = "sky, water; sea, grass, house"


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """Seven frames of 64x48 that move to the side, ten a second."""
    monkeypatch.chdir(tmp_path)
    with av.open("clip.mp4", "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(7):
            pixels = np.roll(scenes.generate(3, (48, 64))[0], 3 * number, 1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return Path("clip.mp4")


def segment(run, *arguments):
    return run("segment", "--classes", CLASSES, "--method", "clip", *arguments)


def test_every_third_frame_becomes_a_label_map_and_one_of_the_film(run, clip):
    result = segment(run, clip, "--every", 3, "--json")
    assert result.exit_code == 0, result.output
    (record,) = json.loads(result.stdout)["images"]
    assert (record["frames"], record["height"], record["width"]) == (3, 48, 64)
    assert sum(record["shares"].values()) == pytest.approx(1, abs=1e-5)
    names = sorted(path.name for path in Path("out/clip.frames").iterdir())
    assert names == ["000000.png", "000003.png", "000006.png"]
    assert {path.name for path in Path("out").iterdir()} >= {"classes.json", "clip.overlay.mp4", "run.json"}
    segmenter = Segmenter.from_pretrained("tiny", method="clip").set_classes(CLASSES)
    frames = dict(Video("clip.mp4"))
    assert len(frames) == 7
    expected = segmenter(frames[3]).segmentation.numpy()
    with Image.open("out/clip.frames/000003.png") as image:
        assert np.array_equal(np.array(image), expected)
    with Video("out/clip.overlay.mp4") as film:
        assert film.rate == Fraction(10, 3)
        shown = dict(film)
    assert len(shown) == 3
    tinted = np.asarray(segmenter(frames[3]).overlay(legend=False))
    assert np.abs(shown[1].astype(int) - tinted).mean() < 8


def test_a_damaged_film_is_one_line_and_keeps_what_it_had(run, clip):
    data = clip.read_bytes()
    Path("cut.mp4").write_bytes(data[: len(data) // 3])
    Path("text.mp4").write_bytes(b"not a film")
    result = segment(run, "cut.mp4", "text.mp4", clip, "--frames", 1)
    assert result.exit_code == 1
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1].strip() for line in failed] == ["cut.mp4", "text.mp4"]
    assert all("cannot be read as a film" in line for line in failed)
    assert Path("out/clip.overlay.mp4").exists()


def test_frames_are_turned_as_the_film_says_and_bounded(clip, monkeypatch):
    first = dict(Video("clip.mp4"))[0]
    monkeypatch.setattr("s2clip.pictures.video._rotation", lambda frame: 90)
    assert np.array_equal(dict(Video("clip.mp4"))[0], np.rot90(first))
    with pytest.raises(ImageError, match="frames of 64x48, over the limit of"):
        Video("clip.mp4", max_pixels=1000)


@pytest.mark.parametrize("stopped", [False, True], ids=["so many frames", "Ctrl-C"])
def test_a_camera_is_read_until_there_are_enough_frames_or_somebody_stops_it(run, clip, monkeypatch, stopped):
    opened, asked, first = av.open, [], True

    def camera(file, *more, **options):
        """A driver of Video4Linux as FFmpeg opens it, which shows the film."""
        if file == "/dev/video0":
            asked.append(options)
            return opened("clip.mp4")
        return opened(file, *more, **options)

    def interrupted(segmenter, source):
        nonlocal first
        if not first:
            raise KeyboardInterrupt
        first = False
        return call(segmenter, source)

    call = Segmenter.__call__
    monkeypatch.setattr(av, "open", camera)
    if stopped:
        monkeypatch.setattr(Segmenter, "__call__", interrupted)
    result = segment(run, "webcam:0", *(() if stopped else ("--frames", 3)))
    assert result.exit_code == 0, result.output
    assert asked == [{"format": "v4l2"}]
    count = 1 if stopped else 3
    assert sorted(path.name for path in Path("out/webcam-0.frames").iterdir()) == [
        f"{number:06d}.png" for number in range(count)
    ]
    assert len(dict(Video("out/webcam-0.overlay.mp4"))) == count
    frames = "1 frame" if stopped else "3 frames"
    assert f"webcam:0: {frames} -> out/webcam-0.overlay.mp4" in result.stdout
    assert ("webcam:0: 1 frame done" in result.stderr) == stopped


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("photo.png", "--every", 2), 2, "--every: is of films and cameras, and there is none"),
        (("webcam:93",), 1, "webcam:93: no such camera"),
        (("clip.mp4", "--resume"), 2, "--resume: a film is segmented in one go"),
    ],
)
def test_what_is_wrong_is_one_line(run, clip, arguments, code, message):
    Image.fromarray(scenes.generate(3, (48, 64))[0]).save("photo.png")
    result = segment(run, *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_without_the_extra_one_line_names_it(run, clip, monkeypatch):
    monkeypatch.setattr("s2clip.pictures.video.find_spec", lambda name: None)
    result = segment(run, clip)
    assert result.exit_code == 3
    assert "pip install 's2clip[video]'" in result.stderr


def test_a_full_disk_ends_the_run_in_one_line(run, clip, monkeypatch):
    """The frames find room and the film none, as FFmpeg tells it."""
    full = av.error.OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a name of its own")
    monkeypatch.setattr(Film, "_add", lambda film, pixels: (_ for _ in ()).throw(full))
    result = segment(run, clip, "--every", 3)
    assert result.exit_code == 3, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: out/clip.overlay.mp4: cannot write there: No space left on device; ")
    assert not list(Path("out").glob("*.mp4"))
