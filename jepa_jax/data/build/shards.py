"""Writes one shard: its records read, validated, cut and stored, one at a time."""

import copy
import dataclasses
import json
import logging
import time

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from jepa_jax.data import schema
from jepa_jax.data.build.duplicates import kept_texts
from jepa_jax.data.build.layout import Split, replacing, write_json
from jepa_jax.data.build.prepare import Prepare
from jepa_jax.data.build.tally import Tally
from jepa_jax.data.records import BadRecordError, Pair, Record

logger = logging.getLogger(__name__)

# One record a group, so that each can be read alone.
_WRITER = "group_size:1"


def only(pairs: tuple[Pair, ...], kept: np.ndarray) -> tuple[Pair, ...]:
    """Pairs without some of their targets, and without those that have none left.

    Args:
      kept: [targets] bool, for every target of every pair, in order.
    """
    marks = iter(kept.tolist())
    left = (dataclasses.replace(p, targets=tuple(t for t in p.targets if next(marks))) for p in pairs)
    return tuple(pair for pair in left if pair.targets)


class Selection:
    """Which of a shard's records and texts are kept, by what was found of all of them before."""

    def __init__(self, split: Split, shard: int):
        records, count = split.state(shard, "records.npy"), len(split.indices(shard))
        self._records = np.load(records) if records.exists() else np.ones(count, bool)
        self._texts = kept_texts(split, shard)

    def removed(self, place: int) -> str | None:
        """Why the record at a place in the shard is not wanted; None if it is."""
        if self._texts is not None and len(self._texts[place]) and not self._texts[place].any():
            return "records of duplicate texts"
        return None if self._records[place] else "records of large clusters"

    def pairs(self, place: int, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Those of its pairs that are."""
        return pairs if self._texts is None else only(pairs, self._texts[place])


@dataclasses.dataclass(frozen=True)
class WriteShard:
    """Writes shards of a split, each to a pure function of the source's records in it."""

    split: Split
    prepare: Prepare

    def __call__(self, shard: int) -> None:
        """Write one, unless it is finished: records, texts, what is left out, and last a summary."""
        split, folder = self.split, self.split.folder
        if split.finished(shard):
            return
        begin = time.perf_counter()
        places = split.shard(shard), split.texts(shard), split.state(shard, "left_out.jsonl")
        with (
            replacing(places[0], folder) as records,
            replacing(places[1], folder) as texts,
            replacing(places[2], folder) as left_out,
        ):
            tally = self._write(shard, records, texts, left_out)
            sizes = [records.stat().st_size, texts.stat().st_size]
        write_json(split.state(shard, "json"), tally.to_json() | {"sizes": sizes}, folder)
        logger.info(
            "%s shard %d of %d: %d records, %d left out, in %.1f s",
            split.name,
            shard + 1,
            split.shards,
            tally.written["records"],
            tally.left_out.total(),
            time.perf_counter() - begin,
        )

    def _write(self, shard: int, records, texts, left_out) -> Tally:
        tally, selection = Tally(), Selection(self.split, shard)
        # What a source opens for this shard goes with the copy.
        prepare = dataclasses.replace(self.prepare, source=copy.copy(self.prepare.source))
        files = ArrayRecordWriter(str(records), _WRITER), ArrayRecordWriter(str(texts), _WRITER)
        with left_out.open("w", encoding="utf-8", errors="backslashreplace") as bad:
            for place, index in enumerate(self.split.indices(shard)):
                if reason := selection.removed(place):
                    tally.removed[reason] += 1
                    continue
                try:
                    record, span = prepare(index)
                except BadRecordError as error:
                    tally.left_out[error.cause] += 1
                    bad.write(line_of(error, self.split.name))
                    continue
                found = dataclasses.replace(record, pairs=selection.pairs(place, record.pairs))
                tally.removed["texts"] += _targets(record) - _targets(found)
                stored = schema.serialize(found)
                files[0].write(stored)
                files[1].write(schema.texts_to_bytes(found))
                tally.add(found, len(stored), videos=prepare.check is not None)
                if span:
                    tally.spans[span] += 1
        for file in files:
            file.close()
        return tally


def _targets(record: Record) -> int:
    return sum(len(pair.targets) for pair in record.pairs)


def line_of(error: BadRecordError, split: str) -> str:
    """A record that was left out, as a line of left_out.jsonl; what is not UTF-8 in it `backslashreplace`
    turns into JSON's own escapes."""
    line = {"name": error.name, "cause": error.cause, "detail": error.detail, "split": split}
    return json.dumps(line, ensure_ascii=False) + "\n"
