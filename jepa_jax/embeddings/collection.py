"""A collection of videos with random access: what is embedded, and what a search shows of its hits."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jepa_jax.config import Config, DatasetConfig
from jepa_jax.data.decode import read_frames
from jepa_jax.data.features import identity_of
from jepa_jax.data.records import BadRecordError, TextOptional
from jepa_jax.data.sources import open_source


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


def _left_out(error: BadRecordError) -> LeftOut:
    return LeftOut(error.name, f"{error.cause} ({error.detail})" if error.detail else error.cause)


class Collection(Protocol):
    """Random access to videos; `identity` is another where they are others, and `skipped` what the source
    left out when it was opened."""

    identity: str
    skipped: Sequence[LeftOut]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item | LeftOut: ...


class DatasetCollection:
    """A dataset's split, from whatever source; videos need no texts."""

    def __init__(self, config: Config, dataset: DatasetConfig):
        self._data = config.data
        self._crop = config.model.x_encoder.image_size
        self._limits = TextOptional.of(config.data)
        self._source = open_source(dataset, self._limits)
        self.identity = identity_of(self._source)
        self.skipped = [_left_out(error) for error in self._source.skipped]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Item | LeftOut:
        try:
            record = self._source[index]
            fit = {"resize": self._data.resize, "crop": self._crop, "name": record.name}
            frames = read_frames(record.media, self._data.frames, limits=self._limits, **fit)
        except BadRecordError as error:
            return _left_out(error)
        texts = [target for pair in record.pairs for target in pair.targets]
        return Item(record.name, frames, {**record.metadata, **({"texts": texts} if texts else {})})


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
