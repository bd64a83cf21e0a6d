"""Frames of a benchmark's media, as the model takes them."""

import io
import pathlib

import numpy as np
from PIL import Image, ImageSequence

from jepa_jax.config import Config
from jepa_jax.data.preprocess import resize_and_crop, sample_frames
from jepa_jax.evaluation.benchmark import LoadFrames

# Decoded frames of one animation are held at once.
MAX_FRAMES = 4096
# Of a frame that states none.
DEFAULT_MILLISECONDS = 100


def _decode(image: Image.Image, start: float | None, end: float | None) -> np.ndarray:
    if getattr(image, "n_frames", 1) > MAX_FRAMES:
        raise ValueError(f"{image.n_frames} frames; at most {MAX_FRAMES} are read")
    frames, time = [], 0.0
    for frame in ImageSequence.Iterator(image):
        # Decoded first: of a WebP frame the duration is known only then.
        pixels = np.asarray(frame.convert("RGB"))
        length = (frame.info.get("duration") or DEFAULT_MILLISECONDS) / 1000
        if (start is None or time + length > start) and (end is None or time < end):
            frames.append(pixels)
        time += length
    if not frames:
        raise ValueError(f"span outside the media: {start} to {end} of {time:.2f} s")
    return np.stack(frames)


def loader(config: Config) -> LoadFrames:
    """A function (file or bytes, start, end) -> [T, H, W, C] uint8 for a run's model: `data.frames`
    frames of a video's span, one of an image. It opens what Pillow does: images and animations.

    It raises ValueError or OSError where the media cannot be read.
    """

    def load(media: pathlib.Path | bytes, start: float | None, end: float | None) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(media) if isinstance(media, bytes) else media) as image:
                frames = _decode(image, start, end)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
        if len(frames) > 1:
            frames = sample_frames(frames, config.data.frames)
        return resize_and_crop(frames, config.data.resize, config.model.x_encoder.image_size)

    return load
