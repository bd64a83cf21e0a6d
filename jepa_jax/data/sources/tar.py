"""Tar shards of samples: KEY.mp4, KEY.txt and KEY.json side by side, as WebDataset has them and
img2dataset and video2dataset write them."""

import dataclasses
import json
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath

from jepa_jax.config import FieldMap
from jepa_jax.data.records import BadRecordError, Limits, Media, Pair, Record
from jepa_jax.data.sources.fields import (
    TARGETS,
    find,
    metadata_of,
    named,
    pairs_of_row,
    paths_of,
    span_of,
    value_at,
)
from jepa_jax.data.sources.files import IMAGES, VIDEOS, check_size, digest, read_piece
from jepa_jax.data.sources.tar_index import tar_index

# Of a sample's media the first of these: a video goes before its thumbnail.
MEDIA = VIDEOS + IMAGES
# So many samples are asked for the fields of their JSON.
SAMPLES_ASKED = 20
MAX_JSON_BYTES = 2**24
THREADS = 16


class TarSource:
    """Samples of shards, in the shards' order. A field is an extension ("txt") or a path in the JSON
    ("caption"). Text is KEY.txt where samples have it, else found in the JSON by its name.

    Raises:
      ValueError: there is no sample with media and text, a field does not exist, or a shard is compressed.
    """

    def __init__(self, paths: Sequence[epath.Path], fields: FieldMap, limits: Limits, label: str):
        self._paths, self._limits = list(paths), limits
        with futures.ThreadPoolExecutor(THREADS) as pool:
            indices = list(pool.map(tar_index, self._paths))
        members = np.cumsum([0] + [len(index.extensions) for index in indices])
        firsts = [index.first[:-1] + begin for index, begin in zip(indices, members, strict=False)]
        # [samples] and, below, [members].
        self._shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])
        self._key = np.concatenate([index.keys for index in indices])
        self._first = np.concatenate([*firsts, members[-1:]])
        self._extension = np.concatenate([index.extensions for index in indices])
        self._offset = np.concatenate([index.offsets for index in indices])
        self._size = np.concatenate([index.sizes for index in indices])
        skipped = [error for index in indices for error in index.skipped]
        if not len(self._key):
            why = f": {skipped[0]}" if skipped else ""
            raise ValueError(f"{label}: its shards hold no samples{why}")

        self._kinds = tuple(kind.decode() for kind in np.unique(self._extension))
        self._json = self._member_of_each(["json"])
        self._fields = self._find(fields, label)
        used = {path for role, path in dataclasses.asdict(self._fields).items() if path and role != "media"}
        self._text_kinds = used & set(self._kinds)
        self._in_json = used > self._text_kinds
        self._media = self._member_of_each([fields.media] if fields.media else MEDIA)
        text = self._fields.targets if self._fields.targets in self._kinds else "json"
        missing = {"media missing": self._media < 0, "text empty": self._member_of_each([text]) < 0}
        kept = np.ones(len(self._key), bool)
        for cause, where in missing.items():
            for i in np.flatnonzero(where & kept):
                skipped.append(BadRecordError(cause, self._name(i), f"only {self._kinds_of(i)}"))
            kept &= ~where
        self._index = np.flatnonzero(kept)
        self.skipped = tuple(skipped)
        if not len(self._index):
            raise ValueError(f"{label}: no sample has media and text: the first is {skipped[0]}")
        sizes = [(path.name, len(index.keys), index.sizes.sum()) for path, index in zip(self._paths, indices)]
        self.identity = f"{len(sizes)} tar shards {digest(sizes)} {self._fields}"

    def _member_of_each(self, kinds: Sequence[str]) -> np.ndarray:
        """The member of each sample whose extension comes first in a list, -1 for none: [samples] int."""
        count = len(self._extension)
        rank = np.full(count, len(kinds))
        for i, kind in enumerate(kinds):
            rank[self._extension == kind.encode()] = i
        best = np.minimum.reduceat(rank * count + np.arange(count), self._first[:-1])
        return np.where(best < len(kinds) * count, best % count, -1)

    def _kinds_of(self, sample: int) -> str:
        members = self._extension[self._first[sample] : self._first[sample + 1]]
        return ", ".join(kind.decode() for kind in members)

    def _find(self, fields: FieldMap, label: str) -> FieldMap:
        """The map with what is left out found; `media` is an extension, of several the first."""
        paths: dict[str, None] = {}
        for i in np.flatnonzero(self._json >= 0)[:SAMPLES_ASKED]:
            try:
                paths |= dict.fromkeys(paths_of(self._json_of(i)))
            except BadRecordError:
                continue  # told again when it is read
        media = [kind for kind in MEDIA if kind in self._kinds][:1]
        targets = ["txt"] if "txt" in self._kinds else named(paths, TARGETS)
        return find(fields, [*self._kinds, *paths], media, targets, label)

    def _content(self, sample: int, member: int) -> bytes:
        path, name = self._paths[self._shard[sample]], self._name(sample)
        return read_piece(path, int(self._offset[member]), int(self._size[member]), name)

    def _json_of(self, sample: int) -> dict[str, Any]:
        """A sample's JSON object; an empty one where it has none."""
        name, member = self._name(sample), self._json[sample]
        if member < 0:
            return {}
        if self._size[member] > MAX_JSON_BYTES:
            raise BadRecordError("line not readable", name, f"JSON of {self._size[member]} bytes")
        content = self._content(sample, member)
        try:
            row = json.loads(content)
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", name, str(error.reason)) from error
        except (ValueError, RecursionError) as error:
            raise BadRecordError("line not readable", name, str(error)) from error
        if not isinstance(row, dict):
            raise BadRecordError("line not readable", name, "its JSON is no object")
        return row

    def _texts_of(self, sample: int) -> dict[str, bytes]:
        """Contents of a sample's members that fields name by their extension."""
        texts = {}
        for member in range(self._first[sample], self._first[sample + 1]):
            kind, size = self._extension[member].decode(), self._size[member]
            if kind not in self._text_kinds:
                continue
            if size > 4 * self._limits.max_text_characters:
                raise BadRecordError("text too long", self._name(sample), f"{size} bytes")
            texts[kind] = self._content(sample, member)
        return texts

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        name, sample = self.name(index), self._index[index]
        member = self._media[sample]
        check_size(int(self._size[member]), name, self._limits)
        row = self._json_of(sample) | self._texts_of(sample)
        pairs = pairs_of_row(row, self._fields, name, self._limits)
        values = [value_at(row, path) if path else None for path in (self._fields.start, self._fields.end)]
        start, end = span_of(*values, name)
        media = Media(content=self._content(sample, member), start=start, end=end)
        return Record(name=name, media=media, pairs=pairs, metadata=metadata_of(row, self._fields))

    def pairs(self, index: int) -> tuple[Pair, ...]:
        sample = self._index[index]
        row = (self._json_of(sample) if self._in_json else {}) | self._texts_of(sample)
        return pairs_of_row(row, self._fields, self.name(index), self._limits)

    def name(self, index: int) -> str:
        return self._name(self._index[index])

    def _name(self, sample: int) -> str:
        return f"{self._paths[self._shard[sample]].name}/{self._key[sample].decode()}"
