"""Tar shards of samples: KEY.mp4, KEY.txt and KEY.json side by side, as WebDataset has them and
img2dataset and video2dataset write them."""

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
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
from jepa_jax.data.sources.selection import Kept, spread
from jepa_jax.data.sources.tar_index import Members, StoredIndex, TarIndex, tar_index
from jepa_jax.places import is_local

# Of a sample's media the first of these: a video goes before its thumbnail.
MEDIA = VIDEOS + IMAGES
# So many samples are asked for the fields of their JSON, and as many spread over all.
SAMPLES_ASKED = 20
MAX_JSON_BYTES = 2**24
THREADS = 16


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What is known of a shard before its samples are read.

    Attributes:
      kinds: all that follows a first dot in it.
      with_json: some of the samples that have KEY.json.
      members: a hash of which they are, in their order, and how large.
    """

    index: TarIndex | StoredIndex
    samples: int
    kinds: frozenset[str]
    with_json: tuple[int, ...]
    members: str
    skipped: tuple[BadRecordError, ...]


def _survey(path: epath.Path) -> _Shard:
    stored = tar_index(path)
    index = stored.load()
    return _Shard(
        index=stored,
        samples=len(index.keys),
        kinds=frozenset(kind.decode() for kind in np.unique(index.extensions)),
        with_json=tuple(np.flatnonzero(_have(index, ["json"]))[:SAMPLES_ASKED].tolist()),
        members=_hash_of(index),
        skipped=tuple(index.skipped),
    )


def _hash_of(index: TarIndex) -> str:
    """Of a shard's samples and the sizes of their members: where in the archive they are does not count."""
    found = hashlib.sha256()
    for array in (index.keys, index.first, index.extensions, index.sizes):
        found.update(f"{array.dtype.str} {len(array)}\n".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()[:16]


def _lacking(index: TarIndex, media: Sequence[str], text: str | None) -> Iterator[tuple[int, str]]:
    """Samples that cannot be used, in their order, and why; `text` is None where they need none."""
    seen = _have(index, media)
    said = np.ones_like(seen) if text is None else _have(index, [text])
    for number in np.flatnonzero(~(seen & said)).tolist():
        yield number, "text empty" if seen[number] else "media missing"


def _have(index: TarIndex, kinds: Sequence[str]) -> np.ndarray:
    """Which samples have a member of one of these kinds: [samples] bool."""
    found = np.isin(index.extensions, [kind.encode() for kind in kinds])
    return np.diff(np.concatenate([[0], np.cumsum(found)])[index.first]) > 0


@dataclasses.dataclass(frozen=True)
class _Sample:
    name: str
    path: epath.Path
    members: Members

    def content(self, kind: str) -> bytes:
        return read_piece(self.path, *self.members[kind], self.name)


class TarSource:
    """Samples of shards, in the shards' order. A field is an extension ("txt") or a path in the JSON
    ("caption"). Text is KEY.txt where samples have it, else found in the JSON by its name.

    Where the shards are on a disk that can be written, what is in memory is of their number, and not of
    the samples'.

    Raises:
      ValueError: there is no sample with media and text, a field does not exist, or a shard is compressed.
    """

    def __init__(self, paths: Sequence[epath.Path], fields: FieldMap, limits: Limits, label: str):
        self._paths, self._limits = list(paths), limits
        # Far away reading headers is waiting; here it is work, and takes the memory of one shard at a time.
        with futures.ThreadPoolExecutor(1 if is_local(self._paths[0]) else THREADS) as pool:
            shards = list(pool.map(_survey, self._paths))
        self._indices = [shard.index for shard in shards]
        # How many samples are before each shard.
        self._before = np.cumsum([0] + [shard.samples for shard in shards]).tolist()
        skipped = [error for shard in shards for error in shard.skipped]
        if not self._before[-1]:
            why = f": {skipped[0]}" if skipped else ""
            raise ValueError(f"{label}: its shards hold no samples{why}")

        self._kinds = tuple(sorted(frozenset().union(*(shard.kinds for shard in shards))))
        asked = [b + i for b, shard in zip(self._before, shards, strict=False) for i in shard.with_json]
        # Some of every part: shards of several origins may have other fields.
        some = [asked[i] for i in spread(len(asked), SAMPLES_ASKED)]
        self._fields = self._find(fields, asked[:SAMPLES_ASKED] + some, label)
        used = {path for role, path in dataclasses.asdict(self._fields).items() if path and role != "media"}
        self._text_kinds = used & set(self._kinds)
        self._in_json = used > self._text_kinds
        self._media = (fields.media,) if fields.media else MEDIA
        text = None
        if limits.needs_text:
            text = self._fields.targets if self._fields.targets in self._kinds else "json"
        removed: list[int] = []
        for begin, index in zip(self._before, self._indices, strict=False):
            for number, cause in _lacking(index.load(), self._media, text):
                sample = self._sample(begin + number)
                skipped.append(BadRecordError(cause, sample.name, f"only {', '.join(sample.members)}"))
                removed.append(begin + number)
        self._kept = Kept(self._before[-1], removed)
        self.skipped = tuple(skipped)
        if not len(self._kept):
            raise ValueError(f"{label}: no sample has media and text: the first is {skipped[0]}")
        found = [(path.name, shard.members) for path, shard in zip(self._paths, shards)]
        self.identity = f"{len(found)} tar shards {digest(found)} {self._fields}"

    def _find(self, fields: FieldMap, samples: Sequence[int], label: str) -> FieldMap:
        """The map with what is left out found; `media` is an extension, of several the first.

        Args:
          samples: some that have JSON.
        """
        paths: dict[str, None] = {}
        for number in samples:
            try:
                paths |= dict.fromkeys(paths_of(self._json_of(self._sample(number))))
            except BadRecordError:
                continue  # told again when it is read
        media = [kind for kind in MEDIA if kind in self._kinds][:1]
        targets = ["txt"] if "txt" in self._kinds else named(paths, TARGETS)
        return find(fields, [*self._kinds, *paths], media, targets, label, self._limits)

    def _sample(self, number: int) -> _Sample:
        shard = bisect.bisect_right(self._before, number) - 1
        path, place = self._paths[shard], number - self._before[shard]
        key, members = self._indices[shard].sample(place, f"{path.name} {place}")
        return _Sample(f"{path.name}/{key}", path, members)

    def _json_of(self, sample: _Sample) -> dict[str, Any]:
        """A sample's JSON object; an empty one where it has none."""
        if "json" not in sample.members:
            return {}
        size = sample.members["json"][1]
        if size > MAX_JSON_BYTES:
            raise BadRecordError("line not readable", sample.name, f"JSON of {size} bytes")
        content = sample.content("json")
        try:
            row = json.loads(content)
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", sample.name, str(error.reason)) from error
        except (ValueError, RecursionError) as error:
            raise BadRecordError("line not readable", sample.name, str(error)) from error
        if not isinstance(row, dict):
            raise BadRecordError("line not readable", sample.name, "its JSON is no object")
        return row

    def _texts_of(self, sample: _Sample) -> dict[str, bytes]:
        """Contents of a sample's members that fields name by their extension."""
        texts = {}
        for kind, (_, size) in sample.members.items():
            if kind not in self._text_kinds:
                continue
            if size > 4 * self._limits.max_text_characters:
                raise BadRecordError("text too long", sample.name, f"{size} bytes")
            texts[kind] = sample.content(kind)
        return texts

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        sample = self._sample(self._kept[index])
        kind = next(kind for kind in self._media if kind in sample.members)
        check_size(sample.members[kind][1], sample.name, self._limits)
        row = self._json_of(sample) | self._texts_of(sample)
        pairs = pairs_of_row(row, self._fields, sample.name, self._limits)
        values = [value_at(row, path) if path else None for path in (self._fields.start, self._fields.end)]
        start, end = span_of(*values, sample.name)
        media = Media(content=sample.content(kind), start=start, end=end)
        return Record(name=sample.name, media=media, pairs=pairs, metadata=metadata_of(row, self._fields))

    def pairs(self, index: int) -> tuple[Pair, ...]:
        sample = self._sample(self._kept[index])
        row = (self._json_of(sample) if self._in_json else {}) | self._texts_of(sample)
        return pairs_of_row(row, self._fields, sample.name, self._limits)

    def name(self, index: int) -> str:
        try:
            return self._sample(self._kept[index]).name
        except BadRecordError as error:  # told when the record is read
            return error.name
