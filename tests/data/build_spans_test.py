"""Spans of videos as a build stores them: cut, not encoded again, and the same frames."""

import io
import pathlib

import av
import numpy as np
import pytest
from etils import epath

from jepa_jax.data.build.spans import cut_span
from jepa_jax.data.decode import read_frames
from jepa_jax.data.records import Media
from tests.data import clips


def make_video(path: pathlib.Path, codec: str, frames: int = 90, size: tuple[int, int] = (64, 48)) -> None:
    """A moving texture at 30 frames a second, a keyframe every 15, frames in another order than shown
    where the codec has that."""
    texture = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 15
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = 2
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, i, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown(content, start: float, end: float) -> list[tuple[float, bytes]]:
    """Time from `start` and pixels of the frames first shown in a span, all decoded in order."""
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = min(frame.pts for frame in frames)
        times = [float((frame.pts - first) * stream.time_base) for frame in frames]
        return [
            (round(time - start, 4), frame.to_ndarray(format="rgb24").tobytes())
            for time, frame in zip(times, frames, strict=True)
            if start - 1e-3 <= time < end - 1e-3
        ]


@pytest.mark.parametrize(
    ("codec", "suffix"), [("libx264", "mp4"), ("libx264", "ts"), ("mpeg4", "mkv"), ("libvpx", "webm")]
)
def test_a_span_is_cut_without_encoding_it_again(tmp_path, codec, suffix):
    path = tmp_path / f"long.{suffix}"
    make_video(path, codec)
    content = path.read_bytes()
    for start, end in ((0.0, 0.4), (0.7, 1.2), (1.0, 1.5), (1.49, 1.51), (2.6, 9.0)):
        for original in (content, epath.Path(path)):
            cut = cut_span(Media(content=original, kind="video", start=start, end=end), 2**20)
            assert len(cut.content) < 0.7 * len(content)
            assert cut.end - cut.start == pytest.approx(end - start)
            found = shown(cut.content, cut.start, cut.end)
            assert found == shown(content, start, end)
            assert found or end - start < 1 / 30


@pytest.mark.parametrize("kind", [{}, {"codec": "mpeg4"}, {"container": "webm", "codec": "libvpx"}])
def test_the_last_frame_of_a_cut_is_on_show_as_long_as_it_was(kind):
    times = [40 * i + 20 * (i > 7) + 1000 * (i > 11) for i in range(40)]
    media = Media(content=clips.clip(40, times=times, **kind), start=0.2, end=0.7)  # 5 to 11, to 1.5 s
    options = {"resize": None, "crop": clips.HEIGHT, "name": "a", "limits": clips.LIMITS}
    cut = cut_span(media, 2**24)
    assert len(cut.content) < len(media.content)
    found = [clips.numbers(read_frames(m, 9, **options)) for m in (media, cut)]
    assert found[0] == found[1] == [6, 9, *[11] * 7]


UNEVEN = [40 * i + 20 * (i > 7) + 500 * (i > 11) for i in range(40)]
UNUSUAL = {
    # An edit list hides the first three frames, which were encoded.
    "trimmed": {"times": [40 * i - 120 for i in range(40)]},
    "trimmed between frames": {"times": [time - 130 for time in UNEVEN]},
    "no durations": {"codec": "libvpx-vp9", "times": UNEVEN},
    # At 120 frames a second milliseconds are no even steps.
    "milliseconds": {"container": "matroska", "rate": 120, "count": 200},
    "milliseconds without reordering": {"container": "matroska", "codec": "mpeg4", "rate": 120, "count": 99},
    "milliseconds without seeks": {"container": "flv", "rate": 30},
    "shown before decoded": {
        "count": 5,
        "rate": 10,
        "container_options": {"movflags": "+negative_cts_offsets"},
    },
    "turned": {"matrix": (0, 65536, 0, -65536, 0, 0, 0, 0, 2**30)},
}


def test_a_cut_shows_something_at_once():
    """Where a picture is renewed piece by piece, decoding can begin long before there is anything to show."""
    content = clips.clip(150, options={"x264-params": "intra-refresh=1:keyint=30", "bf": "0"})
    options = {"resize": None, "crop": clips.HEIGHT, "name": "a", "limits": clips.LIMITS}
    cuts = 0
    for start in np.arange(2.0, 4.0, 0.2):
        media = Media(content=content, start=start, end=start + 0.6)
        cut = cut_span(media, 2**24)
        cuts += cut is not None
        whole, found = (read_frames(m, 5, **options) for m in (media, cut or media))
        np.testing.assert_array_equal(found, whole)
    assert 0 < cuts < 10


@pytest.mark.parametrize("kind", UNUSUAL)
def test_frames_of_a_cut_are_those_of_the_whole(kind):
    content = clips.clip(**{"count": 40} | UNUSUAL[kind])
    options = {"resize": None, "crop": clips.HEIGHT, "name": "a", "limits": clips.LIMITS}
    cuts = 0
    for start, end in ((None, 0.13), (0.0, 0.08), (None, 0.5), (0.05, 0.13), (0.1, 0.7), (0.2, None)):
        media = Media(content=content, start=start, end=end)
        cut = cut_span(media, 2**24)
        cuts += cut is not None
        for count in (1, 3, 8):
            whole, found = (read_frames(m, count, **options) for m in (media, cut or media))
            np.testing.assert_array_equal(found, whole, err_msg=f"{start} to {end}, {count} frames")
    assert cuts >= 4


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_cut_is_the_same_every_time(kind):
    content = clips.clip(40, container=kind, codec={"mp4": "libx264", "webm": "libvpx-vp9"}[kind])
    cuts = [cut_span(Media(content=content, start=0.5, end=1.2), 2**24).content for _ in range(2)]
    assert cuts[0] == cuts[1]


def test_a_video_whose_packets_say_no_times_is_stored_whole():
    content = clips.clip(container="avi", codec="mpeg4", max_b_frames=2)
    assert cut_span(Media(content=content, start=1.0, end=1.2), 2**24) is None


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_video_that_was_joined_of_files_is_stored_whole(container, tmp_path):
    """What begins to count time again has several frames of a time."""
    part = clips.clip(60, container=container)
    path = epath.Path(tmp_path) / "joined"
    path.write_bytes(part + part)
    span = {"start": 1.0, "end": 1.2}
    assert cut_span(Media(content=part, **span), 2**24) is not None
    assert cut_span(Media(content=part + part, **span), 2**24) is None
    assert cut_span(Media(content=path, **span), 2**24) is None


def test_a_video_of_an_unknown_codec_is_stored_whole():
    content = clips.clip().replace(b"avc1", b"none")
    assert cut_span(Media(content=content, start=0.5, end=1.0), 2**24) is None


def test_a_span_without_an_end_goes_to_the_end(tmp_path):
    make_video(tmp_path / "long.mp4", "libx264")
    content = (tmp_path / "long.mp4").read_bytes()
    cut = cut_span(Media(content=content, start=2.3), 2**20)
    assert cut.end is None
    assert shown(cut.content, cut.start, 99) == shown(content, 2.3, 99)
    assert len(shown(content, 2.3, 99)) == 21
    assert cut_span(Media(content=content, start=2.3), len(cut.content) // 2) is None
