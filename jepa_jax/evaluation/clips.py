"""Clips to evaluate on, and a model seen through their visual tokens."""

import dataclasses

import numpy as np

from jepa_jax.config import Config
from jepa_jax.data import pipeline
from jepa_jax.data.preprocess import resize_and_crop, sample_frames
from jepa_jax.inference import Model


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip's labels: `thing`, `motion`, `second` ("" where there is none) and its pairs."""

    thing: str
    motion: str
    second: str
    pairs: list[tuple[str, str, str]]

    def pair(self, kind: str) -> tuple[str, str]:
        """Query and target of the first pair of a kind."""
        return next((query, target) for k, query, target in self.pairs if k == kind)


def load_clips(config: Config, split: str, count: int) -> tuple[np.ndarray, list[Clip]]:
    """At most `count` clips of a split, spread evenly over it.

    Returns:
      Frames [B, T, H, W, C] uint8 and the labels of each.
    """
    source = pipeline.open_source(config.data, split)
    index = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    frames, clips = [], []
    for i in index:
        record = source[int(i)]
        sampled = sample_frames(record["frames"], config.data.frames)
        crop = config.model.x_encoder.image_size
        frames.append(resize_and_crop(sampled, config.data.resize, crop))
        labels = [pipeline.text(record[name]) for name in ("thing", "motion", "second")]
        clips.append(Clip(*labels, pairs=pipeline.pairs_of(record)))
    return np.stack(frames), clips


def shuffle_in_time(frames: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same frames in a random order, drawn for each clip: the control that must lose the motion
    and keep the things. [B, T, ...] -> [B, T, ...]."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random(frames.shape[:2]), axis=1)
    return np.take_along_axis(frames, order.reshape(*order.shape, 1, 1, 1), axis=1)


class Subject:
    """A model that has watched the clips once and can be asked about them many times."""

    def __init__(self, model: Model, frames: np.ndarray):
        self._visual = model.encode_video(frames)
        self._model = model
        self.embed_text = model.embed_text
        self.decode = model.decode

    def answer(self, queries: list[str], index=slice(None)) -> np.ndarray:
        """S^_Y of one query for each of the clips at `index`: [B, E]."""
        return self._model.predict(self._visual[index], queries)
