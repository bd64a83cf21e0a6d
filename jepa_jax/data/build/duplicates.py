"""Equal texts are found by 8-byte hashes of them; of several the first stays."""

import dataclasses
import hashlib
import unicodedata

import numpy as np

from jepa_jax.data.build.layout import Split, replacing
from jepa_jax.data.build.prepare import rows_of
from jepa_jax.data.records import Source

# So many hashes are compared at a time, about 24 bytes each; of the others one byte each is in memory.
_AT_ONCE = 2**18


def normalise(text: str) -> str:
    """What two texts have in common that differ in case, spaces or Unicode's ways to write the same."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_hash(query: str, target: str) -> int:
    """8 bytes that are equal for equal texts. Of 100 million different ones, two share a hash in one
    data set of 3,700."""
    words = f"{normalise(query)}\0{normalise(target)}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def save(path, array: np.ndarray, split: Split) -> None:
    """An array in a file, whole or not at all."""
    with replacing(path, split.folder) as temporary, temporary.open("wb") as file:
        np.save(file, array)


@dataclasses.dataclass(frozen=True)
class HashTexts:
    """Writes the hashes of all texts of a shard's records, and how many each record has."""

    split: Split
    source: Source

    def __call__(self, shard: int) -> None:
        hashes = self.split.state(shard, "hashes.npy")
        if hashes.exists():
            return
        rows = [rows_of(self.source, index) for index in self.split.indices(shard)]
        counts = np.array([len(row) for row in rows], np.int32)
        save(self.split.state(shard, "counts.npy"), counts, self.split)
        found = np.array([text_hash(*texts) for row in rows for texts in row], np.uint64)
        save(hashes, found, self.split)


def kept_texts(split: Split, shard: int) -> list[np.ndarray] | None:
    """Which texts of each of a shard's records are the first of their like; None if that was not asked."""
    texts = split.state(shard, "texts.npy")
    if not texts.exists():
        return None
    return np.split(np.load(texts), np.cumsum(np.load(split.state(shard, "counts.npy")))[:-1])


def mark_duplicates(split: Split) -> None:
    """Write for every text of every shard whether it is the first of its like: the one with the lowest
    place in the source, and in its record.

    Memory is 1 byte a text, and 24 for each of those that are compared at a time.
    """
    shards = range(split.shards)
    if all(split.state(shard, "texts.npy").exists() for shard in shards):
        return
    sizes = [len(np.load(split.state(shard, "hashes.npy"), mmap_mode="r")) for shard in shards]
    ends = np.cumsum(sizes)
    first = np.ones(ends[-1], bool)
    parts = -(-int(ends[-1]) // _AT_ONCE)
    for part in range(parts):
        hashes, places = [], []
        for shard in shards:
            found = np.load(split.state(shard, "hashes.npy"))
            inside = np.flatnonzero(found % np.uint64(parts) == part)
            hashes.append(found[inside])
            places.append(inside + ends[shard] - sizes[shard])
        hashes, places = np.concatenate(hashes), np.concatenate(places)
        # A stable sort leaves the lowest place first among equals.
        order = np.argsort(hashes, kind="stable")
        equal = hashes[order[1:]] == hashes[order[:-1]]
        first[places[order[1:][equal]]] = False
    for shard, kept in zip(shards, np.split(first, ends[:-1]), strict=True):
        save(split.state(shard, "texts.npy"), kept, split)
