"""Files of a folder: which belong to a split, which a name may reach, and pieces of them."""

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Sequence

from etils import epath

from jepa_jax.data.records import BadRecordError, Limits
from jepa_jax.errors import printable
from jepa_jax.places import is_local

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
VIDEOS = ("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg")
# Splits that may not be taken for "train" when no file says "train".
OTHER_SPLITS = ("validation", "valid", "val", "test", "dev", "eval")


def extension(name: str) -> str:
    """What follows the last dot, in lower case; "" without one."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def listing(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder, by name, without the hidden (".name").

    Raises:
      ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    # By the name alone, which is what differs: two paths are compared part by part, in Python.
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(visible, key=lambda path: path.name)


def told_folders(paths: Sequence[epath.Path]) -> str:
    """What a sentence about files adds of the folders beside them, which are not gone into: "" where there
    are none but those of splits. A name with a dot is taken for a file's: in an object store, to ask is a
    request."""
    splits = ("train", *OTHER_SPLITS)
    found = [
        printable(path.name)
        for path in paths
        if "." not in path.name and path.name not in splits and path.is_dir()
    ]
    more = ", ..." if len(found) > 3 else ""
    return f"; its folders ({', '.join(found[:3])}{more}) are not gone into" if found else ""


def belongs(name: str, split: str) -> bool:
    """Whether a file's name begins with a split's: "train.jsonl", "train-00001.tar", but not "trains"."""
    return re.match(re.escape(split) + r"([^a-zA-Z]|$)", name) is not None


def of_split(paths: Sequence[epath.Path], split: str | None, label: str) -> list[epath.Path]:
    """The files of a split: those whose names begin with it; all where it is None, or where it is "train"
    and no file is named after any split.

    Raises:
      ValueError: none belongs to it.
    """
    if split is None:
        return list(paths)
    found = [path for path in paths if belongs(path.name, split)]
    others = any(belongs(path.name, other) for path in paths for other in OTHER_SPLITS)
    if not found and split == "train" and not others:
        return list(paths)
    if paths and not found:
        names = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
        raise ValueError(f"{label}: no file of this split (a file's name begins with its split): {names}")
    return found


def is_inside(name: str) -> bool:
    """Whether a relative path stays in its folder, links aside."""
    if not name or "\0" in name or "\\" in name or "://" in name:
        return False
    return not name.startswith("/") and ".." not in name.split("/")


def find_file(folder: epath.Path, relative: str, name: str) -> tuple[epath.Path, int]:
    """A file of a folder, by a path that a record gives, and its size.

    Raises:
      BadRecordError: there is no such file, or it is outside the folder.
    """
    if not is_inside(relative):
        raise BadRecordError("media outside its folder", name, relative[:200])
    path = folder / relative
    try:
        if is_local(folder):
            real, root = os.path.realpath(path), os.path.realpath(folder)
            if os.path.commonpath((real, root)) != root:
                found = f"{relative[:200]} is a link out of it"
                raise BadRecordError("media outside its folder", name, found)
        size = path.stat().length if path.is_file() else None
    except BadRecordError:
        raise
    except (OSError, ValueError) as error:  # no rights, a name that is too long or that no file can have
        raise BadRecordError("media missing", name, f"{relative[:200]}: {error}") from error
    if size is None:
        raise BadRecordError("media missing", name, relative[:200])
    return path, size


def sizes_of(paths: Iterable[str | epath.Path]) -> list[int | None]:
    """Bytes of each local file; None for one that cannot be looked at."""
    found: list[int | None] = []
    for path in paths:
        try:
            found.append(os.stat(path).st_size)
        except OSError:
            found.append(None)
    return found


def media_file(folder: epath.Path, relative: object, name: str, limits: Limits) -> epath.Path:
    """A media file that a record names.

    Raises:
      BadRecordError: there is no such file, it is outside the folder, empty, or too large.
    """
    if relative is None or relative == "":
        raise BadRecordError("media missing", name, "no path")
    if not isinstance(relative, str):
        found = "media inside" if isinstance(relative, bytes) else f"a {type(relative).__name__}"
        raise BadRecordError("line not readable", name, f"{found} in place of a path")
    path, size = find_file(folder, relative, name)
    check_size(size, name, limits)
    return path


def check_size(size: int, name: str, limits: Limits) -> None:
    """Raise BadRecordError for media of no bytes or of too many."""
    if not size:
        raise BadRecordError("media empty", name)
    if size > limits.max_media_bytes:
        raise BadRecordError("media too large", name, f"{size} bytes")


def read_piece(path: epath.Path, offset: int, size: int, name: str) -> bytes:
    """Bytes of a file. It is opened anew each time: nothing is shared between threads or pickled.

    Raises:
      BadRecordError: the file is gone, or shorter than it was.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            piece = file.read(size)
    except OSError as error:
        raise BadRecordError("archive damaged", name, str(error)) from error
    if len(piece) != size:
        raise BadRecordError("archive damaged", name, f"{len(piece)} of {size} bytes are left")
    return piece


def checksum(path: epath.Path) -> str:
    """CRC-32 of a file's content, in hexadecimal."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def digest(parts: Iterable[object]) -> str:
    """A short hash of things by their `str`, in their order."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()[:16]
