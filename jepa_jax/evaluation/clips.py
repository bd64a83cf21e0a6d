"""Clips to evaluate on, and a model seen through their visual tokens."""

import dataclasses
import logging

import numpy as np

from jepa_jax.config import Config, DatasetConfig
from jepa_jax.data.decode import read_frames
from jepa_jax.data.examples import possible_targets, with_template
from jepa_jax.data.records import BadRecordError, Limits, Source
from jepa_jax.data.sources import open_source
from jepa_jax.inference import Model

logger = logging.getLogger(__name__)
_LABELS = ("thing", "motion", "second")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip's (kind, query, target) triples, and its labels: `thing`, `motion`, `second`, each "" where
    there is none, as all are outside the default data."""

    thing: str
    motion: str
    second: str
    pairs: list[tuple[str, str, str]]

    def pair(self, kind: str) -> tuple[str, str]:
        """Query and target of the first pair of a kind."""
        return next((query, target) for k, query, target in self.pairs if k == kind)


def open_split(config: Config, split: str) -> tuple[DatasetConfig, Source]:
    """A split of what a run is evaluated on.

    Raises:
      ValueError: there is none.
    """
    dataset = dataclasses.replace(config.eval.dataset or config.data.datasets[0], split=split)
    return dataset, open_source(dataset, Limits.of(config.data))


def load_clips(config: Config, split: str, count: int) -> tuple[np.ndarray, list[Clip]]:
    """At most `count` clips of a split, spread evenly over it. Those that cannot be read are left out,
    with a warning. Of several templates and right answers the first is taken.

    Returns:
      Frames [B, T, H, W, C] uint8 and the labels of each.

    Raises:
      ValueError: there is no such split, or nothing in it can be read.
    """
    dataset, source = open_split(config, split)
    limits = Limits.of(config.data)
    index = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    size = {"resize": config.data.resize, "crop": config.model.x_encoder.image_size}
    template = dataset.query_templates[0]
    frames, clips = [], []
    for i in index:
        try:
            record = source[int(i)]
            frames.append(
                read_frames(
                    record.media,
                    dataset.frames or config.data.frames,
                    **size,
                    name=record.name,
                    limits=limits,
                )
            )
        except BadRecordError as error:
            logger.warning("not evaluated on: %s", error)
            continue
        pairs = [
            (pair.kind, with_template(template, pair.query), possible_targets(pair, dataset)[0])
            for pair in record.pairs
        ]
        clips.append(Clip(*(str(record.metadata.get(name, "")) for name in _LABELS), pairs=pairs))
    if not clips:
        raise ValueError(f"{dataset.label} has no record that can be evaluated on")
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
        """S^_Y of one query for each of the clips at `index`: [B, E]. Long ones are cut as in training."""
        return self._model.predict(self._visual[index], queries, cut=True)
