"""Where the members of a tar shard are, from its headers alone, kept in a file beside it."""

import contextlib
import dataclasses
import os
import tarfile
import tokenize
import uuid
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from etils import epath

from jepa_jax.data.records import CAUSES, BadRecordError
from jepa_jax.data.sources.files import is_inside
from jepa_jax.places import is_local

# Of the cached file; another number makes it anew.
VERSION = 3
BLOCK = tarfile.BLOCKSIZE
# A longer name in an archive is taken for damage: all take the space of the longest.
MAX_NAME_BYTES = 1024


# Of a sample, by what follows the first dot of their names, in lower case: where the content of each is in
# the archive, offset and size in bytes.
Members = Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The samples of a shard, members of one key, which stand together: in memory.

    Attributes:
      keys: [samples], UTF-8.
      first: [samples + 1]; members first[i] to first[i + 1] are of sample i.
      extensions: [members], UTF-8, what follows the first dot of a member's name, in lower case.
      offsets, sizes: [members], of the members' content, in bytes.
      bad_causes, bad_names, bad_details: what is left out: indices into `CAUSES`, and UTF-8.
    """

    keys: np.ndarray
    first: np.ndarray
    extensions: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    bad_causes: np.ndarray
    bad_names: np.ndarray
    bad_details: np.ndarray

    @property
    def skipped(self) -> list[BadRecordError]:
        """What is left out."""
        rows = zip(self.bad_causes, self.bad_names, self.bad_details, strict=True)
        return [BadRecordError(CAUSES[c], n.decode(), d.decode()) for c, n, d in rows]

    def sample(self, number: int, name: str) -> tuple[str, Members]:
        """A sample's key and members; its name where it has to be told of."""
        del name
        members = slice(*self.first[number : number + 2])
        return _sample(
            self.keys[number], self.extensions[members], self.offsets[members], self.sizes[members]
        )

    def load(self) -> "TarIndex":
        return self


def _sample(key: bytes, *members: np.ndarray) -> tuple[str, Members]:
    rows = zip(*(array.tolist() for array in members), strict=True)
    return key.decode(), {kind.decode(): (offset, size) for kind, offset, size in rows}


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """A `TarIndex` that stays in its file, arrays one after another: what a sample takes is read from there.

    Attributes:
      stamp: [4] int64, what the shard was when the index was made, and a checksum of the arrays.
      places: of each array, where it begins in the file, in bytes, its type and its length.
    """

    path: epath.Path
    stamp: np.ndarray
    places: Mapping[str, tuple[int, np.dtype, int]]

    def sample(self, number: int, name: str) -> tuple[str, Members]:
        """Raises BadRecordError where the file is gone, or of another shard."""
        try:
            with self.path.open("rb") as file:
                if not np.array_equal(self._read(file, "stamp"), self.stamp):
                    raise ValueError("of another shard")
                first, stop = self._read(file, "first", number, 2).tolist()
                names = ("extensions", "offsets", "sizes")
                members = [self._read(file, name, first, stop - first) for name in names]
                return _sample(self._read(file, "keys", number, 1)[0], *members)
        except (OSError, ValueError) as error:
            raise BadRecordError("archive damaged", name, f"{self.path.name}: {error}") from error

    def load(self) -> TarIndex:
        """All of it."""
        with self.path.open("rb") as file:
            return TarIndex(**{name: self._read(file, name) for name in _ARRAYS})

    def _read(self, file: BinaryIO, name: str, begin: int = 0, count: int | None = None) -> np.ndarray:
        place, kind, length = self.places[name]
        count = length if count is None else count
        if not 0 <= begin <= begin + count <= length:
            raise ValueError("of another shard")
        file.seek(place + begin * kind.itemsize)
        return np.frombuffer(file.read(count * kind.itemsize), kind, count)


_ARRAYS = tuple(field.name for field in dataclasses.fields(TarIndex))


def tar_index(path: epath.Path) -> TarIndex | StoredIndex:
    """The index of a shard: the one beside it, if it was made of the same size and time, else a new one,
    left beside it where that can be written. It is in memory where that cannot be, and where each look at
    it would be a request.

    Raises:
      ValueError: it is compressed: there is no random access to what is in it.
    """
    stat = path.stat()
    stamp = np.array([VERSION, stat.length, int(stat.mtime)], np.int64)
    beside = path.parent / f".{path.name}.index"
    is_dated = bool(stat.mtime)  # some object stores tell no time: who knows if it is the same file?
    stored = _open_stored(beside, stamp) if is_dated and _is_later(beside, stat.mtime) else None
    if stored is None:
        found = _read_headers(path, stat.length)
        if not is_dated or not _save(beside, stamp, found):
            return found
        stored = _open_stored(beside, stamp)
        if stored is None:
            return found
    return stored if is_local(path) else stored.load()


def _is_later(beside: epath.Path, written: float) -> bool:
    """Whether an index was made in a later second than its shard was written: in the same one the shard may
    have been written again since."""
    try:
        return int(beside.stat().mtime) > int(written)
    except OSError:
        return False


def _open_stored(beside: epath.Path, stamp: np.ndarray) -> StoredIndex | None:
    """An index that was kept, if it is whole and of this stamp: [3] int64, without the checksum."""
    places = {}
    try:
        with beside.open("rb") as file:
            for name in ("stamp", *_ARRAYS):
                if np.lib.format.read_magic(file) != (1, 0):
                    return None
                (length,), _, kind = np.lib.format.read_array_header_1_0(file)
                places[name] = file.tell(), kind, length
                file.seek(length * kind.itemsize, os.SEEK_CUR)
            end = file.tell()
            # Nothing is allocated that is not there.
            if any(kind.hasobject for _, kind, _ in places.values()) or file.seek(0, os.SEEK_END) != end:
                return None
            found = StoredIndex(beside, stamp, places)._read(file, "stamp")
            if found.dtype != np.int64 or not np.array_equal(found[:-1], stamp):
                return None
        stored = StoredIndex(beside, found, places)
        index = stored.load()
        return stored if found[-1] == _checksum(index) and _is_sound(index, int(stamp[1])) else None
    except (OSError, ValueError, OverflowError, tokenize.TokenError):
        return None  # not there, or not ours: it is made anew (NumPy takes damaged headers apart by tokens)


def _is_sound(index: TarIndex, length: int) -> bool:
    """Whether an index that was read can be of a file of this length.

    Raises:
      ValueError: a text in it is not UTF-8.
    """
    texts = (index.keys, index.extensions, index.bad_names, index.bad_details)
    numbers = (index.first, index.offsets, index.sizes, index.bad_causes)
    if any(a.ndim != 1 or a.dtype.kind != "S" for a in texts):
        return False
    if any(a.ndim != 1 or a.dtype != np.int64 for a in numbers):
        return False
    for array in texts:
        b"\n".join(array.tolist()).decode()
    members = len(index.extensions)
    return bool(
        len(index.first) == len(index.keys) + 1
        and index.first[0] == 0
        and index.first[-1] == members == len(index.offsets) == len(index.sizes)
        and (np.diff(index.first) > 0).all()
        and (index.offsets >= 0).all()
        and (index.sizes >= 0).all()
        and (index.sizes <= length - index.offsets).all()
        and len(index.bad_causes) == len(index.bad_names) == len(index.bad_details)
        and ((index.bad_causes >= 0) & (index.bad_causes < len(CAUSES))).all()
    )


def _checksum(index: TarIndex) -> int:
    """CRC-32 of the arrays: on a disk that changes a bit, texts would go to others' pictures."""
    crc = 0
    for name in _ARRAYS:
        crc = zlib.crc32(np.ascontiguousarray(getattr(index, name)), crc)
    return crc


def _save(beside: epath.Path, stamp: np.ndarray, index: TarIndex) -> bool:
    """Leave an index for the next time, if that can be. Renamed when it is whole: other processes make the
    same one."""
    part = beside.parent / f"{beside.name}.{uuid.uuid4().hex}"
    try:
        with part.open("wb") as file:
            for array in (np.append(stamp, _checksum(index)), *(getattr(index, name) for name in _ARRAYS)):
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
        part.replace(beside)
        return True
    except OSError:  # a folder that is only to be read
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False


def _read_headers(path: epath.Path, length: int) -> TarIndex:
    """A new index: one pass over the headers."""
    shard = path.name
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    bad: list[BadRecordError] = []
    last, repeated, end = None, None, 0
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path}: compressed by gzip, which has no random access: unpack it by gunzip")
        file.seek(0)
        for member in _members(file, path, bad):
            past = member.offset_data + -(-member.size // BLOCK) * BLOCK
            name = f"{shard}/{member.name}"
            if member.size < 0 or member.offset_data + member.size > length:
                break  # cut short in it: told below
            end = past
            if member.isdir():
                continue
            if len(member.name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
                bad.append(BadRecordError("archive damaged", name[:200], "a name too long"))
            elif not is_inside(member.name):
                bad.append(BadRecordError("media outside its folder", name, "an unsafe name in an archive"))
            elif not member.isreg() or member.issparse():
                bad.append(BadRecordError("media outside its folder", name, "no plain file"))
            else:
                folder, slash, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")
                key = folder + slash + stem
                members = samples.setdefault(key, {})
                # The first stands; so does the first of two members of one name.
                if (members and key != last) or kind.lower() in members:
                    if key != repeated:  # once for all its members
                        bad.append(BadRecordError("key not unique", name))
                    repeated = key
                else:
                    members[kind.lower()] = (member.offset_data, member.size)
                    last = key
        # A whole archive ends with blocks of zeros.
        file.seek(end)
        damaged = any(error.cause == "archive damaged" for error in bad)
        if not damaged and file.read(BLOCK) != bytes(BLOCK):
            bad.append(BadRecordError("archive damaged", shard, f"cut short after {end} bytes of it"))
    return _to_index(samples, bad)


def _members(file, path: epath.Path, bad: list[BadRecordError]):
    """Members in their order, as far as the headers can be read."""
    before = -1
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # else it keeps them all
                # A forged size can lead back: a header after which nothing is further on ends it.
                if member.offset <= before:
                    break
                before = member.offset
                yield member
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        bad.append(BadRecordError("archive damaged", path.name, str(error)))
    except (MemoryError, RecursionError) as error:  # a name said to have terabytes; headers of headers
        bad.append(BadRecordError("archive damaged", path.name, f"a forged header: {type(error).__name__}"))


def _utf8(texts: list[str]) -> np.ndarray:
    """Texts as an array that needs no pickle: [texts] bytes."""
    return np.array([text.encode("utf-8", "replace") for text in texts], np.bytes_).reshape(-1)


def _to_index(samples: dict[str, dict[str, tuple[int, int]]], bad: list[BadRecordError]) -> TarIndex:
    members = [(kind, *where) for kinds in samples.values() for kind, where in kinds.items()]
    counts = [len(kinds) for kinds in samples.values()]
    return TarIndex(
        keys=_utf8(list(samples)),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        extensions=_utf8([kind for kind, _, _ in members]),
        offsets=np.array([offset for _, offset, _ in members], np.int64),
        sizes=np.array([size for _, _, size in members], np.int64),
        bad_causes=np.array([CAUSES.index(error.cause) for error in bad], np.int64),
        bad_names=_utf8([error.name for error in bad]),
        bad_details=_utf8([error.detail for error in bad]),
    )
