"""Frames that a record holds decoded, or as an encoded image each."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jepa_jax.data.records import BadRecordError, Limits


def check_frames(frames: np.ndarray, name: str, limits: Limits) -> np.ndarray:
    """A record's array as frames: [T, H, W, C] or one [H, W, C] uint8, of 1 or 3 channels, to [T, H, W, 3].

    Raises:
      BadRecordError: there are none, or they are too large.
    """
    frames = frames if frames.ndim == 4 else frames[None]
    if not frames.size:
        raise BadRecordError("no frames", name, f"shape {frames.shape}")
    _check_room(*frames.shape[:3], name, limits)
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames


def decode_frames(images: Sequence[bytes], name: str, limits: Limits) -> np.ndarray:
    """Encoded images of one size to [T, H, W, 3] uint8.

    Raises:
      BadRecordError: there are none, one is no image, they differ in size or are too large.
    """
    if not images:
        raise BadRecordError("no frames", name)
    frames = None
    for i, content in enumerate(images):
        try:
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
                if frames is None:
                    # Before anything of this size is made.
                    _check_room(len(images), height, width, name, limits)
                    frames = np.empty((len(images), height, width, 3), np.uint8)
                if (height, width) != frames.shape[1:3]:
                    raise BadRecordError("media not decodable", name, f"frame {i} is of another size")
                frames[i] = np.asarray(image.convert("RGB"))
        except BadRecordError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRecordError("media not decodable", name, f"frame {i}: {error}") from error
    return frames


def _check_room(count: int, height: int, width: int, name: str, limits: Limits) -> None:
    """Raise BadRecordError where frames take more than the limits allow."""
    size = count * height * width * 3
    if height * width > limits.max_pixels or size > limits.max_media_bytes:
        raise BadRecordError("media too large", name, f"{count} frames of {height} x {width}")
