"""Clips and pictures whose frames carry their number, so that which frame is which is beyond doubt."""

import contextlib
import io
import os
import pathlib
import tempfile
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from jepa_jax.data.records import Limits

HEIGHT, WIDTH = 64, 96
BLOCK = 16  # pixels of a bit, 4 x 4 of them in the middle of a frame
LIMITS = Limits(max_pixels=2**20, max_media_bytes=2**24, max_text_characters=99)


def numbered(number: int, width: int = WIDTH) -> np.ndarray:
    """A frame with its number in bits, light and dark: [HEIGHT, width, 3] uint8."""
    bits = (number >> np.arange(16)).reshape(4, 4) & 1
    middle = np.kron(bits, np.ones((BLOCK, BLOCK), int)) * 160 + 48
    side = (WIDTH - HEIGHT) // 2
    frame = np.pad(middle, ((0, 0), (side, side)), constant_values=100)
    frame = frame[:, :: WIDTH // width]
    return np.repeat(frame[..., None], 3, -1).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """What is written in [T, HEIGHT, HEIGHT, 3] frames."""
    centres = frames[:, BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, 1].reshape(len(frames), 16)
    return ((centres > 128) << np.arange(16)).sum(1).tolist()


@contextlib.contextmanager
def scheduled_as_before():
    """SVT-AV1's encoder makes a superuser's process a real-time one. What it starts later would be too, and
    where such processes wait for one another by spinning, nothing else ever runs."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def clip(
    count: int = 53,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: int | Fraction = 25,
    times: list[int] | None = None,
    width: int = WIDTH,
    frames: list[av.VideoFrame] | None = None,
    matrix: tuple[int, ...] | None = None,
    aspect: int = 1,
    container_options: dict | None = None,
    **context,
) -> bytes:
    """A video: several groups of frames, with B-frames where the codec has them.

    Args:
      times: when each frame is shown, in 1/1000 s; evenly by `rate` without.
      frames: in place of numbered ones.
      matrix: the display matrix.
      context: attributes of the codec's context.
    """
    with (
        scheduled_as_before(),
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, options=container_options or {}) as output,
    ):
        options = {"g": "11", "bf": "3", "x265-params": "log-level=none"}
        if not codec.startswith(("libx26", "mpeg")):
            options = {"g": "11"}
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        stream.codec_context.thread_count = 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for i in range(count):
            frame = frames[i] if frames else av.VideoFrame.from_ndarray(numbered(i, width))
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        output.close()
        return pathlib.Path(file.name).read_bytes()


def sound() -> bytes:
    """An MP4 of sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        for i in range(3):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def picture(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    """An encoded image."""
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def animation(kind: str, count: int = 13, duration=40) -> bytes:
    """A numbered animation, without loss; durations are in milliseconds."""
    first, *rest = [Image.fromarray(numbered(i)) for i in range(count)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return picture(first, kind, save_all=True, append_images=rest, duration=duration, **options)


def full_decode(content: bytes) -> list[av.VideoFrame]:
    """All frames, by the shortest loop there is."""
    with av.open(io.BytesIO(content)) as container:
        return list(container.decode(video=0))
