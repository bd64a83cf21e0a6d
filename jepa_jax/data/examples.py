"""A record to an example: pairs drawn and tokenised, frames sampled and cropped."""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from jepa_jax.config import Config, DatasetConfig
from jepa_jax.data.bad_records import UNWANTED, TooManyBadRecordsError, by_cause
from jepa_jax.data.decode import read_frames
from jepa_jax.data.preprocess import shift
from jepa_jax.data.records import BadRecordError, Limits, Pair, Record, Source
from jepa_jax.data.tokenizer import UnknownTokenError

# Records in a row that may be unusable before the run is given up.
TRIES = 100


class Example(NamedTuple):
    """A clip's arrays, and the records that were tried before it in vain."""

    arrays: dict[str, np.ndarray]
    bad: tuple[BadRecordError, ...]


class HostBatch(NamedTuple):
    """A host's rows of a global batch, and what reading them met: records tried, those left out."""

    arrays: dict[str, np.ndarray]
    records: int
    bad: tuple[BadRecordError, ...]


def target_id(tokens: np.ndarray, mask: np.ndarray) -> np.int32:
    """An id equal for equal tokens, [L] int32 and [L] bool, the same on every host and in every run and
    however far they are padded.

    Texts that the Y-Encoder cannot tell apart, for they differ beyond the cut or in letters that its
    vocabulary does not know, are one target. It is a 32-bit hash: in a batch of 24,576 one pair of
    different targets in 4e9 shares an id.
    """
    return np.uint32(zlib.crc32(tokens[mask].astype("<i4").tobytes())).view(np.int32)


def pair_odds(pairs: Sequence[Pair], dataset: DatasetConfig, name: str) -> np.ndarray:
    """The odds of drawing each of a record's pairs, summing to 1: [pairs] float.

    Raises:
      BadRecordError: none may be drawn, or the odds of one are below 0 or no number.
    """
    weights = dict(dataset.pair_weights)
    odds = np.array([pair.weight * (weights.get(pair.kind, 0.0) if weights else 1.0) for pair in pairs])
    if not odds.any():
        kinds = ", ".join(sorted({pair.kind for pair in pairs}))
        raise BadRecordError(UNWANTED, name, f"kinds: {kinds}")
    if not (odds >= 0).all() or not np.isfinite(odds.sum()):
        raise BadRecordError(UNWANTED, name, f"weights: {', '.join(f'{pair.weight:g}' for pair in pairs)}")
    return odds / odds.sum()


def with_template(template: str, query: str) -> str:
    """A template filled in; a query may itself hold braces."""
    return template.replace("{query}", query)


def possible_targets(pair: Pair, dataset: DatasetConfig) -> tuple[str, ...]:
    """The texts of which one is learnt."""
    if dataset.target == "first":
        return pair.targets[:1]
    if dataset.target == "longest":
        return (max(pair.targets, key=len),)
    return pair.targets


def draw_one(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options; without a choice no number is drawn."""
    return options[int(rng.integers(len(options)))] if len(options) > 1 else options[0]


def draw_by_odds(rng: np.random.Generator, odds: np.ndarray, count: int) -> np.ndarray:
    """Places of `count` of the odds, none twice unless too few are above zero: [count] int."""
    if count > np.count_nonzero(odds):
        return rng.choice(len(odds), count, p=odds)
    # The first to arrive of exponential waiting times at these rates are drawn one after the other, each
    # by the odds of those left: `Generator.choice` does it in 15 times the time.
    with np.errstate(divide="ignore"):
        return np.argsort(rng.standard_exponential(len(odds)) / odds)[:count]


@contextlib.contextmanager
def texts_of(name: str) -> Iterator[None]:
    """That the model's table lacks a token of a text is the error of this record: Gemma 3's tokenizer has one
    that its text models lack, and anybody may write it into a caption."""
    try:
        yield
    except UnknownTokenError as error:
        raise BadRecordError("text not in the vocabulary", name, str(error)[:200]) from error


class Drawn(grain.transforms.RandomMap):
    """Index of a record to `Example`, by a subclass's `make`.

    A record that cannot be used is replaced by another of the same dataset, drawn by the same random
    numbers: which one depends on (seed, place) alone. Where all of its length bucket seem unusable, it
    is one of any bucket, whose texts are cut or padded to this one's lengths.

    Args:
      index: the records of the bucket.
    """

    def __init__(self, dataset: DatasetConfig, source: Source, index: Sequence[int]):
        self.dataset = dataset
        self.source = source
        self._index = index

    def make(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A record's arrays. Raises BadRecordError."""
        raise NotImplementedError

    def random_map(self, index: int, rng: np.random.Generator) -> Example:
        """Raises TooManyBadRecordsError: `TRIES` records in a row cannot be used."""
        bad: list[BadRecordError] = []
        tried = set()
        others = self._index
        while len(bad) < TRIES:
            try:
                return Example(self.make(int(index), rng), tuple(bad))
            except BadRecordError as error:
                bad.append(error.with_traceback(None))
            tried.add(int(index))
            if len(tried) == len(self._index) or len(bad) == TRIES // 2:
                others = range(len(self.source))
            index = others[int(rng.integers(len(others)))]
        raise TooManyBadRecordsError(
            f"{TRIES} records of {self.dataset.label} in a row cannot be used: {by_cause(bad)}"
        )


class MakeExample(Drawn):
    """Q of a record's pairs, drawn by weight; frames or visual tokens.

    Args:
      features: has `visual(index)`, [N, D] bfloat16, in place of frames; or None.
      lengths: of query and target, in tokens.
    """

    def __init__(
        self,
        config: Config,
        dataset: DatasetConfig,
        source: Source,
        index: Sequence[int],
        tokenizers,
        features,
        lengths: tuple[int, int],
    ):
        super().__init__(dataset, source, index)
        self._tokenizers = tokenizers
        self._features = features
        self._lengths = lengths
        self._count = config.data.pairs_per_clip
        self._max_shift = config.data.max_shift
        self._limits = Limits.of(config.data)
        self._size = {"resize": config.data.resize, "crop": config.model.x_encoder.image_size}

    def make(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # Before anything is drawn: a record whose media cannot be read takes no random numbers, so that a
        # run from a cache has the examples of a run from frames.
        if self._features is None:
            record = self.source[index]
            name, pairs = record.name, record.pairs
            seen = {"frames": self._frames(record, rng)}
        else:
            name, pairs = self.source.name(index), self.source.pairs(index)
            seen = {"visual": self._features.visual(index)}
        return {**seen, **self._texts(pairs, name, rng)}

    def _frames(self, record: Record, rng: np.random.Generator) -> np.ndarray:
        random_span = {"rng": rng} if self.dataset.span == "random" else {}
        frames = read_frames(
            record.media,
            self.dataset.frames,
            **self._size,
            name=record.name,
            limits=self._limits,
            **random_span,
        )
        if not self._max_shift:
            return frames
        return shift(frames, *rng.integers(-self._max_shift, self._max_shift, size=2, endpoint=True))

    def _texts(self, pairs: Sequence[Pair], name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        odds = pair_odds(pairs, self.dataset, name)
        drawn = [pairs[i] for i in draw_by_odds(rng, odds, self._count)]
        templates = self.dataset.query_templates
        queries = [with_template(draw_one(rng, templates), pair.query) for pair in drawn]
        targets = [draw_one(rng, possible_targets(pair, self.dataset)) for pair in drawn]
        with texts_of(name):
            query_ids, query_mask = self._tokenizers[0].batch(queries, self._lengths[0])
            target, target_mask = self._tokenizers[1].batch(targets, self._lengths[1])
        return {
            "query": query_ids,
            "query_mask": query_mask,
            "target": target,
            "target_mask": target_mask,
            "target_id": np.array([target_id(*row) for row in zip(target, target_mask, strict=True)]),
        }


def join(examples: Sequence[Example]) -> HostBatch:
    """Examples to a batch: [B, ...] of clips, [B * Q, ...] of texts, the pairs of a clip side by side."""
    per_clip = ("frames", "visual")
    arrays = {
        name: (np.stack if name in per_clip else np.concatenate)([e.arrays[name] for e in examples])
        for name in examples[0].arrays
    }
    bad = tuple(error for example in examples for error in example.bad)
    return HostBatch(arrays, len(examples) + len(bad), bad)
