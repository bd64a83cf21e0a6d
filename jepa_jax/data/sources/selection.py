"""Which of many records are kept, in memory that is of those that are not."""

import bisect
import contextlib
import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jepa_jax.data.records import BadRecordError, Source

# So many hashes are compared at a time, about 24 bytes each; so many are read, 16 bytes each.
_AT_ONCE, _READ = 2**18, 2**16
# Records whose texts are part of what a dataset is known by.
_SAMPLED = 16


def spread(count: int, number: int) -> list[int]:
    """At most so many of the numbers below a count, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(number, count)).astype(int)).tolist()


def sample_of(source: Source) -> str:
    """A hash of what some records say: another one where all were written again in another order, which
    neither their number nor their size tells."""
    found = hashlib.sha256()
    for number in spread(len(source), _SAMPLED):
        try:
            found.update(repr(source.pairs(number)).encode("utf-8", "replace"))
        except BadRecordError as error:
            found.update(error.cause.encode())
    return found.hexdigest()[:16]


def only_query(sources: Iterable[Source]) -> str | None:
    """The query that all of some records have, "" where they are captions alone; None if they differ."""
    found = None
    for source in sources:
        for number in spread(len(source), _SAMPLED):
            with contextlib.suppress(BadRecordError):
                for pair in source.pairs(number):
                    if found not in (None, pair.query):
                        return None
                    found = pair.query
    return found


class Kept(Sequence[int]):
    """The numbers below a count, in their order, without some of them: eight bytes for each of those.

    Args:
      removed: increasing.
    """

    def __init__(self, count: int, removed: Sequence[int] = ()):
        self._count = count - len(removed)
        # Of each removed number: how many that are kept are below it.
        self._below = array("q", (number - i for i, number in enumerate(removed)))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"{index} of {self._count}")
        return index + bisect.bisect_right(self._below, index)


def key_hash(key: str) -> int:
    """8 bytes, the same in every process."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())


def with_equal_hashes(hashes: Iterable[tuple[int, int]]) -> list[int]:
    """The numbers, in order, of those whose hash another has too.

    Memory is for these and for one part of the others: they wait in a temporary file, 16 bytes each.

    Args:
      hashes: numbers, increasing, each with 8 bytes of hash.
    """
    found: list[np.ndarray] = []
    with tempfile.TemporaryFile() as file:
        count = 0
        for block in _blocks(hashes):
            file.write(block.tobytes())
            count += len(block)
        parts = -(-count // _AT_ONCE)
        for part in range(parts):
            file.seek(0)
            ours = []
            while content := file.read(16 * _READ):
                block = np.frombuffer(content, np.uint64).reshape(-1, 2)
                ours.append(block[block[:, 1] % np.uint64(parts) == part])
            pairs = np.concatenate(ours)
            values, counts = np.unique(pairs[:, 1], return_counts=True)
            found.append(pairs[np.isin(pairs[:, 1], values[counts > 1]), 0])
    return np.sort(np.concatenate(found)).tolist() if found else []


def _blocks(hashes: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """[n, 2] uint64 at a time."""
    block = array("Q")
    for pair in hashes:
        block.extend(pair)
        if len(block) == 2 * _READ:
            yield np.array(block, np.uint64).reshape(-1, 2)
            del block[:]
    if block:
        yield np.array(block, np.uint64).reshape(-1, 2)
