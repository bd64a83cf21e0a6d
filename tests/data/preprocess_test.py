"""Frames are resized, cropped and sampled as V-JEPA 2 expects them.

The reference is `transformers`' V-JEPA 2 video processor, which needs torchvision. Where there is
none, samples of its output in `preprocess_golden.npz` stand for it; this writes them anew:

    python -m tests.data.preprocess_test
"""

import pathlib

import numpy as np
import pytest
from PIL import Image

from jepa_jax.data.preprocess import resize_and_crop, sample_frames, shift
from jepa_jax.models.vl_jepa import IMAGENET_STD, normalise_frames

GOLDEN = pathlib.Path(__file__).parent / "preprocess_golden.npz"
# The golden samples: rows and columns that include the first and the last.
GRID = (slice(None), slice(None, None, 5), slice(None, None, 17))
# (frames, height, width) for a short side of 292 and a crop of 256.
CLIPS = [
    (1, 256, 256),  # enlarged a little
    (2, 292, 292),  # only cropped
    (1, 292, 401),  # only cropped, an odd number of columns left over
    (1, 403, 292),  # ... of rows
    (1, 292, 293),
    (3, 331, 587),
    (2, 587, 331),
    (1, 720, 1279),
    (1, 291, 293),  # both sides a hair from the right one
    (1, 293, 291),
    (1, 480, 720),  # sizes that a float scale rounds down to the pixel below
    (1, 720, 480),
    (1, 52, 78),
    (2, 47, 329),
    (1, 17, 17),  # enlarged 17 times
    (1, 23, 29),
    (1, 37, 2003),  # extreme aspects
    (1, 2003, 37),
]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def patterned(frames: int, height: int, width: int) -> np.ndarray:
    """Stripes across, stripes down, noise, by arithmetic alone: [T, H, W, 3] uint8.

    Unless the frame is tiny, stripes then climb 28 levels a pixel: a crop off by one shows.
    """
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    short = min(height, width)
    stripes = [np.abs((i * 16 * 510 // short + 40 * t) % 510 - 255) for i in (x, y)]
    hashed = (x * 73_856_093) ^ (y * 19_349_663) ^ (t * 83_492_791)
    hashed = ((hashed ^ (hashed >> 13)) & 0xFFFFFFFF) * 1_274_126_177
    return np.stack([*stripes, (hashed >> 17) & 255], axis=-1).astype(np.uint8)


def reference(frames: np.ndarray, **options) -> np.ndarray:
    """What `transformers`' processor makes of [T, H, W, C] uint8: [T, H', W', C]."""
    pytest.importorskip("torch")
    pytest.importorskip("torchvision", reason="transformers' video processors need torchvision")
    from transformers import VJEPA2VideoProcessor

    processor = VJEPA2VideoProcessor(crop_size=256)
    assert processor.size.shortest_edge == 292
    found = processor(frames, input_data_format="channels_last", return_tensors="pt", **options)
    return found["pixel_values_videos"][0].numpy().transpose(0, 2, 3, 1)


def assert_within_a_level(found: np.ndarray, expected: np.ndarray):
    """No pixel is further off than one level of 255, and hardly any is off at all."""
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_pixels_are_those_of_the_reference(clip):
    frames = patterned(*clip)
    expected = reference(frames)
    levels = reference(frames, do_rescale=False, do_normalize=False)
    assert_within_a_level(resize_and_crop(frames, 292, 256), levels)
    found = np.asarray(normalise_frames(resize_and_crop(frames, 292, 256)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1 / 255 / IMAGENET_STD.min() + 1e-5)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_pixels_are_those_the_reference_once_gave(clip):
    golden = np.load(GOLDEN)["x".join(map(str, clip))]
    frames = patterned(*clip)
    assert_within_a_level(resize_and_crop(frames, 292, 256)[GRID], golden)
    # This would see a crop that is off by one: two pixels more let it be moved.
    wide = resize_and_crop(frames, 292, 258)
    for top, left in ((0, 1), (2, 1), (1, 0), (1, 2)):
        moved = wide[:, top : top + 256, left : left + 256][GRID]
        assert np.abs(moved.astype(int) - golden).mean() > 1


def test_every_level_is_normalised_as_the_reference_does():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(256, 3)
    np.testing.assert_allclose(normalise_frames(levels), np.load(GOLDEN)["normalised"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((331, 587), (146, 258)),
        ((587, 331), (258, 146)),
        ((64, 67), (146, 152)),
        ((293, 1021), (146, 508)),
        ((17, 17), (146, 146)),
        ((26, 78), (146, 438)),
        ((182, 26), (1022, 146)),
    ],
)
def test_short_side_to_resize_then_the_centre(size, resized):
    frames = noise(3, *size, 3)
    cropped = resize_and_crop(frames, 146, 128)
    assert cropped.shape == (3, 128, 128, 3)
    whole = np.asarray(Image.fromarray(frames[1]).resize(resized[::-1], Image.BILINEAR))
    top, left = (resized[0] - 128) // 2, (resized[1] - 128) // 2
    np.testing.assert_array_equal(cropped[1], whole[top : top + 128, left : left + 128])


def test_the_crop_is_centred_and_keeps_the_aspect():
    """A disc in the middle of a wide frame stays a disc in the middle."""
    y, x = np.mgrid[:200, :500]
    disc = ((y - 99.5) ** 2 + (x - 249.5) ** 2 < 60**2).astype(np.uint8)[None, ..., None] * 255
    cropped = resize_and_crop(np.repeat(disc, 3, -1), 100, 90)[0, ..., 0] > 127
    rows, columns = np.nonzero(cropped)
    assert abs(rows.mean() - 44.5) < 1
    assert abs(columns.mean() - 44.5) < 1
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1


def test_frames_of_the_right_size_are_not_touched():
    frames = noise(2, 32, 32, 3)
    np.testing.assert_array_equal(resize_and_crop(frames, None, 32), frames)


def test_a_crop_larger_than_the_resize_is_refused():
    with pytest.raises(ValueError, match=r"data\.resize=100 is smaller than the crop of 128"):
        resize_and_crop(noise(1, 200, 200, 3), 100, 128)


@pytest.mark.parametrize(
    ("frames", "count", "picked"),
    [
        (8, 8, range(8)),
        (16, 4, [2, 6, 10, 14]),
        (10, 3, [1, 5, 8]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 2, [0, 0]),
    ],
)
def test_sampling_is_uniform_over_the_clip(frames, count, picked):
    clip = np.arange(frames)[:, None, None, None]
    assert sample_frames(clip, count).ravel().tolist() == list(picked)


@pytest.mark.parametrize("down", [-6, -2, 0, 1, 6])
@pytest.mark.parametrize("right", [-8, -1, 0, 3, 8])
def test_a_shift_moves_all_frames_and_repeats_their_border(down, right):
    frames = noise(3, 7, 9, 3)
    padded = np.pad(frames, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="edge")
    expected = padded[:, 8 - down : 15 - down, 8 - right : 17 - right]
    np.testing.assert_array_equal(shift(frames, down, right), expected)


@pytest.mark.parametrize("by", [(7, 0), (-7, 0), (0, 9), (0, -9)])
def test_a_shift_leaves_something_of_a_frame(by):
    with pytest.raises(ValueError, match="7 x 9 pixels cannot be moved by"):
        shift(noise(3, 7, 9, 3), *by)


def write_golden():
    uint8 = {"do_rescale": False, "do_normalize": False}
    golden = {"x".join(map(str, clip)): reference(patterned(*clip), **uint8)[GRID] for clip in CLIPS}
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 256, 5, 3))
    normalised = reference(levels.copy(), do_resize=False, do_center_crop=False)
    np.savez_compressed(GOLDEN, normalised=normalised[0, :, 0], **golden)


if __name__ == "__main__":
    write_golden()
