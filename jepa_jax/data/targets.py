"""A run's target texts without its clips: what a Y-Decoder learns to write."""

from collections.abc import Sequence

import grain
import numpy as np

from jepa_jax.config import DataConfig, DatasetConfig, DecoderConfig
from jepa_jax.data.examples import Drawn, draw_one, join, pair_odds, possible_targets, texts_of
from jepa_jax.data.pipeline import END, check_pairs
from jepa_jax.data.records import Source
from jepa_jax.data.tokenizer import Tokenizer


class _MakeTexts(Drawn):
    """Q of a record's targets, drawn by weight."""

    def __init__(
        self,
        data: DataConfig,
        dataset: DatasetConfig,
        source: Source,
        lengths: tuple[int, int],
        tokenizers: tuple[Tokenizer, Tokenizer],
    ):
        super().__init__(dataset, source, range(len(source)))
        self._count = data.pairs_per_clip
        self._lengths = lengths
        self._tokenizers = tokenizers

    def make(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        pairs = self.source.pairs(index)
        name = self.source.name(index)
        odds = pair_odds(pairs, self.dataset, name)
        drawn = rng.choice(len(pairs), self._count, p=odds)
        texts = [draw_one(rng, possible_targets(pairs[i], self.dataset)) for i in drawn]
        with texts_of(name):
            target, target_mask = self._tokenizers[0].batch(texts, self._lengths[0])
            text, text_mask = self._tokenizers[1].batch_to_write(texts, self._lengths[1])
        return {"target": target, "target_mask": target_mask, "text": text, "text_mask": text_mask}


def target_batches(
    decoder: DecoderConfig,
    data: DataConfig,
    sources: Sequence[Source],
    tokenizers: tuple[Tokenizer, Tokenizer],
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The endless training batches of a decoder; element s is this host's rows of global batch s, a
    function of the seed and s alone.

    Args:
      data: the run's, with the decoder's `pair_weights`.
      sources: of `data.datasets`, mixed by their weights.
      tokenizers: the run's for targets, and the decoder's.

    Returns:
      A MapDataset of `HostBatch`. Its `arrays` are `target` [B, L] int32 as the Y-Encoder reads a text
      and `text` [B, L] as the decoder writes it, with `target_mask` and `text_mask` bool.

    Raises:
      ValueError: the batch does not divide over the hosts and a record's texts, a source is empty, or its
        pairs have no odds.
    """
    records, rest = divmod(decoder.batch_size, process_count * data.pairs_per_clip)
    if rest:
        raise ValueError(
            f"batch_size={decoder.batch_size} is not a multiple of {process_count} hosts times "
            f"{data.pairs_per_clip} texts of a record (the run's data.pairs_per_clip)"
        )
    lengths = (data.length_buckets[-1][1], decoder.max_length)
    parts = []
    for number, (source, dataset) in enumerate(zip(sources, data.datasets, strict=True)):
        if not len(source):
            raise ValueError(f"{dataset.label} has no records")
        check_pairs(source, dataset)
        make = _MakeTexts(data, dataset, source, lengths, tokenizers)
        seed = (decoder.seed + 7919 * number) % 2**32
        parts.append(
            grain.MapDataset.source(range(len(source))).seed(seed).shuffle().repeat().random_map(make)
        )
    mixed = parts[0]
    if len(parts) > 1:
        mixed = grain.MapDataset.mix(parts, weights=[dataset.weight for dataset in data.datasets])
    # Neighbours to a host: noise is drawn for a text by its place in the batch, which is then that on one.
    return mixed[:END].batch(records, batch_fn=join)[process_index::process_count]
