"""Frames from files and URLs: all of them, at their times; and sources that are none, or stop."""

import contextlib
import fractions
import io
import wave

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from jepa_jax.data.decode import read_frames
from jepa_jax.data.preprocess import resize_and_crop
from jepa_jax.data.records import Media
from jepa_jax.streaming.frames import (
    Frame,
    NoVideoError,
    SourceStoppedError,
    at_rate,
    from_arrays,
    open_video,
    shown,
)
from tests.data import clips
from tests.streaming import videos

RATE, COUNT = 5, 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    frames = videos.frames_of(("red", 6), ("blue", COUNT - 6))
    videos.write(folder / "plain.mp4", frames, RATE, movflags="faststart")
    videos.write(folder / "plain.ts", frames, RATE)
    # What does not compress, so that half of the file is more than FFmpeg reads at once.
    noise = list(np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8))
    videos.write(folder / "noise.mp4", noise, RATE, movflags="faststart")
    videos.write(folder / "noise.ts", noise, RATE)
    return folder


def test_every_frame_at_its_time(folder):
    frames = list(open_video(str(folder / "plain.mp4")))
    np.testing.assert_allclose([f.seconds for f in frames], np.arange(COUNT) / RATE, atol=1e-6)
    assert frames[0].pixels.shape == (48, 64, 3)
    assert frames[0].pixels.dtype == np.uint8
    nearest = [
        min(videos.COLOURS, key=lambda c: np.abs(f.pixels - 1.0 * np.array(videos.COLOURS[c])).mean())
        for f in frames
    ]
    assert nearest == ["red"] * 6 + ["blue"] * (COUNT - 6)


@pytest.mark.parametrize(
    "options",
    [
        {"matrix": (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)},
        {"matrix": (-1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)},
        {"width": 48, "aspect": 2},
        {"colorspace": 1},
    ],
    ids=["turned", "mirrored", "wide pixels", "BT.709"],
)
def test_frames_are_seen_as_in_training(tmp_path, options):
    """As telephones, tapes and screens write them."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 4, 3, 3), np.uint8).repeat(clips.HEIGHT // 4, 1).repeat(16, 2)
    frames = [av.VideoFrame.from_ndarray(x, format="rgb24") for x in noise]
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips.clip(3, frames=frames, **{"width": 48, **options}))
    fit = {"resize": 64, "crop": 64, "name": "clip", "limits": clips.LIMITS}
    trained_on = read_frames(Media(content=path.read_bytes()), 3, **fit)
    seen = np.concatenate([resize_and_crop(f.pixels[None], 64, 64) for f in open_video(str(path))])
    # Interleaved pixels are rounded down, planes are not.
    assert np.abs(seen.astype(int) - trained_on).mean() < 4
    assert np.abs(seen[::-1].astype(int) - trained_on).mean() > 30


def test_of_several_videos_the_one_of_training_is_watched(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream, disposition in zip(streams, (0, Disposition.default)):
            stream.height, stream.width, stream.disposition = clips.HEIGHT, clips.WIDTH, disposition
        for i in range(13):
            for stream, first in zip(streams, (0, 100)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(clips.numbered(first + i))))
        for stream in streams:
            container.mux(stream.encode())
    watched = np.stack([frame.pixels for frame in open_video(str(path))])
    side = (clips.WIDTH - clips.HEIGHT) // 2
    assert clips.numbers(watched[:, :, side:-side]) == list(range(100, 113))
    options = {"resize": None, "crop": clips.HEIGHT, "name": "a", "limits": clips.LIMITS}
    assert clips.numbers(read_frames(Media(content=path.read_bytes()), 13, **options)) == list(
        range(100, 113)
    )


@pytest.mark.parametrize("rate", [60, fractions.Fraction(24_000, 1001)])
def test_without_a_container_frames_come_at_the_rate_that_the_video_states(tmp_path, rate):
    """FFmpeg, which finds no times there, says 25 a second of all."""
    (tmp_path / "clip.h264").write_bytes(clips.clip(20, container="h264", rate=rate))
    seconds = [frame.seconds for frame in open_video(str(tmp_path / "clip.h264"))]
    np.testing.assert_allclose(seconds, np.arange(20) / float(rate), atol=1e-6)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_of_avi_come_in_the_order_of_their_times(tmp_path, codec):
    """It has times of decoding alone, and these frames look ahead. Thirty are missing after the twentieth."""
    times = [40 * (i + 30 * (i >= 20)) for i in range(40)]
    (tmp_path / "clip.avi").write_bytes(clips.clip(40, container="avi", codec=codec, times=times))
    frames = list(open_video(str(tmp_path / "clip.avi")))
    side = (clips.WIDTH - clips.HEIGHT) // 2
    assert clips.numbers(np.stack([f.pixels for f in frames])[:, :, side:-side]) == list(range(40))
    off = [frame.seconds - shown / 1000 for frame, shown in zip(frames, times)]
    # By how many frames the encoder looked ahead is nowhere, and the pause may seem to be so much later.
    assert max(map(abs, off[:17] + off[20:])) < 0.17


def test_what_is_transparent_is_white(tmp_path):
    with av.open(str(tmp_path / "clip.mov"), "w") as output:
        stream = output.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "rgba"
        pixels = np.zeros((32, 40, 4), np.uint8) + np.array([200, 100, 50, 51], np.uint8)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgba")))
        output.mux(stream.encode())
    (frame,) = open_video(str(tmp_path / "clip.mov"))
    assert (frame.pixels == (244, 224, 214)).all()


def test_wide_pixels_count_where_frames_are_too_large(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clips.clip(3, aspect=60))
    area = clips.WIDTH * clips.HEIGHT
    with pytest.raises(NoVideoError, match=f"has frames of {60 * clips.WIDTH} x {clips.HEIGHT} pixels"):
        next(open_video(str(tmp_path / "clip.mp4"), max_pixels=10 * area))


def test_a_url_gives_the_frames_of_the_file(folder):
    with videos.served(folder) as url:
        for name in ("plain.mp4", "plain.ts"):
            far, near = list(open_video(f"{url}/{name}")), list(open_video(str(folder / name)))
            assert len(far) == COUNT
            for one, other in zip(far, near, strict=True):
                assert one.seconds == other.seconds
                np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_camera_s_pictures_without_times_are_seen_when_they_come(tmp_path):
    """JPEGs over HTTP, ten a second."""
    head, sent = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n", b""
    for pixels in videos.frames_of(("red", 8), ("blue", 8)):
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "JPEG")
        sent += head + picture.getvalue() + b"\r\n"
    (tmp_path / "camera").write_bytes(sent + b"--frame--\r\n")
    seconds: list[float] = []
    with videos.served(tmp_path) as url, contextlib.suppress(SourceStoppedError):  # to FFmpeg it breaks off
        seconds.extend(frame.seconds for frame in open_video(f"{url}/camera?slowly"))
    assert len(seconds) == 16
    # Those that came while it was opened are seen at once.
    assert seconds[-1] - seconds[7] > 0.6


@pytest.mark.parametrize("user", ["who:secret", "secret", "who:se/cr@et"])
def test_a_camera_s_password_is_in_no_sentence(user):
    with pytest.raises(NoVideoError, match=r"^http://\*\*\*@127.0.0.1:9/live cannot be opened") as error:
        next(open_video(f"http://{user}@127.0.0.1:9/live"))
    assert "cr" not in str(error.value)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("token=secret", "token=***"),
        ("user=who&password=sec?ret&", "user=***&password=***&"),
        ("secret", "***"),
        ("a;key=se=cret", "***;key=***"),
    ],
)
def test_the_values_of_a_query_are_in_no_sentence(query, said):
    assert shown(f"https://host:80/live.m3u8?{query}") == f"https://host:80/live.m3u8?{said}"


@pytest.mark.parametrize(
    "source", ["https://host:80/live@b", "clips/what?a=b.mp4", "clips/who@host.mp4", "rtsp://host/@who"]
)
def test_what_is_no_password_is_shown(source):
    assert shown(source) == source


@pytest.mark.parametrize("name", ["noise.mp4", "noise.ts"])
def test_a_connection_that_is_lost_is_said_and_what_came_is_kept(folder, name):
    seen = []
    with videos.served(folder) as url, pytest.raises(SourceStoppedError, match=r"stopped after \d\.\d s"):
        seen.extend(open_video(f"{url}/{name}?hang_up"))  # extend keeps what came before the error
    assert 0 < len(seen) < 40


def test_a_file_that_is_cut_off_is_said(folder, tmp_path):
    content = (folder / "plain.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 2 // 3])
    seen = []
    with pytest.raises(SourceStoppedError, match="stopped after"):
        seen.extend(open_video(str(tmp_path / "cut.mp4")))
    assert 0 < len(seen) < COUNT


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_shown_for_long_is_not_cut_off(tmp_path, suffix):
    """Three slides of five seconds: the last picture comes five seconds before the end."""
    slides = videos.write(
        tmp_path / f"slides{suffix}",
        videos.frames_of(("red", 1), ("green", 1), ("blue", 1)),
        fractions.Fraction(1, 5),
    )
    given = list(at_rate(open_video(str(slides)), 2))
    assert [f.seconds for f in given] == [i / 2 for i in range(30)]
    assert (given[-1].pixels == given[20].pixels).all()
    assert (given[-1].pixels != given[19].pixels).any()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_piece_of_a_recording_begins_late_and_is_whole(tmp_path, suffix):
    """As `ffmpeg -f segment` leaves them, with the times of the recording."""
    path = tmp_path / f"piece{suffix}"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=RATE)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for place, pixels in enumerate(videos.frames_of(("red", COUNT))):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = 100 * RATE + place, fractions.Fraction(1, RATE)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    seconds = [frame.seconds for frame in open_video(str(path))]
    np.testing.assert_allclose(seconds, np.arange(COUNT) / RATE, atol=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_goes_on_without_pictures_is_not_waited_for(tmp_path, suffix):
    path = tmp_path / f"sound{suffix}"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("mpeg4", rate=RATE), container.add_stream("aac", rate=8000)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for pixels in videos.frames_of(("red", COUNT)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        for begin in range(0, 8 * 8000, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, begin
            container.mux(sound.encode(silence))
        container.mux(sound.encode())
    assert len(list(open_video(str(path)))) == COUNT


def test_a_clock_that_starts_again_goes_on(folder, tmp_path):
    """Two transport streams, one after the other, as a recorder that was restarted leaves them."""
    (tmp_path / "twice.ts").write_bytes(2 * (folder / "plain.ts").read_bytes())
    times = np.array([f.seconds for f in open_video(str(tmp_path / "twice.ts"))])
    assert len(times) > COUNT + COUNT // 2
    assert (np.diff(times) > 0).all()
    assert times[-1] < 3 * COUNT / RATE


def test_what_is_no_video_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    for name, reason in {
        "empty.mp4": "is an empty file",
        "text.mp4": "cannot be opened as a video: Invalid data",
        "sound.wav": "holds no video",
        "drawing.svg": "cannot be (opened as a video|decoded here)",
        "missing.mp4": "cannot be opened as a video: No such file",
    }.items():
        with pytest.raises(NoVideoError, match=reason) as caught:
            next(open_video(str(tmp_path / name)))
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_frames_that_are_too_large_are_refused(folder):
    with pytest.raises(NoVideoError, match="64 x 48 pixels; at most 3,071 are read"):
        next(open_video(str(folder / "plain.mp4"), max_pixels=48 * 64 - 1))


def test_a_live_playlist_that_gets_no_more_pieces_is_said(tmp_path, monkeypatch):
    """Without #EXT-X-ENDLIST it says that more will come; FFmpeg ends as if it had been all."""
    monkeypatch.setattr("jepa_jax.streaming.frames._PATIENCE", (1.0, 1.0))
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2"]
    for name in ("first.ts", "second.ts"):
        videos.write(tmp_path / name, videos.frames_of(("red", 10)), RATE)
        lines += ["#EXTINF:2.0,", name]
    with videos.served(tmp_path) as url:
        (tmp_path / "live.m3u8").write_text("\n".join(lines) + "\n")
        found = []
        with pytest.raises(SourceStoppedError, match=r"live.m3u8 stopped after .* s: nothing came for 1 s"):
            found.extend(open_video(f"{url}/live.m3u8"))
        assert len(found) > 15
        (tmp_path / "whole.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST"]) + "\n")
        assert len(list(open_video(f"{url}/whole.m3u8"))) == len(found)


def test_of_a_master_playlist_one_variant_is_fetched(tmp_path):
    """Opening looks at the first piece of each; FFmpeg would go on with all of them."""
    master, pieces = ["#EXTM3U"], 6
    for variant, bits in (("low", 1000), ("high", 3000)):
        master += [f"#EXT-X-STREAM-INF:BANDWIDTH={bits}", f"{variant}.m3u8"]
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2"]
        for i in range(pieces):
            videos.write(tmp_path / f"{variant}{i}.ts", videos.frames_of(("red", 20)), RATE)
            lines += ["#EXTINF:2.0,", f"{variant}{i}.ts"]
        (tmp_path / f"{variant}.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST"]) + "\n")
    (tmp_path / "master.m3u8").write_text("\n".join(master) + "\n")
    asked = []
    with videos.served(tmp_path, asked) as url:
        assert len(list(open_video(f"{url}/master.m3u8"))) > 19 * pieces
    fetched = [sum(f"{variant}{i}.ts" in asked for i in range(pieces)) for variant in ("low", "high")]
    assert max(fetched) == pieces
    assert min(fetched) <= 2


def test_a_playlist_from_elsewhere_opens_no_local_file(folder):
    """The list itself is good: with the server's own address it plays."""
    with videos.served(folder) as url:
        for place, plays in ((url, True), (f"file://{folder}", False)):
            lines = [
                "#EXTM3U",
                "#EXT-X-TARGETDURATION:3",
                "#EXTINF:2.6,",
                f"{place}/plain.ts",
                "#EXT-X-ENDLIST",
            ]
            (folder / "list.m3u8").write_text("\n".join(lines) + "\n")
            if plays:
                assert list(open_video(f"{url}/list.m3u8"))
            else:
                with pytest.raises(NoVideoError):
                    list(open_video(f"{url}/list.m3u8"))


@pytest.mark.parametrize(("source", "rate"), [(30, 4), (4, 4), (3, 7), (25, 25 / 3)])
def test_an_even_rate_shows_what_is_there_at_each_time(source, rate):
    frames = from_arrays((np.full((2, 3, 3), i, np.uint8) for i in range(61)), source)
    given = list(at_rate(frames, rate))
    np.testing.assert_allclose([f.seconds for f in given], np.arange(len(given)) / rate)
    assert given[-1].seconds < 61 / source <= given[-1].seconds + 1 / rate + 1e-9
    for frame in given:
        shown = int(frame.pixels[0, 0, 0]) / source
        # Where the source is faster, the first one at or after the time; else the last one before it.
        assert -1 / source < shown - frame.seconds < 1 / source + 1e-9


def test_an_even_rate_keeps_one_frame():
    given = at_rate((Frame(i / 50, np.zeros((1, 1, 3), np.uint8)) for i in range(101)), 1)
    assert [f.seconds for f in given] == [0, 1, 2]


def test_frames_of_any_iterator_are_copied():
    """A camera's are often one array, filled again and again."""
    array = np.zeros((2, 3, 3), np.uint8)

    def camera():
        for i in range(5):
            array[:] = i
            yield array

    assert [frame.pixels[0, 0, 0] for frame in list(from_arrays(camera(), 5))] == list(range(5))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (1, 2, 3, 3), (0, 3, 3)])
def test_a_frame_of_another_form_is_refused(shape):
    with pytest.raises(ValueError, match=r"a frame must be \[H, W, 3\] uint8"):
        next(from_arrays([np.zeros(shape, np.uint8)], 5))
    with pytest.raises(ValueError, match=r"got \(2, 3, 3\) float64"):
        next(from_arrays(np.zeros((1, 2, 3, 3)), 5))
