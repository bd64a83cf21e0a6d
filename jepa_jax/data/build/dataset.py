"""The whole of a build: passes over the shards of every split, then what describes the dataset."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from jepa_jax.data import schema
from jepa_jax.data.build import report as reports
from jepa_jax.data.build.duplicates import HashTexts, mark_duplicates
from jepa_jax.data.build.layout import (
    INFO,
    REPORT,
    STATE,
    BuildError,
    Split,
    claimed,
    clean_up,
    replacing,
    write_json,
)
from jepa_jax.data.build.prepare import Check, Prepare
from jepa_jax.data.build.shards import WriteShard
from jepa_jax.data.build.tally import Tally
from jepa_jax.data.records import BadRecordError, Limits, Source
from jepa_jax.figures import save_figure

logger = logging.getLogger(__name__)

# Calls a function with each shard's number, anywhere, in any order, more than once if it likes.
Run = Callable[[Callable[[int], None], Sequence[int]], None]
# Records that are looked at first; a shard's size; shards of a small dataset, so that workers share it.
_LOOK, _SHARD_BYTES, _RECORDS_PER_SHARD, _FEW_SHARDS = 32, 2**28, 1000, 16
# Writing a shard takes memory that grows with its records, about 1 kB each.
_MOST_RECORDS = 4_000


class TooManyBadRecordsError(RuntimeError):
    """More records cannot be used than the build allows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a build does with the records.

    Attributes:
      limits: what a record may cost.
      shards: files of each split; None chooses by the records.
      not_decoded: why media are not decoded to see that they can be; "" where they are.
      remove_duplicate_texts: of equal texts the first stays.
      rebalance: into how many clusters records are grouped by their texts; None for as they are.
      cluster_size: at most so many records of a cluster stay; None for the clusters' mean.
      embedder: what embeds the texts for that, in words; "" for n-grams.
      seed: of sampling, of k-means, and of which records of a cluster stay.
    """

    limits: Limits
    shards: int | None = None
    not_decoded: str = ""
    remove_duplicate_texts: bool = False
    rebalance: int | None = None
    cluster_size: int | None = None
    embedder: str = ""
    seed: int = 0


def build(
    sources: Mapping[str, Source],
    folder: pathlib.Path,
    options: Options,
    *,
    run: Run,
    check: Check | None,
    embed: Callable[[list[str]], np.ndarray] | None = None,
    max_bad_fraction: float,
) -> dict[str, Any]:
    """Build a dataset of one split for each source, or go on with one that was interrupted.

    The files depend on the sources and `options` alone.

    Args:
      folder: DIR/NAME/VERSION.
      run: what calls functions with shards.
      check: raises BadRecordError for media that cannot be decoded; None where they are not.
      embed: B texts to [B, D] floats, for `options.rebalance`; None for n-grams.

    Returns:
      The report, as in report.json.

    Raises:
      BuildError: it cannot be so, or not in this folder.
      TooManyBadRecordsError: the dataset is not complete for want of good records.
    """
    prepares = {name: Prepare(source, options.limits, check) for name, source in sources.items()}
    splits = {
        name: Split(
            folder=folder,
            dataset=folder.parent.name,
            name=name,
            records=len(source),
            shards=_shards(name, prepares[name], options.shards, max_bad_fraction),
        )
        for name, source in sources.items()
    }
    with claimed(folder, _settings(splits, sources, options)):
        if not ((folder / REPORT).exists() and (folder / INFO).exists()):
            tallies, clusters = {}, {}
            for name, split in splits.items():
                found = _select(split, sources[name], options, run, embed)
                if found is not None:
                    clusters[name] = found
                left = [i for i in range(split.shards) if not split.finished(i)]
                with _progress(f"{name}: shards", len(left), split, "json"):
                    run(WriteShard(split, prepares[name]), left)
                tallies[name] = reports.tally_of(split, sources[name])
            _finish(splits, sources, tallies, clusters, options, max_bad_fraction)
        clean_up(folder)
    return reports.read(folder)


def _shards(name: str, prepare: Prepare, wanted: int | None, max_bad_fraction: float) -> int:
    """How many shards a split has, from a look at a few of its records: the same every time.

    Raises:
      BuildError: there is no record.
      TooManyBadRecordsError: most of those that were looked at cannot be used.
    """
    count = len(prepare.source)
    if not count:
        raise BuildError(f"the split {name!r} of the source has no records")
    sizes, bad = [], []
    for index in np.unique(np.linspace(0, count - 1, _LOOK).astype(int)).tolist():
        try:
            sizes.append(len(schema.serialize(prepare(index)[0])))
        except BadRecordError as error:
            bad.append(error)
    looked = len(sizes) + len(bad)
    if len(bad) > max(0.5, max_bad_fraction) * looked:
        raise TooManyBadRecordsError(
            f"{name}: {len(bad)} of the {looked} records looked at first cannot be used, such as {bad[0]}"
        )
    if wanted is not None:
        return min(wanted, count)
    by_size = math.ceil(float(np.mean(sizes)) * count / _SHARD_BYTES) if sizes else 1
    by_count = max(min(_FEW_SHARDS, -(-count // _RECORDS_PER_SHARD)), -(-count // _MOST_RECORDS))
    return min(count, max(by_size, by_count))


def _settings(splits: Mapping[str, Split], sources: Mapping[str, Source], options: Options) -> dict[str, Any]:
    """All that the files depend on."""
    features = json.dumps(schema.features().to_json(), sort_keys=True)
    return {
        "schema": hashlib.sha256(features.encode()).hexdigest()[:16],
        "sources": {name: source.identity for name, source in sources.items()},
        "records": {name: split.records for name, split in splits.items()},
        **dataclasses.asdict(options),
        "shards": {name: split.shards for name, split in splits.items()},
    }


def _select(split: Split, source: Source, options: Options, run: Run, embed) -> dict[str, Any] | None:
    """The passes that say which records and texts are kept."""
    shards = range(split.shards)
    if options.remove_duplicate_texts:
        left = [i for i in shards if not split.state(i, "hashes.npy").exists()]
        with _progress(f"{split.name}: texts hashed", len(left), split, "hashes.npy"):
            run(HashTexts(split, source), left)
        mark_duplicates(split)
    if options.rebalance is None:
        return None
    # Of all builds only these need scikit-learn.
    from jepa_jax.data.build import rebalance

    rebalance.find_clusters(split, source, options.rebalance, options.seed, embed)
    left = [i for i in shards if not split.state(i, "clusters.npy").exists()]
    with _progress(f"{split.name}: texts embedded", len(left), split, "clusters.npy"):
        run(rebalance.AssignClusters(split, source, embed), left)
    return rebalance.choose(split, options.rebalance, options.cluster_size, options.seed)


def _finish(
    splits: Mapping[str, Split],
    sources: Mapping[str, Source],
    tallies: Mapping[str, Tally],
    clusters: Mapping[str, dict[str, Any]],
    options: Options,
    max_bad_fraction: float,
) -> None:
    """Write the reports and, if there are enough good records, what makes the files a dataset.

    Raises:
      TooManyBadRecordsError: there are not.
    """
    folder = next(iter(splits.values())).folder
    reports.write_left_out(splits, sources, folder)
    for name, split in splits.items():
        bad, count = tallies[name].left_out.total(), split.records + len(sources[name].skipped)
        if bad > max_bad_fraction * count or not tallies[name].written["records"]:
            raise TooManyBadRecordsError(
                f"{name}: {bad} of {count} records cannot be used, max_bad_fraction is {max_bad_fraction:g}: "
                f"{reports.by_cause(folder / reports.LEFT_OUT, name)}; {folder / reports.LEFT_OUT} lists "
                f"them: allow for more, or mend them and delete {folder}, in which they are left out"
            )
    _write_info(splits, tallies, folder)
    summaries = {name: reports.summary(splits[name], sources[name], tallies[name]) for name in splits}
    for name, found in clusters.items():
        summaries[name]["rebalanced"] = {"embedder": options.embedder or "n-grams", **found}
    title = f"{folder.parent.name} {folder.name}: " + ", ".join(
        f"{found['records']:,} records of {name}" for name, found in summaries.items()
    )
    with replacing(folder / reports.PICTURE, folder) as temporary:
        save_figure(reports.plot_report(tallies, clusters, title), temporary, dpi=110, format="png")
    decoded = f"no: {options.not_decoded}" if options.not_decoded else "yes"
    write_json(folder / REPORT, {"media_decoded": decoded, "splits": summaries}, folder)


def _write_info(splits: Mapping[str, Split], tallies: Mapping[str, Tally], folder: pathlib.Path) -> None:
    """What makes TFDS see a dataset."""
    infos = []
    for name, split in splits.items():
        lengths = [summary["written"].get("records", 0) for summary in split.summaries()]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=split.dataset, split=name, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=lengths,
                num_bytes=tallies[name].written["bytes"],
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=schema.features(),
        split_infos=infos,
        version=folder.name,
        check_data=False,
        description="Media, and what is asked and said of them: built by jepa_jax.",
    )


@contextlib.contextmanager
def _progress(label: str, count: int, split: Split, kind: str) -> Iterator[None]:
    """A bar of the shards whose state of a kind has come up, whoever writes it, if it takes long."""
    stop = threading.Event()
    pattern = f"{split.name}-*.{kind}"

    def files() -> int:
        return sum(1 for _ in (split.folder / STATE).glob(pattern))

    before = files()
    with tqdm(total=count, unit="shard", desc=label, delay=5) as bar:

        def follow():
            while not stop.wait(1.0):
                # A bar that stands still is not written again: it may be going to a file.
                if news := files() - before - bar.n:
                    bar.update(news)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.update(files() - before - bar.n)
