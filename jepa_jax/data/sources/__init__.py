"""Sources of records."""

import sys

import tensorflow_datasets as tfds

from jepa_jax.config import DatasetConfig
from jepa_jax.data.emoji_motion import builder as _registers_the_default_dataset  # noqa: F401
from jepa_jax.data.records import Limits, Media, Pair, Record, Source


class _Emoji:
    """A split of the default dataset."""

    def __init__(self, builder, split: str):
        self.identity = f"{builder.info.full_name}/{split}/{builder.info.splits[split].num_examples}"
        self.skipped = ()
        self._records = builder.as_data_source(split=split)
        self._texts = builder.as_data_source(split=split, decoders={"frames": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        labels = {name: record[name].decode() for name in ("thing", "motion", "second")}
        return Record(
            name=record["id"].decode(),
            media=Media(content=record["frames"], kind="frames"),
            pairs=_pairs(record),
            metadata=labels,
        )

    def pairs(self, index: int) -> tuple[Pair, ...]:
        return _pairs(self._texts[index])

    def name(self, index: int) -> str:
        return self._texts[index]["id"].decode()


def _pairs(record) -> tuple[Pair, ...]:
    pairs = record["pairs"]
    return tuple(
        Pair(kind=k.decode(), query=q.decode(), targets=(t.decode(),))
        for k, q, t in zip(pairs["kind"], pairs["query"], pairs["target"], strict=True)
    )


def open_source(dataset: DatasetConfig, limits: Limits) -> Source:
    """Open a dataset; ValueError where there is none."""
    del limits
    if dataset.path is not None:
        raise ValueError(f"{dataset.path}: folders come with the sources")
    try:
        builder = tfds.builder(dataset.dataset, data_dir=dataset.data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(f"data.dataset={dataset.dataset!r}: no such dataset in TFDS") from error
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # it would write a line a second into a log file
    builder.download_and_prepare()
    if dataset.split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise ValueError(f"{dataset.dataset} has no split {dataset.split!r}: it has {known}")
    return _Emoji(builder, dataset.split)
