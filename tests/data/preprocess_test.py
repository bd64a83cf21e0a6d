"""Frames are resized, cropped and sampled as V-JEPA 2 expects them."""

import numpy as np
import pytest
from PIL import Image

from jepa_jax.data.preprocess import resize_and_crop, sample_frames


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(331, 587), (587, 331), (64, 67), (293, 1021), (17, 17)])
def test_short_side_to_resize_then_the_centre(height, width):
    frames = noise(3, height, width, 3)
    cropped = resize_and_crop(frames, 146, 128)
    assert cropped.shape == (3, 128, 128, 3)
    scale = 146 / min(height, width)
    size = (max(146, int(width * scale)), max(146, int(height * scale)))
    whole = np.asarray(Image.fromarray(frames[1]).resize(size, Image.BILINEAR))
    top, left = (size[1] - 128) // 2, (size[0] - 128) // 2
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
