"""Places to read and to write: folders of this machine, or of a bucket (gs://)."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator

import fsspec
from etils import epath

# What checkpoints can be written to; data is read from more (`data.sources`).
WRITABLE = ("gs",)


class PlaceError(ValueError):
    """A place that cannot be used."""


def is_local(path: epath.PathLike) -> bool:
    """Whether it is on a file system, with links, and not in an object store."""
    return "://" not in os.fspath(path)


def place(path: epath.PathLike) -> epath.Path:
    """A work directory or a folder of weights; absolute where it is on this machine.

    Raises:
      PlaceError: it is a file, in another kind of store than `WRITABLE`, or that store cannot be reached.
    """
    text = os.fspath(path)
    if is_local(text):
        # Of --workdir=~/DIR a shell leaves the ~ as it is.
        found = epath.Path(os.path.abspath(os.path.expanduser(text)))
        if found.is_file():
            raise PlaceError(f"{text} is a file: name a folder")
        return found
    kind = text.partition("://")[0]
    if kind not in WRITABLE:
        raise PlaceError(
            f"{text} is in an object store that nothing can be written to: name a place on a disk, shared or "
            f"not, or in a bucket of {WRITABLE[0]}://"
        )
    # Other hosts write to it as well: what was listed before says nothing.
    fsspec.config.conf.setdefault(kind, {})["use_listings_cache"] = False
    found = epath.Path(text)
    try:
        found.exists()
    except ImportError as error:
        raise PlaceError(f"{text}: {kind}:// needs pip install 'jepa_jax[gcs]' ({error})") from error
    except Exception as error:  # each library below has errors of its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PlaceError(f"{text} cannot be reached: {reason}") from error
    return found


def check_savable(path: epath.PathLike) -> None:
    """Raise PlaceError where Orbax cannot save arrays.

    It joins what it wrote by a search in which the folder's own path is a part of the pattern: it finds
    nothing, or another folder's, and says that all is saved.
    """
    if found := sorted(set(os.fspath(path)) & set("*?[")):
        raise PlaceError(
            f"{path} has {' and '.join(found)} in its path, where arrays that are saved cannot be read back: "
            "name another place"
        )


@contextlib.contextmanager
def held(folder: epath.PathLike, work: str) -> Iterator[None]:
    """Keep a folder for one process of this machine: two would write over one another's files. The lock is
    the system's, so a killed process leaves none behind; in a bucket, and on disks without locks, there is
    none.

    Args:
      work: what is done there, "training".

    Raises:
      PlaceError: another process of this machine does it.
    """
    with contextlib.ExitStack() as opened:
        if is_local(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PlaceError(
                    f"another {work} is at work in {folder}: wait for its end, or name another place"
                ) from error
            except OSError:  # a disk without locks, as some that clusters share
                pass
        yield


def write_whole(path: epath.Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a whole file or none: a kill or a full disk never leaves half of one. Of pieces one is in memory
    at a time, and they may come from the file itself."""
    content = content.encode() if isinstance(content, str) else content
    pieces = [content] if isinstance(content, bytes) else content
    if not is_local(path):
        path.write_bytes(b"".join(pieces))  # an object is there when all of it is
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(pieces)
    temporary.replace(path)


class Lines:
    """A text that grows by lines. On a disk each is written at once. Nothing can be added to an object of
    a bucket, so there `flush` writes the whole text again."""

    def __init__(self, path: epath.Path, lines: Iterable[bytes]):
        self._path = path
        self._kept = [] if is_local(path) else list(lines)
        write_whole(path, lines if is_local(path) else self._kept)

    def add(self, line: str) -> None:
        """Raises OSError where the disk is full, and then leaves no part of the line, which would spoil the
        next."""
        if not is_local(self._path):
            self._kept.append(line.encode())
            return
        content = line.encode()
        with open(self._path, "ab", buffering=0) as file:
            size = file.tell()
            if file.write(content) < len(content):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self._path))

    def flush(self) -> None:
        """Raises what the store raises."""
        if not is_local(self._path):
            write_whole(self._path, self._kept)
