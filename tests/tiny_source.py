"""A source of records in memory, with faults to order."""

import dataclasses
import os
import pathlib
import signal

import numpy as np

from jepa_jax.data.records import BadRecordError, Limits, Media, Pair, Record

LIMITS = Limits(max_pixels=2**20, max_media_bytes=2**16, max_text_characters=53)


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """A record for each element of `texts`: its pairs' (query, target) strings.

    Attributes:
      faults: the causes of records that cannot be read, by their places.
      media: in place of small frames.
      kill: at which record the process is killed, once.
      armed: the folder whose shards must be begun for that.
    """

    texts: tuple[tuple[tuple[str, str], ...], ...]
    faults: dict[int, str] = dataclasses.field(default_factory=dict)
    media: tuple[Media, ...] = ()
    kill: int | None = None
    armed: pathlib.Path | None = None
    skipped: tuple[BadRecordError, ...] = ()
    identity: str = "in memory"

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Record:
        if (
            index == self.kill
            and list(self.armed.glob(".build/*.tmp"))
            and not (self.armed.parent / "killed").exists()
        ):
            (self.armed.parent / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.faults:
            raise BadRecordError(self.faults[index], self.name(index), "to order")
        media = self.media[index] if self.media else Media(content=frames(index), kind="frames")
        return Record(name=self.name(index), media=media, pairs=self.pairs(index), metadata={"index": index})

    def pairs(self, index: int) -> tuple[Pair, ...]:
        return tuple(Pair(query=query, targets=(target,)) for query, target in self.texts[index])

    def name(self, index: int) -> str:
        return f"record {index}"


def frames(index: int) -> np.ndarray:
    """[T, H, W, C] uint8, others for every index."""
    return np.random.default_rng(index).integers(0, 256, (2, 3, 5, 3), np.uint8)


def captions(*texts: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """A record of one caption for each text."""
    return tuple((("", text),) for text in texts)
