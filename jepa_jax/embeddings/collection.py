"""A collection of videos with random access: what is embedded, and what a search shows of its hits."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jepa_jax.config import Config
from jepa_jax.data import pipeline
from jepa_jax.data.preprocess import resize_and_crop, sample_frames


@dataclasses.dataclass(frozen=True)
class Item:
    """A video: its unique name, frames [T, H, W, C] uint8 as the model takes them, and what else is known,
    plain enough for JSON."""

    name: str
    frames: np.ndarray
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A video that cannot be read, and why."""

    name: str
    cause: str


class Collection(Protocol):
    """Random access to videos."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item | LeftOut: ...


class DatasetCollection:
    """A split of a TFDS dataset of frames."""

    def __init__(self, config: Config, dataset: str, split: str):
        self._data = dataclasses.replace(config.data, dataset=dataset, split=split)
        self._crop = config.model.x_encoder.image_size
        self._source = pipeline.open_source(self._data)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Item | LeftOut:
        record = self._source[index]
        frames = sample_frames(np.asarray(record["frames"]), self._data.frames)
        frames = resize_and_crop(frames, self._data.resize, self._crop)
        texts = [target for _, _, target in pipeline.pairs_of(record)]
        return Item(pipeline.text(record["id"]), frames, {"texts": texts})


def read_ahead(collection: Collection, rows: Sequence[int], threads: int) -> Iterator[Item | LeftOut]:
    """The items at some rows in their order, read by threads a little ahead."""
    dataset = grain.MapDataset.source(_Rows(collection, rows))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    return iter(dataset.to_iter_dataset(options))


class _Rows(grain.sources.RandomAccessDataSource):
    def __init__(self, collection: Collection, rows: Sequence[int]):
        self._collection = collection
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item | LeftOut:
        return self._collection[int(self._rows[index])]
