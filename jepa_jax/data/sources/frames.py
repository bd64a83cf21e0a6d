"""Frames that a record holds decoded, or as an encoded image each."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jepa_jax.data.decode_image import image_format, open_image, to_rgb
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
    """Encoded images of one size to [T, H, W, 3] uint8, as `decode.read_frames` reads each alone.

    Raises:
      BadRecordError: there are none, one is no image, they differ in size or are too large.
    """
    if not images:
        raise BadRecordError("no frames", name)
    frames = None
    for i, content in enumerate(images):
        try:
            kind = image_format(content[:32])
            if kind is None:
                raise ValueError("not of an image format that is read here")
            with open_image(io.BytesIO(content), kind, limits) as image:
                # Before anything of this size is made.
                _check_room(len(images), image.height, image.width, name, limits)
                frame = np.asarray(to_rgb(image))
            frames = np.empty((len(images), *frame.shape), np.uint8) if frames is None else frames
            if frame.shape != frames.shape[1:]:
                raise ValueError("of another size")
            frames[i] = frame
        except BadRecordError:
            raise
        except Image.DecompressionBombError as error:
            raise BadRecordError("media too large", name, f"frame {i}: {error}") from error
        except Exception as error:  # Pillow raises nearly any
            raise BadRecordError("media not decodable", name, f"frame {i}: {error}") from error
    return frames


def _check_room(count: int, height: int, width: int, name: str, limits: Limits) -> None:
    """Raise BadRecordError where frames take more than the limits allow."""
    size = count * height * width * 3
    if height * width > limits.max_pixels or size > limits.max_media_bytes:
        raise BadRecordError("media too large", name, f"{count} frames of {height} x {width}")
