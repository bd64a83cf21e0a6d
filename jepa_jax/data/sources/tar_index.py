"""Where the members of a tar shard are, from its headers alone, kept in a file beside it."""

import contextlib
import dataclasses
import tarfile
import uuid
import zipfile

import numpy as np
from etils import epath

from jepa_jax.data.records import CAUSES, BadRecordError
from jepa_jax.data.sources.files import is_inside

# Of the cached file; another number makes it anew.
VERSION = 1
BLOCK = tarfile.BLOCKSIZE


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The samples of a shard: members of one key, which stand together.

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


def tar_index(path: epath.Path) -> TarIndex:
    """The index of a shard: the one beside it, if it was made of the same size and time, else a new one,
    left beside it where that can be written.

    Raises:
      ValueError: it is compressed: there is no random access to what is in it.
    """
    stat = path.stat()
    stamp = np.array([VERSION, stat.length, int(stat.mtime)], np.int64)
    cached = path.parent / f".{path.name}.index.npz"
    is_dated = bool(stat.mtime)  # some object stores tell no time: who knows if it is the same file?
    found = _load(cached, stamp) if is_dated else None
    if found is None:
        found = _read_headers(path, stat.length)
        if is_dated:
            _save(cached, stamp, found)
    return found


def _load(cached: epath.Path, stamp: np.ndarray) -> TarIndex | None:
    """An index that was kept, if it is whole and of this stamp."""
    names = [field.name for field in dataclasses.fields(TarIndex)]
    try:
        with cached.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not np.array_equal(arrays["stamp"], stamp):
                return None
            index = TarIndex(**{name: arrays[name] for name in names})
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile):
        return None  # not there, or not ours: it is made anew
    return index if _is_sound(index, int(stamp[1])) else None


def _is_sound(index: TarIndex, length: int) -> bool:
    """Whether an index that was read can be of a file of this length."""
    texts = (index.keys, index.extensions, index.bad_names, index.bad_details)
    numbers = (index.first, index.offsets, index.sizes, index.bad_causes)
    if any(a.ndim != 1 or a.dtype.kind != "S" for a in texts):
        return False
    if any(a.ndim != 1 or a.dtype != np.int64 for a in numbers):
        return False
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


def _save(cached: epath.Path, stamp: np.ndarray, index: TarIndex) -> None:
    """Leave an index for the next time. Renamed when it is whole: other processes make the same one."""
    part = cached.parent / f"{cached.name}.{uuid.uuid4().hex}"
    try:
        with part.open("wb") as file:
            np.savez(file, stamp=stamp, **vars(index))
        part.replace(cached)
    except OSError:  # a folder that is only to be read
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


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
            if not is_inside(member.name):
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
