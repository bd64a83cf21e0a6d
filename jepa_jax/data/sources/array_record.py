"""ArrayRecord files of tf.train.Example protos, written without TFDS; read without TensorFlow."""

import copy
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from jepa_jax.config import FieldMap
from jepa_jax.data.records import BadRecordError, Limits, Media, Pair, Record
from jepa_jax.data.sources.fields import MEDIA, TARGETS, find, make_pairs, named, span_of
from jepa_jax.data.sources.files import check_size, digest
from jepa_jax.data.sources.frames import decode_frames
from jepa_jax.data.sources.selection import sample_of, spread

# What the writers of Examples call media, besides `fields.MEDIA`: "image/encoded", "jpg".
ENCODED = ("encoded", "jpg", "jpeg", "png", "mp4")
# So many records are asked for their features, and as many spread over all.
RECORDS_ASKED = 20
THREADS = 16


def _count(path: epath.Path) -> int | BadRecordError:
    """Records in a file, or what is wrong with it."""
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError as error:
        return BadRecordError("archive damaged", path.name, str(error))
    return count


class ArrayRecordSource:
    """Records of files. Fields are the Examples' features by their full names ("image/encoded"). Media are
    the bytes of an image or video, or a list of images, which are its frames.

    Raises:
      ValueError: no file can be read, they hold no Examples, or a field is not there or not to be found.
    """

    def __init__(self, paths: Sequence[epath.Path], fields: FieldMap, limits: Limits, label: str):
        self._limits = limits
        with futures.ThreadPoolExecutor(THREADS) as pool:
            found = list(zip(paths, pool.map(_count, paths), strict=True))
        self.skipped = tuple(count for _, count in found if isinstance(count, BadRecordError))
        whole = [(path, count) for path, count in found if isinstance(count, int) and count]
        if not whole:
            why = f": {self.skipped[0]}" if self.skipped else ""
            raise ValueError(f"{label}: none of its files holds a record{why}")
        # With their counts, so that no file is opened again for it.
        self._records = ArrayRecordDataSource([f"{path}[0:{count}]" for path, count in whole])
        counts = [count for _, count in whole]
        self._names, self._ends = [path.name for path, _ in whole], np.cumsum(counts)
        known = self._ask(label)
        media = named(known, MEDIA + ENCODED)
        self._fields = find(fields, known, media, named(known, TARGETS), label, limits)
        files = [(path.name, count, path.stat().length) for path, count in whole]
        self.identity = f"{len(files)} ArrayRecord files {digest(files)} {sample_of(self)} {self._fields}"

    def _ask(self, label: str) -> list[str]:
        """Names of the features of the first records, and of some spread over all."""
        known: dict[str, None] = {}
        for i in [*range(min(len(self), RECORDS_ASKED)), *spread(len(self), RECORDS_ASKED)]:
            try:
                known |= dict.fromkeys(sorted(self._read(i)))
            except BadRecordError:
                continue  # told again when it is read
        if not known:
            raise ValueError(f"{label}: its records are no tf.train.Example protos")
        return list(known)

    def __getstate__(self):
        # Also for `copy`: a copy opens files of its own.
        return self.__dict__ | {"_records": copy.copy(self._records)}

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._names[file]}:{index + 1 - (self._ends[file - 1] if file else 0)}"

    def __getitem__(self, index: int) -> Record:
        name, row = self.name(index), self._read(index)
        content = row.get(self._fields.media)
        values = [row.get(path) if path else None for path in (self._fields.start, self._fields.end)]
        start, end = span_of(*values, name)
        if isinstance(content, list) and isinstance(content[0], bytes):
            media = Media(content=decode_frames(content, name, self._limits), kind="frames")
        elif isinstance(content, bytes):
            check_size(len(content), name, self._limits)
            media = Media(content=content, start=start, end=end)
        else:
            raise BadRecordError("media missing", name, f"no bytes in {self._fields.media}")
        return Record(name=name, media=media, pairs=self._pairs(row, name))

    def pairs(self, index: int) -> tuple[Pair, ...]:
        return self._pairs(self._read(index), self.name(index))

    def _pairs(self, row: dict[str, Any], name: str) -> tuple[Pair, ...]:
        paths = (self._fields.targets, self._fields.query, self._fields.kind, self._fields.weight)
        return make_pairs(*(row.get(path) for path in paths), name, self._limits)

    def _read(self, index: int) -> dict[str, Any]:
        """A record's features: a value, or a list of several."""
        name = self.name(index)
        try:
            example = tf_example_pb2.Example.FromString(self._records[index])
        except RuntimeError as error:
            raise BadRecordError("archive damaged", name, str(error)) from error
        except DecodeError as error:
            raise BadRecordError("line not readable", name, "no tf.train.Example") from error
        row = {}
        for key, feature in example.features.feature.items():
            kind = feature.WhichOneof("kind")
            values = list(getattr(feature, kind).value) if kind else []
            if values:
                row[key] = values[0] if len(values) == 1 else values
        return row
