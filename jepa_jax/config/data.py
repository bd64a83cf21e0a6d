"""What a run reads and how it becomes batches."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jepa_jax.config.types import (
    OPTIONS,
    Fraction,
    NonEmpty,
    NonNegative,
    Positive,
    Weight,
)


@dataclass(**OPTIONS)
class FieldMap:
    """Where in a dataset's own records things are; "/" goes into a nested feature ("captions/text").

    What is left out is found where only one thing can be meant: the one image or video, the one text or
    label, or the one of a usual name. `query`, `kind` and `weight` stand beside `targets`, in the same
    sequence, or once for all of it; `start` and `end` are seconds of a span. In a manifest the names are
    those of columns, in tar shards extensions ("txt") or fields of the JSON.
    """

    media: NonEmpty | None = None
    targets: NonEmpty | None = None
    query: NonEmpty | None = None
    kind: NonEmpty | None = None
    weight: NonEmpty | None = None
    start: NonEmpty | None = None
    end: NonEmpty | None = None


@dataclass(**OPTIONS)
class DatasetConfig:
    """One dataset, alone or in a mixture.

    `dataset` is a TFDS name; `path` in its place is a folder or file: what TFDS or `python -m
    jepa_jax.data.build` wrote, a manifest beside media files, tar shards, or ArrayRecord files.
    `frames` of a clip, None for the run's; `span` "random" takes them from a random part of it.
    `query_templates`, of which one is drawn, hold "{query}"; `target` says which of several right answers
    is learnt. `weight` is the share of clips drawn from here, relative to the mixture's other datasets.
    `pair_weights` as in `DataConfig`.
    """

    dataset: NonEmpty | None = None
    path: NonEmpty | None = None
    split: NonEmpty = "train"
    data_dir: NonEmpty | None = None
    fields: FieldMap = FieldMap()
    weight: Weight = 1.0
    frames: Positive | None = None
    span: Literal["whole", "random"] = "whole"
    query_templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("{query}",)
    target: Literal["random", "first", "longest"] = "random"
    pair_weights: tuple[tuple[str, Weight], ...] = ()

    def __post_init__(self):
        if (self.dataset is None) == (self.path is None):
            raise ValueError("a dataset has either a TFDS name (dataset) or a folder (path)")
        wrong = [t for t in self.query_templates if "{query}" not in t]
        if wrong:
            raise ValueError(f"query_templates: {wrong[0]!r} has no {{query}} in it")

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.dataset or self.path}, split {self.split!r}"


@dataclass(**OPTIONS)
class DataConfig:
    """What is read and how it becomes a batch.

    `dataset` (a TFDS name) or `path` (a folder, which goes before it), or several of either as a
    `mixture`, each with a split, fields and pair weights of its own. `length_buckets` are (query, target)
    token lengths, both ascending; all of a global batch is padded to one of them. Longer texts are cut to the
    last.
    `pair_weights` are (kind, relative odds) of a record's (query, target) pairs; a kind left out is not
    drawn, and without any all have the odds that their records give them. With `pairs_per_clip` over 1 a
    clip is encoded once for so many pairs: where the X-Encoder trains, that is most of the cost of a
    step. `max_shift` moves every clip of training by up to so many pixels down or up and to a side, other
    ones each time it is drawn: an encoder that learns from few clips learns less of them by heart.
    `target_prefix` is put before every target and candidate text alike.

    Batches are made by `threads` in the training process, or in each of `workers` processes, `prefetch`
    of them ahead: no batch depends on any of the three. `features` is a folder of visual tokens from
    `python -m jepa_jax.data.cache_features`, read in place of frames. Media of more than `max_pixels` a
    frame or `max_media_bytes`, and texts of more than `max_text_characters`, are left out, as is all that
    cannot be read; a share of such records above `max_bad_fraction` stops the run, from 20 of
    them on (0 allows none).
    """

    dataset: NonEmpty = "emoji_motion"
    path: NonEmpty | None = None
    split: NonEmpty = "train"
    data_dir: NonEmpty | None = None
    fields: FieldMap = FieldMap()
    mixture: tuple[DatasetConfig, ...] = ()
    features: NonEmpty | None = None
    frames: Positive = 8
    resize: Positive | None = None
    length_buckets: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] = ((16, 16),)
    query_tokenizer: NonEmpty = "emoji_motion"
    target_tokenizer: NonEmpty = "emoji_motion"
    target_prefix: str = ""
    pair_weights: tuple[tuple[str, Weight], ...] = ()
    pairs_per_clip: Positive = 1
    max_shift: NonNegative = 0
    threads: Positive = 2
    workers: NonNegative = 0
    prefetch: Positive = 4
    max_pixels: Positive = 2**26
    max_media_bytes: Positive = 2**31
    max_text_characters: Positive = 2**15
    max_bad_fraction: Fraction = 0.05

    def __post_init__(self):
        targets = [target for _, target in self.length_buckets]
        # The last is the longest of both: what embeds a text without a clip knows no other.
        if list(self.length_buckets) != sorted(set(self.length_buckets)) or targets != sorted(targets):
            raise ValueError(
                f"data.length_buckets={self.length_buckets} must ascend without repeats, "
                "neither length falling"
            )
        if self.max_shift and self.features:
            raise ValueError(
                f"data.max_shift={self.max_shift} is of frames, and data.features has visual tokens of none "
                "that are shifted: set one of the two"
            )
        if self.mixture:
            alone = [name for name in ("path", "features", "pair_weights") if getattr(self, name)]
            alone += ["fields"] if self.fields != FieldMap() else []
            alone += ["split"] if self.split != "train" else []
            if alone:
                raise ValueError(f"data.{alone[0]} is of one dataset: data.mixture must be empty")

    @property
    def datasets(self) -> tuple[DatasetConfig, ...]:
        """What is read, `frames` and `data_dir` filled in: the mixture, or the one dataset."""
        if self.mixture:
            filled = {"frames": self.frames, "data_dir": self.data_dir}
            return tuple(
                dataclasses.replace(d, **{name: getattr(d, name) or x for name, x in filled.items()})
                for d in self.mixture
            )
        where = {"path": self.path} if self.path else {"dataset": self.dataset}
        return (
            DatasetConfig(
                **where,
                split=self.split,
                data_dir=self.data_dir,
                fields=self.fields,
                frames=self.frames,
                pair_weights=self.pair_weights,
            ),
        )
