"""Frames of a benchmark's media, as the model takes them."""

import pathlib

import numpy as np
from etils import epath

from jepa_jax.config import Config
from jepa_jax.data.decode import read_frames
from jepa_jax.data.decode_image import image_format
from jepa_jax.data.records import Limits, Media
from jepa_jax.evaluation.benchmark import LoadFrames

# Formats whose files are one image; the others may be animations.
_STILL = ("JPEG", "PNG", "BMP", "TIFF", "PPM", "JPEG2000")


def loader(config: Config) -> LoadFrames:
    """A function (file or bytes, start, end) -> [T, H, W, C] uint8 for a run's model: `data.frames`
    frames of a video's span, as training takes them; one of an image, which fills one tubelet.

    It raises BadRecordError, a ValueError, or OSError where the media cannot be read.
    """
    limits = Limits.of(config.data)
    size = {"resize": config.data.resize, "crop": config.model.x_encoder.image_size}

    def load(media: pathlib.Path | bytes, start: float | None, end: float | None) -> np.ndarray:
        if isinstance(media, bytes):
            head, content, name = media[:32], media, "bytes"
        else:
            with media.open("rb") as file:
                head = file.read(32)
            content, name = epath.Path(media), media.name
        still = image_format(head) in _STILL
        asked = Media(content=content, kind="image" if still else "auto", start=start, end=end)
        count = 1 if still else config.data.frames
        return read_frames(asked, count, **size, name=name, limits=limits)

    return load
