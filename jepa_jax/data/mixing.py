"""Which datasets a global batch is made of."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from jepa_jax.config import DatasetConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """A dataset's records of one length bucket.

    Attributes:
      dataset: its number in the mixture.
      index: the records.
      share: of all clips of the run.
    """

    dataset: int
    index: Sequence[int]
    share: float


@dataclasses.dataclass(frozen=True)
class Group:
    """Batches of one shape: clips of so many frames, texts of one bucket.

    Attributes:
      bucket: its number.
      parts: what is mixed in them, record by record.
    """

    frames: int
    bucket: int
    parts: tuple[Part, ...]

    @property
    def share(self) -> float:
        """Of all batches."""
        return sum(part.share for part in self.parts)


def groups(datasets: Sequence[DatasetConfig], assigned: Sequence[np.ndarray | range]) -> list[Group]:
    """All shapes of batches, each with its share.

    A dataset's clips are its weight's share of all, spread over its buckets as its records are.

    Args:
      assigned: of each dataset, the bucket of each record, negative for one left out: [records] int;
        or a range of all records, which are then in the first bucket.
    """
    found: dict[tuple[int, int], list[Part]] = collections.defaultdict(list)
    whole = sum(dataset.weight for dataset in datasets)
    for number, (dataset, of_records) in enumerate(zip(datasets, assigned, strict=True)):
        if isinstance(of_records, range):
            indices = {0: of_records}
        else:
            kept = np.unique(of_records[of_records >= 0]).tolist()
            indices = {bucket: np.flatnonzero(of_records == bucket) for bucket in kept}
        records = sum(map(len, indices.values()))
        for bucket, index in indices.items():
            share = dataset.weight / whole * len(index) / records
            found[dataset.frames, bucket].append(Part(number, index, share))
    return [Group(*shape, tuple(parts)) for shape, parts in sorted(found.items())]
