"""How `python -m jepa_jax.data.build` stores records: a TFDS dataset and, beside it, the texts alone.

Everything here is written and read without TensorFlow, for which TFDS cannot store lists of lists: a pair
with several targets is several rows of `pairs` with the same number.
"""

import copy
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from jepa_jax.data.records import Media, Pair, Record

# The folder of the texts, in the dataset's own. A file there is called as the shard whose texts it holds.
TEXTS = "texts"


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """What a stored record consists of.

    `media` are the bytes of a file or, where `kind` is "frames", of an array of `frames_shape`. `span` is
    the start and end in seconds, NaN for none: 8 bytes each, which `tf.train.Example` has only as
    bytes. The lists in `pairs` are as long as there are targets: `pair` is the place of a target's pair
    among the record's. `metadata` is JSON.
    """
    text = tfds.features.Tensor(shape=(), dtype=np.str_)
    texts = tfds.features.Tensor(shape=(None,), dtype=np.str_)
    return tfds.features.FeaturesDict(
        {
            "name": text,
            "kind": text,
            "media": tfds.features.Tensor(shape=(), dtype=np.bytes_),
            "frames_shape": tfds.features.Tensor(shape=(4,), dtype=np.int64),
            "span": tfds.features.Tensor(shape=(2,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES),
            "pairs": {
                "pair": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                "query": texts,
                "target": texts,
                "kind": texts,
                "weight": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            },
            "metadata": text,
        }
    )


def is_built(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether a dataset was written by `python -m jepa_jax.data.build`."""
    found = builder.info.features
    return found is not None and found.to_json() == features().to_json()


@functools.cache
def _serializer() -> tfds.core.ExampleSerializer:
    return tfds.core.ExampleSerializer(features().get_serialized_info())


def serialize(record: Record) -> bytes:
    """A record as it stands in a file: the same bytes every time, which `features().serialize_example`
    does not promise.

    Raises:
      ValueError: its media are a path, not what is there.
    """
    example = features().encode_example(to_example(record))
    return _serializer().get_tf_example(example).SerializeToString(deterministic=True)


def to_example(record: Record) -> dict[str, Any]:
    """A record as `features().encode_example` takes it. Weights of pairs are rounded to float32.

    Raises:
      ValueError: its media are a path, not what is there.
    """
    content, shape = record.media.content, (0, 0, 0, 0)
    if isinstance(content, np.ndarray):
        content, shape = np.ascontiguousarray(content, np.uint8).tobytes(), content.shape
    elif not isinstance(content, bytes):
        raise ValueError(f"{record.name}: the media are still at {content}: only their bytes can be stored")
    rows = [(i, pair, target) for i, pair in enumerate(record.pairs) for target in pair.targets]
    span = [math.nan if second is None else second for second in (record.media.start, record.media.end)]
    return {
        "name": record.name,
        "kind": record.media.kind,
        "media": content,
        "frames_shape": np.array(shape, np.int64),
        "span": np.array(span, np.float64),
        "pairs": {
            "pair": np.array([i for i, _, _ in rows], np.int64),
            # Arrays of NumPy's own strings would lose NULs at their ends.
            "query": np.array([pair.query for _, pair, _ in rows], object),
            "target": np.array([target for _, _, target in rows], object),
            "kind": np.array([pair.kind for _, pair, _ in rows], object),
            "weight": np.array([pair.weight for _, pair, _ in rows], np.float32),
        },
        "metadata": json.dumps(dict(record.metadata), sort_keys=True),
    }


def to_record(example: Mapping[str, Any]) -> Record:
    """The record of a stored example, as `tfds.data_source` gives it.

    Raises:
      ValueError: it is none that `to_example` made.
    """
    name, kind = example["name"].decode(), example["kind"].decode()
    content, shape = example["media"], tuple(int(n) for n in example["frames_shape"])
    if kind == "frames":
        if min(shape) < 0 or math.prod(shape) != len(content):
            raise ValueError(f"{name}: {len(content)} bytes are no frames of shape {shape}")
        content = np.frombuffer(content, np.uint8).reshape(shape)
    start, end = (None if math.isnan(second) else float(second) for second in example["span"])
    return Record(
        name=name,
        media=Media(content=content, kind=kind, start=start, end=end),
        pairs=_pairs(example["pairs"]),
        metadata=json.loads(example["metadata"]),
    )


def _pairs(rows: Mapping[str, Sequence]) -> tuple[Pair, ...]:
    pairs: dict[int, Pair] = {}
    fields = (rows[field] for field in ("pair", "query", "target", "kind", "weight"))
    for i, query, target, kind, weight in zip(*fields, strict=True):
        pair = pairs.get(i)
        if pair is None:
            pair = Pair(query=query.decode(), targets=(), kind=kind.decode(), weight=float(weight))
        pairs[i] = dataclasses.replace(pair, targets=(*pair.targets, target.decode()))
    return tuple(pairs.values())


def texts_to_bytes(record: Record) -> bytes:
    """A record's name and pairs, as they stand in the texts."""
    pairs = [(pair.query, pair.targets, pair.kind, float(np.float32(pair.weight))) for pair in record.pairs]
    return json.dumps([record.name, pairs], ensure_ascii=False).encode()


class Texts:
    """Names and pairs of a built dataset's split, read without its media; by pickle, as a `Source`.

    Args:
      builder: of a dataset that `is_built`.
      split: in any form that TFDS knows, such as "train[:10%]".
      folder: where the dataset's files are, if not where the builder has its own.

    Raises:
      ValueError: there is no such split, or the files of the texts are not there.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, folder: epath.Path | None = None):
        folder = epath.Path(builder.data_dir) if folder is None else folder
        files = []
        for part in builder.info.splits[split].file_instructions:
            path = folder / TEXTS / pathlib.PurePath(part.filename).name
            if not path.exists():
                raise ValueError(f"{folder}: the texts {path.name} are missing: build the dataset again")
            files.append(dataclasses.replace(part, filename=str(path)))
        self._records = ArrayRecordDataSource(files)

    def __getstate__(self):
        # Also for `copy`: a copy opens files of its own.
        return self.__dict__ | {"_records": copy.copy(self._records)}

    def __len__(self) -> int:
        return len(self._records)

    def _read(self, index: int) -> tuple[str, list]:
        name, pairs = json.loads(self._records[index])
        return name, pairs

    def name(self, index: int) -> str:
        """The record's name."""
        return self._read(index)[0]

    def pairs(self, index: int) -> tuple[Pair, ...]:
        """The record's pairs."""
        return tuple(
            Pair(query=query, targets=tuple(targets), kind=kind, weight=weight)
            for query, targets, kind, weight in self._read(index)[1]
        )
