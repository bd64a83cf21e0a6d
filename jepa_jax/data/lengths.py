"""Which length bucket a record belongs to, told from its texts alone, once, and kept on disk."""

import dataclasses
import hashlib
import io
import json
import logging
import zipfile
import zlib
from collections.abc import Iterable, Sequence

import grain
import numpy as np
from etils import epath
from tqdm import tqdm

from jepa_jax.config import DatasetConfig
from jepa_jax.data.examples import pair_odds, possible_targets, with_template
from jepa_jax.data.records import BadRecordError, Limits, Source
from jepa_jax.places import write_whole

logger = logging.getLogger(__name__)

# Texts are waited for, not computed: on a remote store, more threads than cores.
_THREADS, _CHUNK = 16, 256
LEFT_OUT = -1
Buckets = tuple[tuple[int, int], ...]
# What NumPy, zipfile and zlib make of a damaged file.
_DAMAGE = OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error


def _key(source: Source, dataset: DatasetConfig, tokenizers, buckets: Buckets, limits: Limits) -> str:
    """A name that changes when any length could."""
    parts = [
        source.identity,
        *(tokenizer.identity for tokenizer in tokenizers),
        buckets,
        dataset.query_templates,
        dataset.target,
        sorted(kind for kind, _ in dataset.pair_weights),
        dataclasses.asdict(limits),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


class _Texts:
    """Reads the possible queries and targets of a chunk of records; an error where it is a bad one."""

    def __init__(self, source: Source, dataset: DatasetConfig):
        self._source = source
        self._dataset = dataset

    def __call__(self, chunk: int) -> list[tuple[list[str], list[str]] | BadRecordError]:
        start = chunk * _CHUNK
        return [self._read(i) for i in range(start, min(start + _CHUNK, len(self._source)))]

    def _read(self, index: int) -> tuple[list[str], list[str]] | BadRecordError:
        try:
            pairs = self._source.pairs(index)
            odds = pair_odds(pairs, self._dataset, self._source.name(index))
        except BadRecordError as error:
            return error.with_traceback(None)
        pairs = [pair for pair, odd in zip(pairs, odds, strict=True) if odd]
        templates = self._dataset.query_templates
        queries = {with_template(template, pair.query) for pair in pairs for template in templates}
        targets = {text for pair in pairs for text in possible_targets(pair, self._dataset)}
        return list(queries), list(targets)


def _longest(tokenizer, texts: Sequence[Iterable[str]]) -> np.ndarray:
    """Tokens of the longest of each record's texts: [records] int."""
    different = list({text: None for found in texts for text in found})
    counts = dict(zip(different, tokenizer.counts(different), strict=True))
    return np.array([max(counts[text] for text in found) for found in texts])


def _measure(source: Source, dataset: DatasetConfig, tokenizers, buckets: Buckets):
    """(bucket of each record, what is wrong with those left out)."""
    assigned = np.full(len(source), LEFT_OUT, np.int16)
    bad: list[BadRecordError] = []
    chunks = -(-len(source) // _CHUNK)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=4 * _THREADS)
    read = iter(grain.MapDataset.range(chunks).map(_Texts(source, dataset)).to_iter_dataset(options))
    # The line comes only where it takes longer than a few seconds.
    with tqdm(total=len(source), unit="record", desc=f"text lengths of {dataset.label}", delay=3) as bar:
        for chunk, found in enumerate(read):
            bad += [x for x in found if isinstance(x, BadRecordError)]
            good = [i for i, x in enumerate(found) if not isinstance(x, BadRecordError)]
            if good:
                query, target = (
                    _longest(tokenizer, [found[i][side] for i in good])
                    for side, tokenizer in enumerate(tokenizers)
                )
                holds = [(query <= q) & (target <= t) for q, t in buckets[:-1]]
                first = np.argmax([*holds, np.full(len(good), True)], axis=0)
                assigned[chunk * _CHUNK + np.array(good)] = first
            bar.update(len(found))
    return assigned, bad


def _load(file: epath.Path, records: int, buckets: int):
    """What `_measure` found before; None where it is not there, or not whole."""
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
            assigned, bad = found["assigned"], found["bad"]
        if assigned.shape != (records,) or assigned.dtype != np.int16:
            raise ValueError(f"{assigned.dtype} {assigned.shape}")
        if records and not LEFT_OUT <= assigned.min() <= assigned.max() < buckets:
            raise ValueError("no such bucket")
        # Earlier runs left an array of texts.
        rows = bad.tolist() if bad.dtype.kind == "U" else json.loads(bad.tobytes())
        return assigned, [BadRecordError(*map(str, row)) for row in rows]
    except _DAMAGE as error:
        logger.warning("%s is not whole (%s): the lengths are measured again", file, error)
        return None


def bucket_of_records(
    source: Source,
    dataset: DatasetConfig,
    tokenizers,
    buckets: Buckets,
    limits: Limits,
    cache: epath.Path | None = None,
) -> tuple[np.ndarray, list[BadRecordError]]:
    """The first length bucket that holds every text a record may give, else the last.

    Args:
      cache: a folder where the answer is kept for the next time; None keeps nothing.

    Returns:
      [records] int16, `LEFT_OUT` for those that cannot be used; and what is wrong with these.
    """
    file = None
    if cache is not None:
        file = cache / f"lengths-{_key(source, dataset, tokenizers, buckets, limits)}.npz"
        known = _load(file, len(source), len(buckets))
        if known is not None:
            return known
    assigned, bad = _measure(source, dataset, tokenizers, buckets)
    if file is not None:
        # As JSON: in an array of texts each takes the room of the longest.
        rows = json.dumps([(e.cause, e.name, e.detail) for e in bad]).encode()
        content = io.BytesIO()
        np.savez_compressed(content, assigned=assigned, bad=np.frombuffer(rows, np.uint8))
        try:
            cache.mkdir(parents=True, exist_ok=True)
            write_whole(file, content.getvalue())
        except Exception as error:  # each store has errors of its own
            logger.warning("%s could not be written, the lengths will be measured again: %s", file, error)
    return assigned, bad
