"""A run's target texts without its clips: what a Y-Decoder learns to write."""

import grain
import numpy as np

from jepa_jax.config import DataConfig, DecoderConfig
from jepa_jax.data.pipeline import pair_odds, pairs_of
from jepa_jax.data.tokenizer import Tokenizer


class _MakeTexts(grain.transforms.RandomMap):
    """Record to texts: Q of its targets, drawn by weight."""

    def __init__(self, data: DataConfig, lengths: tuple[int, int], tokenizers: tuple[Tokenizer, Tokenizer]):
        self._data = data
        self._lengths = lengths
        self._tokenizers = tokenizers

    def random_map(self, record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pairs = pairs_of(record)
        odds = pair_odds(pairs, self._data)
        drawn = rng.choice(len(pairs), self._data.pairs_per_clip, p=odds)
        texts = [pairs[i][2] for i in drawn]
        target, target_mask = self._tokenizers[0].batch(texts, self._lengths[0])
        text, text_mask = self._tokenizers[1].batch_to_write(texts, self._lengths[1])
        return {"target": target, "target_mask": target_mask, "text": text, "text_mask": text_mask}


def target_batches(
    decoder: DecoderConfig,
    data: DataConfig,
    source,
    tokenizers: tuple[Tokenizer, Tokenizer],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The endless training batches of a decoder; element s is this host's rows of global batch s, a
    function of the seed and s alone.

    Args:
      data: the run's, with the decoder's `pair_weights`.
      tokenizers: the run's for targets, and the decoder's.

    Returns:
      A MapDataset of dicts: `target` [B, L] int32 as the Y-Encoder reads a text and `text` [B, L] as
      the decoder writes it, with `target_mask` and `text_mask` bool.

    Raises:
      ValueError: the batch does not divide over the hosts and a record's texts, or the source is empty.
    """
    records, rest = divmod(decoder.batch_size, process_count * data.pairs_per_clip)
    if rest:
        raise ValueError(
            f"batch_size={decoder.batch_size} is not a multiple of {process_count} hosts times "
            f"{data.pairs_per_clip} texts of a record (the run's data.pairs_per_clip)"
        )
    if not len(source):
        raise ValueError(f"{data.dataset}, split {data.split!r}, has no records")
    pair_odds(pairs_of(source[0]), data)  # so that a mistake comes out now, not in a thread
    make = _MakeTexts(data, (data.length_buckets[-1][1], decoder.max_length), tokenizers)
    dataset = grain.MapDataset.source(source).seed(decoder.seed).shuffle().repeat().random_map(make)
    join = lambda batch: {name: x.reshape(-1, x.shape[-1]) for name, x in batch.items()}
    return dataset[process_index::process_count].batch(records).map(join)
