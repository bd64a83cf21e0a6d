"""Records to batches: a random-access Grain pipeline whose position is one number, the step.

Batch s is a pure function of (seed, s): every host takes its own rows of the same global batch, so
a run can stop anywhere, on any number of hosts, and go on with nothing repeated or skipped.
"""

import hashlib
from collections.abc import Sequence

import grain
import numpy as np
from etils import epath

from jepa_jax.config import Config, DataConfig, DatasetConfig
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.examples import MakeExample, join, pair_odds
from jepa_jax.data.features import FeatureSource
from jepa_jax.data.lengths import bucket_of_records
from jepa_jax.data.mixing import Group, groups
from jepa_jax.data.records import BadRecordError, Limits, Source
from jepa_jax.data.sources import open_source

# Records that are looked at for a pair to draw before a run starts.
_LOOKED_AT = 100
# As good as endless. Of Grain's own last index a batch of one row makes a length that no integer holds.
END = 2**62


def open_sources(data: DataConfig, bad: BadRecords) -> list[Source]:
    """All datasets of a run, in the mixture's order.

    Raises:
      ValueError: one of them is not to be had.
      TooManyBadRecordsError: what was left out of one exceeds `data.max_bad_fraction`.
    """
    found = []
    for dataset in data.datasets:
        source = open_source(dataset, Limits.of(data))
        bad.opened(dataset.label, len(source) + len(source.skipped), source.skipped)
        found.append(source)
    return found


def identity(sources: Sequence[Source]) -> str:
    """A hash that changes when any record of the sources does."""
    names = "\n".join(source.identity for source in sources)
    return hashlib.sha256(names.encode(errors="backslashreplace")).hexdigest()[:24]


def check_pairs(source: Source, dataset: DatasetConfig) -> None:
    """A mistake in the weights comes out now, not in a thread.

    Raises:
      ValueError: none of the kinds of pair that the first records have has odds.
    """
    kinds: set[str] = set()
    for i in range(min(len(source), _LOOKED_AT)):
        try:
            pairs = source.pairs(i)
            kinds |= {pair.kind for pair in pairs}
            pair_odds(pairs, dataset, "")
            return
        except BadRecordError:
            continue
    if kinds:
        raise ValueError(
            f"pair_weights={dataset.pair_weights} gives no odds to any kind of pair that the first records "
            f"of {dataset.label} have, {', '.join(map(repr, sorted(kinds)))}: name these, or set it to ()"
        )


def _of_group(
    config: Config, group: Group, sources: Sequence[Source], tokenizers, features, hosts: tuple[int, int]
) -> grain.MapDataset:
    """The endless batches of one shape, this host's rows of them."""
    parts = []
    for part in group.parts:
        dataset = config.data.datasets[part.dataset]
        lengths = config.data.length_buckets[group.bucket]
        example = MakeExample(
            config, dataset, sources[part.dataset], part.index, tokenizers, features, lengths
        )
        # Every dataset of every bucket has an order and random numbers of its own.
        seed = (config.seed + group.bucket + 7919 * part.dataset) % 2**32
        records = grain.MapDataset.source(part.index).seed(seed)
        parts.append(records.shuffle().repeat().random_map(example))
    mixed = parts[0]
    if len(parts) > 1:
        mixed = grain.MapDataset.mix(parts, weights=[part.share for part in group.parts])
    # Cut into the hosts' shares last: random numbers come from the place in the global order.
    process_index, process_count = hosts
    rows = config.batch_size // process_count
    return mixed[process_index:END:process_count].batch(rows, batch_fn=join)


def batches(
    config: Config,
    sources: Sequence[Source],
    tokenizers,
    *,
    bad: BadRecords | None = None,
    cache: epath.Path | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """The endless training batches; element s is this host's rows of global batch s.

    All of a global batch has one number of frames and comes from one length bucket. Which ones is a
    function of s alone, each as often as it has clips, so that no host has to ask another and shapes
    agree everywhere. Inside it the datasets are mixed record by record, by weight (Grain's weights are
    whole numbers: the shares are right to a hundredth of themselves).

    Args:
      sources: of `open_sources`.
      bad: is told of records whose texts cannot be used.
      cache: the folder for what is known of the texts' lengths.

    Returns:
      A MapDataset of `HostBatch`. Its `arrays` are `frames` [B, T, H, W, C] uint8, or, with
      `data.features`, `visual` [B, N, D] bfloat16; `query` and `target` [B * Q, L] int32 with
      `query_mask` and `target_mask` bool; `target_id` [B * Q] int32. Q is `pairs_per_clip`; the pairs
      of a clip stand side by side.

    Raises:
      ValueError: the batch does not divide over the hosts, a source is empty, or its pairs have no odds.
      TooManyBadRecordsError: more records than `data.max_bad_fraction` have unusable texts.
    """
    data = config.data
    if config.batch_size % process_count:
        raise ValueError(f"batch_size={config.batch_size} is not a multiple of the {process_count} hosts")
    bad = BadRecords(data.max_bad_fraction) if bad is None else bad
    # What opens a cache checks that it is this source's, so it comes before the lengths.
    features = FeatureSource(data.features, sources[0]) if data.features else None
    assigned: list[np.ndarray | range] = []
    for source, dataset in zip(sources, data.datasets, strict=True):
        if not len(source):
            raise ValueError(f"{dataset.label} has no records")
        check_pairs(source, dataset)
        if len(data.length_buckets) == 1:
            assigned.append(range(len(source)))
            continue
        found, wrong = bucket_of_records(
            source, dataset, tokenizers, data.length_buckets, Limits.of(data), cache
        )
        bad.opened(dataset.label, len(source), wrong)
        if not (found >= 0).any():
            raise ValueError(f"{dataset.label} has no record that can be used")
        assigned.append(found)
    found = groups(data.datasets, assigned)
    hosts = (process_index, process_count)
    parts = [_of_group(config, group, sources, tokenizers, features, hosts) for group in found]
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.mix(parts, weights=[group.share for group in found])
