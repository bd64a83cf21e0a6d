"""A sliding window over frames, and its embedding S^_Y."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from jepa_jax.config import Config
from jepa_jax.data.preprocess import resize_and_crop
from jepa_jax.streaming.frames import Frame, NoVideoError, at_rate, check_positive, check_rate


class Sees(Protocol):
    """What watching needs of a model; `inference.Model` is one."""

    config: Config

    def embed_video(self, frames: np.ndarray, query: str | list[str]) -> np.ndarray:
        """[B, T, H, W, C] uint8 and a query -> S^_Y, [B, E] unit vectors."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive frames [T, H, W, C] uint8 from `start` to `end`, in seconds."""

    start: float
    end: float
    frames: np.ndarray


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A window's embedding [E], and the seconds that it and those of its batch took."""

    start: float
    end: float
    embedding: np.ndarray
    latency: float

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def slide(frames: Iterable[Frame], size: int, step: int, rate: float) -> Iterator[Window]:
    """A window of `size` frames every `step` frames; frames are `rate` a second and of one shape.

    Raises:
      NoVideoError: there are fewer frames than one window takes.
    """
    held: collections.deque[Frame] = collections.deque(maxlen=size)
    seen = 0
    for frame in frames:
        held.append(frame)
        seen += 1
        if seen >= size and (seen - size) % step == 0:
            pixels = np.stack([f.pixels for f in held])
            yield Window(held[0].seconds, held[-1].seconds + 1 / rate, pixels)
    if seen < size:
        raise NoVideoError(
            f"the video is too short: it gives {seen} frame{'s' * (seen != 1)} at {rate:g} a second, and a "
            f"window takes {size}"
            + ("; with a shorter window frames are taken more often" if seen > 1 else "")
        )


def embed(windows: Iterable[Window], model: Sees, query: str, batch: int = 1) -> Iterator[Embedded]:
    """S^_Y of each window under the query; `batch` windows at a time, 1 for what is live.

    Where the windows end in an error, those that came before it are embedded first.
    """
    windows = iter(windows)
    failure = None
    while failure is None:
        some: list[Window] = []
        try:
            some.extend(itertools.islice(windows, batch))  # what was taken before an error stays
        except Exception as error:
            failure = error
        if some:
            begin = time.perf_counter()
            embeddings = model.embed_video(np.stack([w.frames for w in some]), query)
            latency = time.perf_counter() - begin
            for window, embedding in zip(some, embeddings, strict=True):
                yield Embedded(window.start, window.end, embedding, latency)
        elif failure is None:
            return
    raise failure


def look(
    model: Sees,
    frames: Iterable[Frame],
    query: str,
    *,
    window: float,
    step: float | None = None,
    size: int | None = None,
    batch: int = 1,
) -> tuple[Iterator[Embedded], int]:
    """S^_Y of a stream of frames of any size and rate.

    Args:
      window: what one look takes in, in seconds.
      step: from look to look, in seconds, rounded to whole frames of a window; half a window where nothing
        is said.
      size: frames of a window; as in training where nothing is said.
      batch: as of `embed`.

    Returns:
      The windows, and after how many of them none of the frames is the same, wherever in one a change may
      be: `renewal` of `OnlineDecoder`.

    Raises:
      ValueError: a window or a step that is not above 0, or more than 1,000 frames a second.
    """
    check_positive("window", window)
    if step is not None:
        check_positive("step", step)
    data, crop = model.config.data, model.config.model.x_encoder.image_size
    size = data.frames if size is None else size
    check_rate(size, window)
    rate = size / window
    stride = max(1, round((window / 2 if step is None else step) * rate))
    prepared = (
        dataclasses.replace(frame, pixels=resize_and_crop(frame.pixels[None], data.resize, crop)[0])
        for frame in at_rate(frames, rate)
    )
    # Windows that share no frames may each hold a change: only the next one is free of what was before.
    renewal = max(-(-size // stride), min(size, 2))
    return embed(slide(prepared, size, stride, rate), model, query, batch), renewal
