"""A dataset that `python -m jepa_jax.data.build` wrote."""

import copy
import dataclasses

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError

from jepa_jax.config.types import MOST_WEIGHT
from jepa_jax.data.records import BadRecordError, Limits, Pair, Record
from jepa_jax.data.schema import Texts, features, to_record
from jepa_jax.data.sources.fields import number_of, text_of
from jepa_jax.data.sources.files import check_size
from jepa_jax.data.sources.frames import check_frames
from jepa_jax.data.sources.selection import sample_of
from jepa_jax.data.sources.tfds import open_records


class BuiltSource:
    """Records of a split, under the names that they had where they came from.

    Raises:
      ValueError: there is no such split, or its texts are missing or of other records.
    """

    skipped: tuple[BadRecordError, ...] = ()

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, limits: Limits, label: str, folder: epath.Path
    ):
        info = builder.info
        self._records = open_records(builder, split, label, folder)
        self._texts = Texts(builder, split, folder)
        if len(self._texts) != len(self._records):
            raise ValueError(
                f"{label}: {len(self._texts)} texts for {len(self._records)} records: build the dataset again"
            )
        self._limits, self._place = limits, f"{info.full_name} {split}"
        size = f"{len(self)} records of {int(info.dataset_size)} bytes"
        self.identity = f"{self._place}: {size} {sample_of(self)}"

    def __getstate__(self):
        # Also for `copy`: a copy opens files of its own.
        return self.__dict__ | {"_records": copy.copy(self._records), "_texts": copy.copy(self._texts)}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        try:
            record = to_record(features().deserialize_example_np(self._records[index]))
        except (RuntimeError, DecodeError) as error:
            raise BadRecordError("archive damaged", name, str(error)) from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadRecordError("line not readable", name, str(error)) from error
        media = record.media
        if isinstance(media.content, np.ndarray):
            frames = check_frames(media.content, name, self._limits)
            media = dataclasses.replace(media, content=frames)
        else:
            check_size(len(media.content), name, self._limits)
        return dataclasses.replace(record, media=media, pairs=self._checked(record.pairs, name))

    def pairs(self, index: int) -> tuple[Pair, ...]:
        name = self.name(index)
        try:
            pairs = self._texts.pairs(index)
        except RuntimeError as error:
            raise BadRecordError("archive damaged", name, str(error)) from error
        except (ValueError, TypeError, AttributeError) as error:  # written by others, and otherwise
            raise BadRecordError("line not readable", name, str(error)) from error
        return self._checked(pairs, name)

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            name = self._texts.name(index)
        except (RuntimeError, ValueError, TypeError):  # told when the pairs are read
            name = None
        return name if isinstance(name, str) else f"{self._place} {index}"

    def _checked(self, pairs: tuple[Pair, ...], name: str) -> tuple[Pair, ...]:
        """Pairs within the limits of this run, which need not be those they were built with; and if others
        wrote them, they may be anything."""
        if not pairs:
            raise BadRecordError("text empty", name, "no targets")
        return tuple(self._of_pair(pair, name) for pair in pairs)

    def _of_pair(self, pair: Pair, name: str) -> Pair:
        weight = number_of(pair.weight, "weight", name)
        if weight is None or not 0 <= weight <= MOST_WEIGHT:
            raise BadRecordError("line not readable", name, f"weight is {pair.weight}")
        if not pair.targets:
            raise BadRecordError("text empty", name, "no targets")
        return Pair(
            query=text_of(pair.query, name, self._limits, may_be_empty=True),
            targets=tuple(text_of(target, name, self._limits) for target in pair.targets),
            kind=text_of(pair.kind, name, self._limits, may_be_empty=True),
            weight=weight,
        )
