"""Images and animations: what is read, what is refused."""

import struct

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jepa_jax.data import decode_image
from jepa_jax.data.preprocess import resize_and_crop, sample_frames
from jepa_jax.data.records import BadRecordError
from jepa_jax.data.sources.frames import decode_frames
from tests.data import clips
from tests.data.decode_test import cause, read, read_numbers


def test_an_image_is_repeated_and_told_by_its_content(tmp_path):
    content = clips.picture(clips.numbered(41))
    path = epath.Path(tmp_path) / "clip.mp4"
    path.write_bytes(content)
    for given in (content, path):
        frames = read(given, 3)
        np.testing.assert_array_equal(frames, np.repeat(frames[:1], 3, axis=0))
        expected = resize_and_crop(clips.numbered(41)[None], None, 64)
        np.testing.assert_array_equal(frames[:1], expected)
    assert read_numbers(content, 2, start=5.0, end=6.0) == [41, 41]


def test_images_of_every_kind_become_rgb():
    rgb = np.zeros((20, 20, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    image = Image.fromarray(rgb)
    alpha = np.dstack([rgb, np.full((20, 20), 51, np.uint8)])  # a fifth, on white
    grey16 = Image.fromarray(np.full((20, 20), 77 * 257, np.uint16))
    grey = image.convert("L").getpixel((0, 0))
    for content, expected in (
        (clips.picture(image), (200, 100, 50)),
        (clips.picture(image, "JPEG", quality=95), (200, 100, 50)),
        (clips.picture(image, "WEBP", lossless=True), (200, 100, 50)),
        (clips.picture(image, "BMP"), (200, 100, 50)),
        (clips.picture(image, "TIFF"), (200, 100, 50)),
        (clips.picture(image, "PPM"), (200, 100, 50)),
        (clips.picture(image.quantize(4)), (200, 100, 50)),
        (clips.picture(image.convert("CMYK"), "JPEG", quality=95), (200, 100, 50)),
        (clips.picture(image.convert("L")), (grey,) * 3),
        (clips.picture(grey16), (77,) * 3),
        (b"P5 20 20 65535 " + np.asarray(grey16).byteswap().tobytes(), (77,) * 3),
        (clips.picture(image.convert("1", dither=0)), (0,) * 3),
        (clips.picture(alpha), (244, 224, 214)),
        (clips.picture(np.dstack([alpha[..., 0], alpha[..., 3]])), (244,) * 3),
    ):
        found = read(content, 1, crop=8)[0, 4, 4].astype(int)
        assert np.abs(found - expected).max() <= 3, (content[:12], found)


def test_the_limit_on_pixels_is_the_run_s_and_not_pillow_s(monkeypatch):
    content = clips.picture(clips.numbered(5))
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 1000
    )  # it refuses from twice as many on, and has 89 million
    assert read_numbers(content, 1) == [5]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(decode_frames([content] * 2, "a", clips.LIMITS)) == 2


def test_the_orientation_of_a_photograph_is_honoured():
    image = Image.fromarray(clips.numbered(3))
    exif = image.getexif()
    exif[0x112] = 6  # to be turned clockwise
    found = read(clips.picture(image, "JPEG", quality=95, exif=exif), 1)[0]
    expected = resize_and_crop(np.rot90(clips.numbered(3), -1)[None], None, 64)[0]
    assert np.abs(found.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_sampled_like_videos(kind):
    assert read_numbers(clips.animation(kind), 5) == sample_frames(np.arange(13), 5).tolist()
    assert read_numbers(clips.animation(kind), 2, kind="image") == [0, 0]
    durations = [40, 400, 40, 40, 2000]
    uneven = clips.animation(kind, 5, durations)
    # The middles of four shares of 2520 ms: 315, 945, 1575, 2205.
    assert read_numbers(uneven, 4) == [1, 4, 4, 4]
    assert read_numbers(uneven, 3, start=0.44, end=0.52) == [2, 3, 3]
    assert cause(uneven, start=3.0, end=4.0) == "span outside the media"
    # Many animations rest on their last frame: of 2200 ms the middles are 275, 825, 1375, 1925.
    assert read_numbers(clips.animation(kind, 3, [100, 100, 2000]), 4) == [2, 2, 2, 2]
    assert read_numbers(clips.animation(kind, 2, [100, 300]), 4) == [0, 1, 1, 1]


@pytest.mark.parametrize("count", [2, 5])
def test_what_a_png_has_in_place_of_its_animation_is_no_frame_of_it(count):
    first, *rest = [Image.fromarray(clips.numbered(i)) for i in range(count)]
    content = clips.picture(first, save_all=True, append_images=rest, duration=40, default_image=True)
    assert read_numbers(content, count - 1) == list(range(1, count))
    assert read_numbers(content, 1, kind="image") == [0]


@pytest.mark.parametrize(("side", "most"), [(1000, 2**16), (8, 50)])
def test_an_animation_of_few_bytes_and_hours_of_work_is_too_large(side, most, monkeypatch):
    monkeypatch.setattr(decode_image, "_MOST_FRAMES", most)
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    one = b"!\xf9\4\5\1\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"  # of one pixel
    assert len(read(head + one * 20 + b";", 3)) == 3
    assert cause(head + one * 60 + b";") == "media too large"


def test_a_jpeg_of_very_many_passes_is_too_large(tmp_path):
    """A scan of a few bytes goes over all pixels: 260 kB took 18 s of them at 64 megapixels."""
    content = clips.picture(Image.new("L", (256, 256), 128), "JPEG", progressive=True)
    *others, last = content.removesuffix(b"\xff\xd9").split(b"\xff\xda")
    assert read(content, 1).shape == (1, 64, 64, 3)
    path = epath.Path(tmp_path) / "a.jpg"
    path.write_bytes(b"\xff\xda".join([*others, *[last] * 3000]) + b"\xff\xd9")
    assert cause(path) == "media too large"
    with pytest.raises(BadRecordError, match=r"frame 0: 300\d scans") as raised:
        decode_frames([path.read_bytes()], "x", clips.LIMITS)
    assert raised.value.cause == "media too large"
