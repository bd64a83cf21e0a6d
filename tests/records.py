"""A source of records in memory, some of them bad, which worker processes can open."""

import hashlib

import numpy as np

from jepa_jax.data.records import BadRecordError, Media, Pair, Record


class Records:
    """Keeps `jepa_jax.data.records.Source`; a BadRecordError in a record's place is raised when its media
    are wanted, or its texts too where its cause is the text's."""

    def __init__(self, records: list[Record | BadRecordError], skipped: tuple[BadRecordError, ...] = ()):
        self._records = records
        self.skipped = skipped
        texts = "|".join(f"{r.name} {r.pairs}" if isinstance(r, Record) else str(r) for r in records)
        self.identity = hashlib.sha256(texts.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        if isinstance(record, BadRecordError):
            raise BadRecordError(*record.args)
        return record

    def pairs(self, index: int) -> tuple[Pair, ...]:
        record = self._records[index]
        if isinstance(record, BadRecordError) and not record.cause.startswith("text"):
            return (Pair(query="what is it?", targets=("a cat",)),)
        return self[index].pairs

    def name(self, index: int) -> str:
        return self._records[index].name


def record(number: int, *pairs: Pair, frames: int = 8) -> Record:
    """A clip whose pixels tell its number (modulo 256), [.., 0] and the frame, [.., 1]."""
    content = np.full((frames, 32, 32, 3), number % 256, np.uint8)
    content[..., 1] = np.arange(frames)[:, None, None]
    return Record(name=f"clip {number}", media=Media(content=content, kind="frames"), pairs=pairs)


def example(number: int, *, long: bool = False) -> Record:
    """A record of three kinds of pair; with `long`, of long texts."""
    words = "the thing in the clip " * 2 if long else "clip"
    return record(
        number,
        Pair(kind="describe", query=f"describe the {words}", targets=(f"a cat {number}",)),
        Pair(kind="what_is_it", query="what is it?", targets=(f"a dog {number}",)),
        Pair(kind="how_many", query="how many?", targets=("one",)),
    )
