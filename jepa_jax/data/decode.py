"""Media to frames: images and animations by Pillow, videos by FFmpeg, whatever they claim to be.

The content decides who reads it, never a file's name. Sizes are read from headers and checked against
the limits before anything of that size is allocated, and no more than a few frames of full size exist
at a time. All that is wrong with media comes out as one BadRecordError with its cause.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from jepa_jax.data.decode_image import image_format, read_image
from jepa_jax.data.decode_video import read_video
from jepa_jax.data.fit import Fit
from jepa_jax.data.preprocess import resize_and_crop, sample_frames, scaled_size
from jepa_jax.data.records import BadRecordError, Limits, Media
from jepa_jax.data.timeline import sample_times


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
    """Frames of media, sampled uniformly in time (`timeline.sample_times`), resized and cropped.

    An image is repeated. Frames are upright (EXIF orientation, display matrix), their pixels square, and
    what is transparent is white (of VP9 FFmpeg does not say what is). Media of kind "image" give the
    first frame of what may be an animation; decoded "frames" have no times: a span of them is refused,
    and one of a still image means nothing.

    A video is sampled over the frames it has, not the ones or the duration it claims. Where it says where
    each lies in the file (MP4) and the file ends before a sampled one, it is truncated; of other videos
    that were cut short, what is left is the video.

    Args:
      count: T, how many frames.
      resize, crop: as in `preprocess.resize_and_crop`.
      name: of the record, for the error.
      rng: takes the frames from a random part of the clip or span.

    Returns:
      [T, crop, crop, 3] uint8 RGB.

    Raises:
      BadRecordError: the media cannot be used.
      ValueError: `resize` is smaller than `crop`.
    """
    scaled_size(crop, crop, resize, crop)  # so that the caller's mistake is not the record's
    fit = Fit(resize, crop, name, limits)
    if isinstance(media.content, np.ndarray):
        return _read_array(media, count, fit, rng)
    with _errors(name), _open(media.content, fit) as (file, size):
        head = file.read(32)
        file.seek(0)
        kind = image_format(head)
        span = {"start": media.start, "end": media.end, "rng": rng}
        if kind == "WEBP" and int.from_bytes(head[4:8], "little") + 8 > size:
            raise fit.error("media truncated", "it is shorter than its header says")
        if kind is not None:
            return read_image(file, kind, count, fit, moving=media.kind != "image", **span)
        if media.kind == "image":
            raise fit.error("media not decodable", "not of an image format that is read here")
        return read_video(file, size, count, fit, **span)


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """Everything that Pillow and FFmpeg raise at bad data becomes the record's error.

    They raise nearly every built-in exception there is: struct.error, SyntaxError, KeyError, MemoryError.
    """
    try:
        yield
    except BadRecordError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecordError("media too large", name, str(error)) from error
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        cut = isinstance(error, EOFError) or "truncated" in words.lower()
        raise BadRecordError("media truncated" if cut else "media not decodable", name, words) from error


@contextlib.contextmanager
def _open(content, fit: Fit) -> Iterator[tuple[BinaryIO, int]]:
    """The encoded bytes and how many they are."""
    try:
        size = len(content) if isinstance(content, bytes) else content.stat().length
        file = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
    except OSError as error:
        raise fit.error("media missing", f"{type(error).__name__}: {error.strerror}") from error
    with file:
        if not size:
            raise fit.error("media empty")
        if size > fit.limits.max_media_bytes:
            raise fit.error("media too large", f"{size} bytes, {fit.limits.max_media_bytes} are allowed")
        yield file, size


def _read_array(media: Media, count: int, fit: Fit, rng: np.random.Generator | None) -> np.ndarray:
    """Of frames that are decoded already."""
    frames = media.content
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} of {frames.shape}, not uint8 of [T, H, W, 3]"
        raise fit.error("media not decodable", found)
    if not len(frames):
        raise fit.error("no frames")
    if media.start is not None or media.end is not None:
        raise fit.error("span outside the media", "decoded frames have no times")
    fit.scaled(*frames.shape[1:3])
    if rng is None:
        return resize_and_crop(sample_frames(frames, count), fit.resize, fit.crop)
    places = sample_times(np.arange(len(frames)), len(frames), count, unit=1, name=fit.name, rng=rng)
    return resize_and_crop(frames[places], fit.resize, fit.crop)
