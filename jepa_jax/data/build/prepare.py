"""A source's record, validated, with its media's bytes."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from jepa_jax.data.build.spans import cut_span
from jepa_jax.data.records import BadRecordError, Limits, Media, Record, Source

# `check(media, name=...)` raises BadRecordError for media, of a record of that name, that cannot be decoded.
Check = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Makes a source's record ready to be stored.

    Attributes:
      check: None to believe the media as they are.
    """

    source: Source
    limits: Limits
    check: Check | None

    def __call__(self, index: int) -> tuple[Record, str]:
        """The record with its media's bytes; and, if it is a span, whether it was "cut" or "kept whole".

        Raises:
          BadRecordError: it cannot be used.
        """
        record = self.source[index]
        _check_texts(record, self.limits)
        media, span = record.media, ""
        if media.kind in ("auto", "video") and (media.start is not None or media.end is not None):
            cut = _existing(media, record.name, lambda m: cut_span(m, self.limits.max_media_bytes))
            media, span = (media, "kept whole") if cut is None else (cut, "cut")
        size = _existing(media, record.name, media_size)
        if not size:
            raise BadRecordError("media empty", record.name)
        if size > self.limits.max_media_bytes:
            raise BadRecordError("media too large", record.name, f"{size} bytes")
        media = _existing(media, record.name, _read)
        if self.check is not None:
            self.check(media, name=record.name)
        return dataclasses.replace(record, media=media, metadata=_plain(record)), span


def _check_texts(record: Record, limits: Limits) -> None:
    if not record.pairs:
        raise BadRecordError("text empty", record.name, "it has no pairs")
    for pair in record.pairs:
        if not pair.targets or not all(target.strip() for target in pair.targets):
            raise BadRecordError("text empty", record.name, f"a target of the query {pair.query[:50]!r}")
        for text in (pair.query, *pair.targets):
            if len(text) > limits.max_text_characters:
                raise BadRecordError("text too long", record.name, f"{len(text)} characters")
        # A name may be a file's, which need not be UTF-8.
        for text in (record.name, pair.kind, pair.query, *pair.targets):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadRecordError("text not UTF-8", record.name, str(error)[:100]) from error


def _plain(record: Record) -> dict[str, Any]:
    """What else the source says of a record, as it comes back out of JSON: what that has no form for, such as
    bytes and dates, which a Parquet table's `key` may be, is text."""
    try:
        return json.loads(json.dumps(dict(record.metadata), default=_text_of_other))
    except RecursionError as error:
        raise BadRecordError("line not readable", record.name, "a field is nested too deep") from error


def _text_of_other(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _existing(media: Media, name: str, function: Callable[[Media], Any]) -> Any:
    try:
        return function(media)
    except OSError as error:
        raise BadRecordError("media missing", name, f"{type(error).__name__}: {error.strerror}") from error


def media_size(media: Media) -> int:
    """Bytes of media; of a file, without reading it."""
    if isinstance(media.content, np.ndarray):
        return media.content.nbytes
    return len(media.content) if isinstance(media.content, bytes) else media.content.stat().length


def _read(media: Media) -> Media:
    if isinstance(media.content, bytes | np.ndarray):
        return media
    return dataclasses.replace(media, content=media.content.read_bytes())


def rows_of(source: Source, index: int) -> list[tuple[str, str]]:
    """A record's texts: a (query, target) for every target, in order; none if it cannot be read."""
    try:
        pairs = source.pairs(index)
    except BadRecordError:
        return []  # told of when the record itself is read
    return [(pair.query, target) for pair in pairs for target in pair.targets]
