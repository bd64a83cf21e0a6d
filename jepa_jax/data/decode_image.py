"""Images and animations to frames, by Pillow."""

import itertools
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from jepa_jax.data.fit import Fit
from jepa_jax.data.preprocess import resize_and_crop
from jepa_jax.data.records import Limits
from jepa_jax.data.timeline import sample_times

# How files begin, and who reads them then. Only these of Pillow's readers are let at data: some of the
# others start programs.
_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WEBP"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"P5", "PPM"),
    (0, b"P6", "PPM"),
    (0, b"\0\0\0\x0cjP  ", "JPEG2000"),
)
# The further images in files of other formats are pages or previews.
_ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")
# An animation has at most so many frames, and pixels in all as so many of the largest frames: on the way to a
# frame Pillow makes the whole of each before it, and a few kB of GIF can ask for hours of that. So can a JPEG
# whose pixels come in passes, of which each takes a few bytes; encoders make ten.
_MOST_FRAMES, _LARGEST_FRAMES = 2**16, 32
# What browsers make of a frame that is said to be shown for no time, in milliseconds.
_NO_DURATION = 100


def image_format(head: bytes) -> str | None:
    """The image format that begins so, in Pillow's words, or None."""
    return next((kind for at, magic, kind in _MAGIC if head[at:].startswith(magic)), None)


def open_image(file: BinaryIO, kind: str, limits: Limits) -> Image.Image:
    """An image of a format, whose size the caller holds against the limits. Pillow's own limit, which is the
    process's and refuses twice as much, is raised to them.

    Raises:
      Image.DecompressionBombError: a JPEG goes over its pixels again and again.
      Exception: nearly any, from Pillow, if the file is damaged.
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.max_pixels)
    image = Image.open(file, formats=[kind])
    if image.info.get("progressive"):
        scans = _scans(file)
        if scans * image.height * image.width > _LARGEST_FRAMES * limits.max_pixels:
            raise Image.DecompressionBombError(f"{scans} scans of {image.height} x {image.width} pixels")
    return image


def _scans(file: BinaryIO) -> int:
    """In how many passes over its pixels a JPEG is stored; the file is left where it was."""
    place, scans = file.tell(), 0
    file.seek(0)
    while content := file.read(2**20):
        scans += content.count(b"\xff\xda")
    file.seek(place)
    return scans


def read_image(
    file: BinaryIO,
    kind: str,
    count: int,
    fit: Fit,
    *,
    moving: bool,
    start: float | None,
    end: float | None,
    rng: np.random.Generator | None,
) -> np.ndarray:
    """`count` frames of an image or, if `moving`, of an animation: [T, crop, crop, 3] uint8.

    Upright as EXIF has it; what is transparent is white. A span means nothing for a still image.

    Raises:
      BadRecordError: it is too large, or nothing of it is inside the span.
      Exception: nearly any, from Pillow, if the file is damaged.
    """
    with open_image(file, kind, fit.limits) as image:
        fit.scaled(image.height, image.width)
        durations, first = _durations(image, fit) if moving and kind in _ANIMATED else ([0], 0)
        if len(durations) == 1:
            return np.repeat(_frame(image, fit)[None], count, axis=0)
        times = np.cumsum([0, *durations])
        places = sample_times(
            times[:-1],
            times[-1],
            count,
            unit=0.001,
            name=fit.name,
            stop_is_known=True,
            start=start,
            end=end,
            rng=rng,
        )
        frames = {}
        for place in dict.fromkeys(places.tolist()):
            image.seek(first + place)
            frames[place] = _frame(image, fit)
    return np.stack([frames[place] for place in places.tolist()])


def _durations(image: Image.Image, fit: Fit) -> tuple[list[int], int]:
    """Milliseconds that each frame there is, not each that is claimed, is on show, and Pillow's number of the
    first of them; back at that."""
    if not getattr(image, "is_animated", False):
        return [0], 0
    durations: list[int] = []
    pixels = 0
    # A PNG may have an image of its own for those who do not know animations, which comes before them.
    first = int(bool(image.info.get("default_image")))
    for place in itertools.count(first):
        try:
            image.seek(place)
        except EOFError:
            break
        fit.scaled(image.height, image.width)  # a GIF's frame can enlarge it
        pixels += image.height * image.width
        if place >= _MOST_FRAMES or pixels > _LARGEST_FRAMES * fit.limits.max_pixels:
            raise fit.error(
                "media too large", f"over {place} frames of {image.height} x {image.width} pixels"
            )
        if image.format in ("WEBP", "AVIF"):
            image.load()  # only then is the duration known
        durations.append(int(image.info.get("duration", 0)) or _NO_DURATION)
    image.seek(first)
    return durations, first


def to_rgb(image: Image.Image) -> Image.Image:
    """An image's present frame, 8 bits each of red, green and blue, upright as EXIF has it, on white.

    Raises:
      ValueError: its values are of 32 bits.
      Exception: nearly any, from Pillow, if the file is damaged.
    """
    # Pillow has no smaller type for the 16 bits of some formats; what else it has there may be anything.
    is_deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not is_deep:
        raise ValueError("values of 32 bits have no known range")
    image = ImageOps.exif_transpose(image)
    if is_deep:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _frame(image: Image.Image, fit: Fit) -> np.ndarray:
    """The image's present frame: [crop, crop, 3] uint8."""
    return resize_and_crop(np.asarray(to_rgb(image))[None], fit.resize, fit.crop)[0]
