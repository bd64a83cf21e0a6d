"""Any TFDS dataset, by name or prepared folder, read without TensorFlow."""

import copy
import dataclasses
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from google.protobuf.message import DecodeError

from jepa_jax.config import DatasetConfig, FieldMap
from jepa_jax.data.emoji_motion import builder as _registers_the_default_dataset  # noqa: F401
from jepa_jax.data.records import BadRecordError, Limits, Media, Pair, Record
from jepa_jax.data.sources import tfds_description as description
from jepa_jax.data.sources.fields import make_pairs, span_of
from jepa_jax.data.sources.files import check_size, sizes_of
from jepa_jax.data.sources.frames import check_frames, decode_frames
from jepa_jax.data.sources.selection import sample_of
from jepa_jax.data.sources.tfds_features import find_features, leaves_of, view
from jepa_jax.errors import first_line
from jepa_jax.places import is_local

INFO = "dataset_info.json"


def builder_by_name(dataset: DatasetConfig) -> tfds.core.DatasetBuilder:
    """The builder of a dataset that TFDS knows, built first where it is not there yet.

    Raises:
      ValueError: TFDS knows no such dataset, builds it only with TensorFlow, or would have to in a bucket.
    """
    # What was prepared under this name TFDS reads where it knows no code of it.
    home = epath.Path(dataset.data_dir or "~/tensorflow_datasets").expanduser()
    home /= re.split("[/:]", dataset.dataset)[0]
    for folders in ("*", "*/*"):  # versions, or configurations and their versions
        for file in home.glob(f"{folders}/{description.FEATURES}"):
            description.check_classes(file)
    try:
        builder = tfds.builder(dataset.dataset, data_dir=dataset.data_dir, file_format="array_record")
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()  # it would write a line a second into a log file
        if not is_local(builder.data_dir) and not builder.is_prepared():
            raise ValueError(
                f"data.dataset={dataset.dataset!r} is not in {dataset.data_dir}, and ArrayRecord files can "
                "be built on a disk alone: start once with a data.data_dir there, and copy what is in it"
            )
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"data.dataset={dataset.dataset!r}: no such dataset in TFDS (without TensorFlow it does not "
            "know those that need it)"
        ) from error
    except AssertionError as error:  # files that have to be fetched by hand are not there
        said = " ".join(str(error).split())
        raise ValueError(f"data.dataset={dataset.dataset!r}: TFDS cannot build it: {said}") from error
    except ModuleNotFoundError as error:
        # TFDS raises it again, with more words and no name.
        if "tensorflow" not in (error.name, getattr(error.__cause__, "name", None)):
            raise
        raise ValueError(
            f"data.dataset={dataset.dataset!r}: TFDS needs TensorFlow to build it: do that elsewhere, "
            'with file_format="array_record" and give its folder as path'
        ) from error
    return builder


def builder_of_folder(folder: epath.Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared folder, the one with dataset_info.json in it.

    Raises:
      ValueError: its description cannot be read.
    """
    try:
        description.check_classes(folder / description.FEATURES)
        features = json.loads((folder / description.FEATURES).read_text())
        as_images = description.videos_as_images(features)
        if as_images == features:
            return tfds.builder_from_directory(folder)
        # TFDS makes a Video feature only with TensorFlow. On disk it is the same as a sequence of images.
        with tempfile.TemporaryDirectory() as copy:
            for path in folder.iterdir():
                if path.suffix in (".json", ".txt"):
                    pathlib.Path(copy, path.name).write_bytes(path.read_bytes())
            pathlib.Path(copy, description.FEATURES).write_text(json.dumps(as_images))
            return tfds.builder_from_directory(copy)
    except Exception as error:  # TFDS raises whatever a damaged description leads it to
        raise ValueError(f"{folder}: TFDS cannot read what describes it: {first_line(error)}") from error


def plain(value: Any) -> Any:
    """Arrays and NumPy's numbers as lists and Python's."""
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(element) for element in value]
    return value.item() if isinstance(value, np.generic) else value


def names_of(value: Any, feature: tfds.features.ClassLabel) -> Any:
    """Labels as words: "ice_cream" is "ice cream". None for a number that stands for no label."""
    if isinstance(value, list):
        return [names_of(element, feature) for element in value]
    if value is None or not 0 <= value < feature.num_classes:
        return None
    return feature.int2str(value).replace("_", " ")


def for_json(value: Any) -> Any:
    """A scalar, bytes as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class TfdsSource:
    """Records of a split.

    Raises:
      ValueError: there is no such split or field, or the files are not ArrayRecord.
    """

    skipped: tuple[BadRecordError, ...] = ()

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        fields: FieldMap,
        limits: Limits,
        label: str,
        folder: epath.Path | None = None,
    ):
        info = builder.info
        self._records = open_records(builder, split, label, folder)
        self._limits, self._name = limits, f"{info.full_name} {split}"
        if not isinstance(info.features, tfds.features.FeaturesDict):
            raise ValueError(f"{label}: its records are no dictionaries of features: {info.features}")
        self._leaves = {"/".join(x.keys): x for x in leaves_of(info.features)}
        self._fields = find_features(fields, self._leaves, label, limits)
        used = {path for path in dataclasses.asdict(self._fields).values() if path}
        # Whatever else is short: texts, labels and numbers, one a record.
        self._others = [p for p, x in self._leaves.items() if x.is_scalar and p not in used]
        keys_of = lambda paths: {self._leaves[path].keys for path in paths}
        self._view = view(info.features, keys_of([*used, *self._others]), limits.max_media_bytes)
        self._text_view = view(info.features, keys_of(used - {self._fields.media}), limits.max_media_bytes)
        size = f"{len(self)} records of {int(info.dataset_size)} bytes"
        self.identity = f"{self._name}: {size} {sample_of(self)}, {self._fields}"

    def __getstate__(self):
        # Also for `copy`: a copy opens files of its own.
        return self.__dict__ | {"_records": copy.copy(self._records)}

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._name} {index}"

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        example = self._read(index, self._view)
        values = [self._value(example, path) for path in (self._fields.start, self._fields.end)]
        start, end = span_of(*values, name)
        media = self._media(self._at(example, self._fields.media), name)
        return Record(
            name=name,
            media=dataclasses.replace(media, start=start, end=end),
            pairs=self._pairs(example, name),
            metadata={path: for_json(self._value(example, path)) for path in self._others},
        )

    def pairs(self, index: int) -> tuple[Pair, ...]:
        return self._pairs(self._read(index, self._text_view), self.name(index))

    def _read(self, index: int, features: tfds.features.FeaturesDict) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        name = self.name(index)
        try:
            return features.deserialize_example_np(self._records[index])
        except (RuntimeError, DecodeError) as error:
            raise BadRecordError("archive damaged", name, str(error)) from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadRecordError("line not readable", name, str(error)) from error

    def _at(self, example: Any, path: str) -> Any:
        """A field of an example, as TFDS has it; None where it is missing."""
        for key in self._leaves[path].keys:
            example = None if example is None else example[key]
        return example

    def _value(self, example: Any, path: str | None) -> Any:
        """A field in Python's own types, labels by their names."""
        if path is None:
            return None
        value, feature = plain(self._at(example, path)), self._leaves[path].feature
        return names_of(value, feature) if self._leaves[path].is_label else value

    def _pairs(self, example: Mapping[str, Any], name: str) -> tuple[Pair, ...]:
        paths = (self._fields.targets, self._fields.query, self._fields.kind, self._fields.weight)
        return make_pairs(*(self._value(example, path) for path in paths), name, self._limits)

    def _media(self, value: Any, name: str) -> Media:
        if value is None:
            raise BadRecordError("media missing", name)
        if isinstance(value, bytes):
            check_size(len(value), name, self._limits)
            return Media(content=value, kind="image" if self._leaves[self._fields.media].is_image else "auto")
        if self._leaves[self._fields.media].is_image:
            return Media(content=decode_frames(list(value), name, self._limits), kind="frames")
        return Media(content=check_frames(value, name, self._limits), kind="frames")


def open_records(
    builder: tfds.core.DatasetBuilder, split: str, label: str, folder: epath.Path | None = None
) -> ArrayRecordDataSource:
    """The serialised examples of a split.

    Args:
      folder: where the files are, if not where the builder has its own.

    Raises:
      ValueError: there is no such split, it is empty, or the files are not ArrayRecord.
    """
    info = builder.info
    if info.file_format is None or info.file_format.value != "array_record":
        raise ValueError(
            f"{label}: its files are {info.file_format and info.file_format.value}, which has no random "
            'access: prepare it with file_format="array_record"'
        )
    try:
        instructions = info.splits[split].file_instructions
    except (KeyError, ValueError) as error:
        known = ", ".join(info.splits)
        raise ValueError(f"{label}: no such split: it has {known}") from error
    if not instructions:
        raise ValueError(f"{label}: it has no records")
    folder = epath.Path(builder.data_dir) if folder is None else folder
    paths = [folder / epath.Path(i.filename).name for i in instructions]
    if is_local(folder):  # elsewhere every size is a request
        claimed, there = sum(i.take for i in instructions), sum(size or 0 for size in sizes_of(paths))
        if claimed > there:
            raise ValueError(f"{label}: {INFO} says {claimed} records, and its files have {there} bytes")
    return ArrayRecordDataSource(
        [
            dataclasses.replace(i, filename=os.fspath(path))
            for i, path in zip(instructions, paths, strict=True)
        ]
    )
