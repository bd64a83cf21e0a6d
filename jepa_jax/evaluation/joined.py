"""Streams with known boundaries: clips of the default data, one after another."""

import dataclasses

import numpy as np

from jepa_jax.evaluation.clips import Clip


@dataclasses.dataclass(frozen=True)
class Annotation:
    """What is seen from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


@dataclasses.dataclass(frozen=True)
class Stream:
    """Frames [N, H, W, C] uint8, `rate` a second, with what is seen in them."""

    frames: np.ndarray
    rate: float
    annotations: list[Annotation]

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.rate


def join(
    frames: np.ndarray, clips: list[Clip], *, period: int, longest: int, per_stream: int, seed: int
) -> list[Stream]:
    """Each clip once, in random order, `per_stream` of them to a stream.

    A clip lasts a second. It plays over and over for 1 to `longest` seconds, drawn from all multiples
    of `period` frames, so that boundaries do not fall on whole seconds.

    Args:
      frames: [B, T, H, W, C] uint8, of `clips`.
      period: in frames; that of the model's tubelets, for it never saw motion that turns inside one.
    """
    rng = np.random.default_rng(seed)
    size = frames.shape[1]
    streams = []
    for group in np.array_split(rng.permutation(len(clips)), max(1, len(clips) // per_stream)):
        pieces, annotations, begin = [], [], 0
        for i in group:
            count = period * int(rng.integers(-(-size // period), longest * size // period + 1))
            pieces.append(frames[i][np.arange(count) % size])
            caption = clips[i].pair("describe")[1]
            annotations.append(Annotation(begin / size, (begin + count) / size, caption))
            begin += count
        streams.append(Stream(np.concatenate(pieces), size, annotations))
    return streams
