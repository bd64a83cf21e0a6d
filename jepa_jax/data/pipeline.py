"""Records to batches: a random-access Grain pipeline whose position is one number, the step.

Batch s is a pure function of (seed, s): every host takes its own rows of the same global batch, so
a run can stop anywhere, on any number of hosts, and go on with nothing repeated or skipped.
"""

import sys
import zlib
from collections.abc import Iterator

import grain
import numpy as np
import tensorflow_datasets as tfds

from jepa_jax.config import Config, DataConfig
from jepa_jax.data.emoji_motion import builder as _registers_the_default_dataset  # noqa: F401
from jepa_jax.data.preprocess import resize_and_crop, sample_frames


def open_source(data: DataConfig, split: str | None = None, *, with_frames: bool = True):
    """A split of a TFDS dataset with random access, built first where it is not there yet.

    Raises:
      ValueError: TFDS knows no such dataset or split.
    """
    try:
        builder = tfds.builder(data.dataset, data_dir=data.data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"data.dataset={data.dataset!r}: no such dataset in TFDS") from error
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # it would write a line a second into a log file
    builder.download_and_prepare()
    split = data.split if split is None else split
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"{data.dataset} has no split {split!r}: it has {known}")
    decoders = None if with_frames else {"frames": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders)


def text(value) -> str:
    """A TFDS string."""
    return value.decode() if isinstance(value, bytes) else str(value)


def text_id(string: str) -> np.int32:
    """An id equal for equal texts, the same on every host and in every run.

    It is a 32-bit hash: in a batch of 24,576 one pair of different texts in 4e9 shares an id.
    """
    return np.uint32(zlib.crc32(string.encode())).view(np.int32)


def pairs_of(record) -> list[tuple[str, str, str]]:
    """The (kind, query, target) triples of a record."""
    pairs = record["pairs"]
    return [
        (text(k), text(q), text(t))
        for k, q, t in zip(pairs["kind"], pairs["query"], pairs["target"], strict=True)
    ]


def pair_odds(pairs: list[tuple[str, str, str]], data: DataConfig) -> np.ndarray:
    """The probability of drawing each of a record's pairs: [pairs] float.

    Raises:
      ValueError: `data.pair_weights` names none of the record's kinds.
    """
    weights = dict(data.pair_weights)
    odds = np.array([weights.get(kind, 0.0) if weights else 1.0 for kind, _, _ in pairs])
    if not odds.any():
        kinds = ", ".join(sorted({kind for kind, _, _ in pairs}))
        raise ValueError(
            f"data.pair_weights={data.pair_weights} gives no odds to any kind of pair that a record has: "
            f"{kinds}"
        )
    return odds / odds.sum()


class _MakeExample(grain.transforms.RandomMap):
    """Record to example: Q of its pairs, drawn by weight; frames sampled and cropped."""

    def __init__(self, data, crop, query_tokenizer, target_tokenizer, lengths):
        self._data = data
        self._crop = crop
        self._tokenizers = (query_tokenizer, target_tokenizer)
        self._lengths = lengths

    def random_map(self, record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pairs = pairs_of(record)
        odds = pair_odds(pairs, self._data)
        count = self._data.pairs_per_clip
        # No pair twice, unless the record has too few.
        repeats = count > np.count_nonzero(odds)
        drawn = [pairs[i] for i in rng.choice(len(pairs), count, replace=repeats, p=odds)]
        queries, targets = [query for _, query, _ in drawn], [target for _, _, target in drawn]
        query_ids, query_mask = self._tokenizers[0].batch(queries, self._lengths[0])
        target_ids, target_mask = self._tokenizers[1].batch(targets, self._lengths[1])
        frames = sample_frames(record["frames"], self._data.frames)
        return {
            "frames": resize_and_crop(frames, self._data.resize, self._crop),
            "query": query_ids,
            "query_mask": query_mask,
            "target": target_ids,
            "target_mask": target_mask,
            "target_id": np.array([text_id(target) for target in targets]),
        }


def _join_pairs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[B, Q, ...] to [B * Q, ...], the pairs of a clip side by side."""
    return {k: v if k == "frames" else v.reshape(-1, *v.shape[2:]) for k, v in batch.items()}


def bucket_of_records(source, tokenizers, buckets: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The first length bucket that holds every pair of a record, else the last: [records] int."""
    if len(buckets) == 1:
        return np.zeros(len(source), int)
    found = np.full(len(source), len(buckets) - 1)
    for i in range(len(source)):
        pairs = pairs_of(source[i])
        longest = (
            max(tokenizers[0].count(query) for _, query, _ in pairs),
            max(tokenizers[1].count(target) for _, _, target in pairs),
        )
        for j, (query_length, target_length) in enumerate(buckets):
            if longest[0] <= query_length and longest[1] <= target_length:
                found[i] = j
                break
    return found


class _Subset(grain.sources.RandomAccessDataSource):
    """The records of a source at the given places."""

    def __init__(self, source, index: np.ndarray):
        self._source = source
        self._index = index

    def __len__(self):
        return len(self._index)

    def __getitem__(self, i):
        return self._source[int(self._index[i])]


def batches(
    config: Config, source, tokenizers, *, texts=None, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset:
    """The endless training batches; element s is this host's rows of global batch s.

    All of a global batch comes from one length bucket. Which one is a function of s alone, each
    as often as it has records, so that no host has to ask another and shapes agree everywhere.

    Returns:
      A MapDataset of dicts: `frames` [B, T, H, W, C] uint8, `query` and `target` [B * Q, L] int32
      with `query_mask` and `target_mask` bool, `target_id` [B * Q] int32. Q is `pairs_per_clip`; the
      pairs of a clip stand side by side.

    Raises:
      ValueError: the batch does not divide over the hosts, or the source is empty.
    """
    if config.batch_size % process_count:
        raise ValueError(f"batch_size={config.batch_size} is not a multiple of the {process_count} hosts")
    if not len(source):
        raise ValueError(f"{config.data.dataset}, split {config.data.split!r}, has no records")
    pair_odds(pairs_of(source[0]), config.data)  # so that a mistake comes out now, not in a thread
    buckets = config.data.length_buckets
    assigned = bucket_of_records(source if texts is None else texts, tokenizers, buckets)
    parts, sizes = [], []
    for j, lengths in enumerate(buckets):
        index = np.flatnonzero(assigned == j)
        if not len(index):
            continue
        dataset = grain.MapDataset.source(_Subset(source, index)).seed(config.seed + j)
        crop = config.model.x_encoder.image_size
        example = _MakeExample(config.data, crop, *tokenizers, lengths)
        # Cut into the hosts' shares last: random numbers come from the place in the global order.
        dataset = dataset.shuffle().repeat().random_map(example)[process_index::process_count]
        parts.append(dataset.batch(config.batch_size // process_count).map(_join_pairs))
        sizes.append(len(index))
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.mix(parts, weights=np.array(sizes) / sum(sizes))


def iterate(dataset: grain.MapDataset, data: DataConfig, state: dict | None) -> Iterator:
    """An iterator with `get_state`, reading ahead in threads, from a saved state or the start."""
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    iterator = iter(dataset.to_iter_dataset(options))
    if state is not None:
        iterator.set_state(state)
    return iterator
