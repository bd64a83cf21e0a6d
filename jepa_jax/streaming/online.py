"""Selective decoding of a stream as it comes: a text where the embeddings start to vary, and only there.

(Paper, selective decoding.) Its state is a few embeddings, whatever the stream's length.
"""

import collections
import dataclasses
import numbers

import numpy as np

from jepa_jax.streaming.windows import Embedded


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """When to decode.

    Attributes:
      threshold: variance of the last embeddings (mean squared distance from their mean; unit vectors, so
        between 0 and 1) above which something has changed.
      release: the share of `threshold` below which things are calm again. Until they are, only a variance
        above `threshold / release` is another change, so that noise about the threshold gives one decode,
        not many.
      variance_windows: how many windows the variance is of; None is as many as renew a window, at least 2.
      smoothing: how many windows' embeddings are averaged first.
    """

    threshold: float = 0.05
    release: float = 0.5
    variance_windows: int | None = None
    smoothing: int = 1

    def __post_init__(self):
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} must lie between 0 and 1")
        if not 0 < self.release <= 1:
            raise ValueError(f"release={self.release} must be above 0 and at most 1")
        for name in ("variance_windows", "smoothing"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, numbers.Integral):
                raise ValueError(f"{name}={value!r} must be a whole number")
        if self.variance_windows is not None and self.variance_windows < 2:
            raise ValueError(f"variance_windows={self.variance_windows}: a variance takes at least 2")
        if self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Decode:
    """An embedding worth a text.

    Attributes:
      start: when what it shows began, in seconds.
      middle: of the windows that were averaged.
      embedding: [E], a unit vector.
    """

    start: float
    middle: float
    embedding: np.ndarray


def unit(x: np.ndarray) -> np.ndarray:
    """Rows to length 1: [..., E]."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def variance(embeddings: np.ndarray) -> float:
    """Mean squared distance from their mean: [B, E]."""
    return float(np.square(embeddings - embeddings.mean(axis=0)).sum(axis=1).mean())


class OnlineDecoder:
    """Says of each window whether to decode there.

    A change is noticed while the window still holds frames from before it, and an embedding of both
    sides means neither. So the decode waits until the window has been renewed, but for what came before
    the change in the step that showed it: less than half a window, which matters less than to be late.

    Args:
      config: when to decode.
      renewal: after how many windows none of the frames is the same.

    Attributes:
      novelty: the variance at the last window.
    """

    def __init__(self, config: OnlineConfig, renewal: int):
        self._config = config
        # Windows from the one in which a change is seen to the first that is free of what was before.
        self._patience = renewal - 1 + config.smoothing - 1
        self._variance_windows = config.variance_windows or max(2, renewal)
        self._raw: collections.deque[Embedded] = collections.deque(maxlen=config.smoothing)
        self._smooth: collections.deque[np.ndarray] = collections.deque(maxlen=self._variance_windows)
        self._calm = False
        self._start: float | None = None  # of the change that waits for its decode
        self._waiting = 0
        self._since = 0
        self._newest: float | None = None
        self.novelty = 0.0

    def __call__(self, window: Embedded) -> Decode | None:
        """The decode that this window completes, if any."""
        first = self._newest is None
        self._raw.append(window)
        smooth = unit(np.mean([w.embedding for w in self._raw], axis=0))
        self._smooth.append(smooth)
        self.novelty = variance(np.stack(self._smooth))
        if first:
            # What is there at the beginning is new.
            self._start, self._waiting = window.start, self._config.smoothing - 1
        elif self._start is None:
            self._since += 1
            if self._is_change():
                # It came with the frames that the last window had not seen.
                self._start, self._waiting = self._newest, self._patience
        else:
            self._waiting -= 1
        self._newest = window.end
        if self._start is None or self._waiting > 0:
            return None
        return self._decode(smooth)

    def _is_change(self) -> bool:
        config = self._config
        if self.novelty < config.release * config.threshold:
            self._calm = True
        if self._calm:
            return self.novelty > config.threshold
        # The variance is of windows after the last change alone, and still so high.
        passed = self._since >= self._variance_windows - 1
        return passed and self.novelty > config.threshold / config.release

    def _decode(self, smooth: np.ndarray) -> Decode:
        decode = Decode(self._start, (self._raw[0].start + self._raw[-1].end) / 2, smooth)
        self._start, self._calm, self._since = None, False, 0
        return decode

    def finish(self) -> Decode | None:
        """At the stream's end: the decode of a change that was still waiting for it."""
        if self._start is None:
            return None
        return self._decode(self._smooth[-1])
