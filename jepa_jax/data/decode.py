"""Media to frames."""

import numpy as np

from jepa_jax.data.preprocess import resize_and_crop, sample_frames
from jepa_jax.data.records import Limits, Media


def read_frames(
    media: Media,
    count: int,
    *,
    resize: int | None,
    crop: int,
    name: str,
    limits: Limits,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """[count, crop, crop, 3] uint8 frames; with `rng`, of a random part."""
    del name, limits
    frames = media.content
    if rng is not None and len(frames) > count:
        start = rng.integers(len(frames) - count + 1)
        frames = frames[start : start + count]
    return resize_and_crop(sample_frames(frames, count), resize, crop)
