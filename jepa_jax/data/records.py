"""A record: media, and what is asked and said of it. Every source of data gives these."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from etils import epath

from jepa_jax.config import DataConfig
from jepa_jax.errors import printable

# Why a record is left out, in the words of logs and reports.
CAUSES = (
    "media missing",
    "media outside its folder",
    "media empty",
    "media not decodable",
    "media truncated",
    "no video stream",
    "no frames",
    "media too large",
    "span outside the media",
    "text not UTF-8",
    "text empty",
    "text too long",
    "line not readable",
    "key not unique",
    "archive damaged",
    "no pair to draw",
    "text not in the vocabulary",
)


class BadRecordError(ValueError):
    """A record that cannot be used.

    Attributes:
      cause: one of `CAUSES`.
      name: of the record: a path, a key, or both.
      detail: what was found, in a few words.
    """

    def __init__(self, cause: str, name: str, detail: str = ""):
        if cause not in CAUSES:
            raise ValueError(f"{cause!r} is none of the causes {CAUSES}")
        # All in `args`, so that it survives the way from a worker process.
        super().__init__(cause, name, detail)
        self.cause, self.name, self.detail = cause, name, detail

    def __str__(self) -> str:
        return printable(f"{self.name}: {self.cause}" + (f" ({self.detail})" if self.detail else ""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A query and the texts that answer it.

    Attributes:
      query: "" for a plain caption.
      targets: at least one; all are right answers.
      kind: what sort of question it is, for `data.pair_weights`.
      weight: odds of being drawn, relative to the record's other pairs.

    Raises:
      ValueError: `targets` is one text, whose letters would be learnt.
    """

    query: str
    targets: tuple[str, ...]
    kind: str = ""
    weight: float = 1.0

    def __post_init__(self):
        if isinstance(self.targets, str | bytes):
            raise ValueError(f"the targets of a pair are one text, {self.targets!r}: put it into a tuple")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """An image, a video, or a span of one, still encoded.

    Attributes:
      kind: "auto" lets the content decide; "frames" is decoded already.
      content: the file's bytes, its path, or [T, H, W, C] uint8 RGB frames.
      start, end: of the span, in seconds from the video's beginning; None for its ends.
    """

    content: bytes | epath.Path | np.ndarray
    kind: Literal["auto", "image", "video", "frames"] = "auto"
    start: float | None = None
    end: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Media with its pairs.

    Attributes:
      name: where it is from, for logs: unique in its source and the same in every run.
      metadata: whatever else the source says of it, plain enough for JSON.
    """

    name: str
    media: Media
    pairs: tuple[Pair, ...]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a record may cost, whatever it claims: pixels of a frame, bytes of its media as stored and
    as expanded, characters of a text. They are fields of `DataConfig`.

    Attributes:
      needs_text: whether a record without a text is bad, and a source without one is refused.
    """

    max_pixels: int
    max_media_bytes: int
    max_text_characters: int
    needs_text: ClassVar[bool] = True

    @classmethod
    def of(cls, data: DataConfig) -> "Limits":
        """A run's."""
        return cls(**{field.name: getattr(data, field.name) for field in dataclasses.fields(cls)})


class TextOptional(Limits):
    """The same where media are all that is needed: what has no text is a record without pairs."""

    needs_text: ClassVar[bool] = False


class Source(Protocol):
    """Random access to records. Workers get copies by pickle: it holds no open files.

    Attributes:
      identity: a text that changes when the records do: names, versions, sizes, not their place on disk.
      skipped: what was left out while the source was opened (lines that do not parse, keys that stand
        twice), each with its cause; such records are not counted in the length.
    """

    identity: str
    skipped: tuple[BadRecordError, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raises BadRecordError for a record that cannot be used."""

    def pairs(self, index: int) -> tuple[Pair, ...]:
        """The record's pairs; its media are not read where they stand apart. Raises as `[index]`."""

    def name(self, index: int) -> str:
        """The record's name, without reading its media."""
