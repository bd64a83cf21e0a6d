"""A manifest of texts and the media files it names, or media files each with a text file beside it."""

import dataclasses
import logging
import os
from collections.abc import Sequence

from etils import epath

from jepa_jax.config import FieldMap
from jepa_jax.data.records import BadRecordError, Limits, Media, Pair, Record
from jepa_jax.data.sources.fields import (
    find_by_name,
    metadata_of,
    pairs_of_row,
    span_of,
    text_of,
    value_at,
)
from jepa_jax.data.sources.files import (
    IMAGES,
    VIDEOS,
    digest,
    extension,
    find_file,
    media_file,
    sizes_of,
    told_folders,
)
from jepa_jax.data.sources.selection import Kept, key_hash, with_equal_hashes
from jepa_jax.data.sources.tables import Parquet, Table, open_table
from jepa_jax.places import is_local

logger = logging.getLogger(__name__)
EXTENSIONS = ("jsonl", "csv", "parquet")
# Rows with a field of this name are records with a key of their own.
KEY = "key"


class ManifestSource:
    """Rows of a manifest. Media paths are relative to the manifest's folder and stay in it.

    Of rows with the same `key`, where they have one, the first counts.

    Raises:
      ValueError: the manifest is empty, or a field is not in it or not to be found.
    """

    def __init__(self, path: epath.Path, fields: FieldMap, limits: Limits):
        self._folder, self._limits = path.parent, limits
        self._table: Table = open_table(path)
        if not len(self._table):
            raise ValueError(f"{path}: it has no rows")
        if not self._table.known:
            raise ValueError(f"{path}: none of its first rows is readable")
        self._fields = find_by_name(fields, self._table.known, str(path), limits)
        if f"{self._fields.media.rpartition('/')[0]}/bytes" in self._table.known:
            raise ValueError(f"{path}: it holds media inside: write them to files beside it, or to tars")
        if isinstance(self._table, Parquet):
            self._table.use([path for path in dataclasses.asdict(self._fields).values() if path] + [KEY])
        self._index, self.skipped = self._without_repeats()
        self.identity = f"manifest {self._table.identity} {self._fields}"

    def _without_repeats(self) -> tuple[Kept, tuple[BadRecordError, ...]]:
        """Rows to keep, and those whose key stood before."""
        count = len(self._table)
        if KEY not in self._table.known:
            return Kept(count), ()
        keys = ((i, key) for i, key in self._table.values(KEY) if key is not None)
        repeats, first = {}, {}
        # Few have a hash that another has: of these the keys are compared.
        for row in with_equal_hashes((i, key_hash(str(key))) for i, key in keys):
            key = str(self._table.row(row)[KEY])
            if first.setdefault(key, row) != row:
                repeats[row] = BadRecordError("key not unique", self._table.name(row), key[:200])
        return Kept(count, list(repeats)), tuple(repeats.values())

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        row = self._table.row(self._index[index])
        pairs = pairs_of_row(row, self._fields, name, self._limits)
        values = [value_at(row, path) if path else None for path in (self._fields.start, self._fields.end)]
        start, end = span_of(*values, name)
        path = media_file(self._folder, value_at(row, self._fields.media), name, self._limits)
        media = Media(content=path, start=start, end=end)
        return Record(name=name, media=media, pairs=pairs, metadata=metadata_of(row, self._fields))

    def pairs(self, index: int) -> tuple[Pair, ...]:
        row = self._table.row(self._index[index])
        return pairs_of_row(row, self._fields, self.name(index), self._limits)

    def name(self, index: int) -> str:
        return self._table.name(self._index[index])


class FolderSource:
    """KEY.mp4 (or another video or image) with its caption in KEY.txt. An image called as a video is that
    one's thumbnail, and no record. What is in folders inside is none either, which is told.

    Raises:
      ValueError: no media file has a text beside it, or there is none where none is needed.
    """

    def __init__(self, folder: epath.Path, paths: Sequence[epath.Path], limits: Limits):
        self._folder, self._limits = folder, limits
        found = [(path.name, extension(path.name), path.name.rpartition(".")[0]) for path in paths]
        beside = {key: name for name, kind, key in found if kind == "txt"}
        videos = {key for _, kind, key in found if kind in VIDEOS}
        self._names: list[str] = []
        self._texts: list[str | None] = []
        skipped, seen = [], set()
        for name, kind, key in found:
            if kind not in VIDEOS and (kind not in IMAGES or key in videos):
                continue
            if limits.needs_text and key not in beside:
                skipped.append(BadRecordError("text empty", name, f"no {key}.txt"))
            elif limits.needs_text and key in seen:
                skipped.append(BadRecordError("key not unique", name, key))
            else:
                self._names.append(name)
                self._texts.append(beside.get(key))
            seen.add(key)
        skipped += [BadRecordError("media missing", beside[key]) for key in sorted(beside.keys() - seen)]
        inside = told_folders(paths)
        if not self._names:
            raise ValueError(
                f"{folder}: no media file has its text beside it (KEY.txt beside KEY.mp4){inside}"
            )
        if inside:
            logger.warning("%s: media files of it alone are read%s", folder, inside)
        self.skipped = tuple(skipped)
        self.identity = f"folder of {len(self._names)} files {digest(self._names)}"
        if is_local(folder):  # elsewhere every size is a request
            files = self._names + [name for name in self._texts if name is not None]
            place = os.fspath(folder)  # texts, of which a path is made in a tenth of the time
            self.identity += f" {digest(sizes_of(os.path.join(place, name) for name in files))}"

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        path = media_file(self._folder, name, name, self._limits)
        return Record(name=name, media=Media(content=path), pairs=self.pairs(index))

    def pairs(self, index: int) -> tuple[Pair, ...]:
        name, text = self.name(index), self._texts[index]
        if text is None:
            return ()
        path, size = find_file(self._folder, text, name)
        if size > 4 * self._limits.max_text_characters:
            raise BadRecordError("text too long", name, f"{size} bytes")
        try:
            content = path.read_bytes()
        except OSError as error:  # no rights to read what may be looked at
            raise BadRecordError("media missing", name, f"{text}: {error.strerror}") from error
        return (Pair(query="", targets=(text_of(content, name, self._limits),)),)

    def name(self, index: int) -> str:
        return self._names[index]
