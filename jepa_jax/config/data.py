"""What a run reads and how it becomes batches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from jepa_jax.config.types import OPTIONS, Positive, PositiveFloat


@dataclass(**OPTIONS)
class DataConfig:
    """What is read and how it becomes a batch.

    `length_buckets` are (query, target) token lengths, ascending; all of a global batch is padded
    to one of them. Longer texts are cut to the last. `pair_weights` are (kind, relative
    odds) of a record's (query, target) pairs; a kind left out is not drawn, and without any all have
    the same odds. With `pairs_per_clip` over 1 a clip is encoded once for so many pairs: where the
    X-Encoder trains, that is most of the cost of a step. `target_prefix` is put
    before every target and candidate text alike.
    """

    dataset: str = "emoji_motion"
    split: str = "train"
    data_dir: str | None = None
    frames: Positive = 8
    resize: Positive | None = None
    length_buckets: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] = ((16, 16),)
    query_tokenizer: str = "emoji_motion"
    target_tokenizer: str = "emoji_motion"
    target_prefix: str = ""
    pair_weights: tuple[tuple[str, PositiveFloat], ...] = ()
    pairs_per_clip: Positive = 1
    threads: Positive = 2
    prefetch: Positive = 4

    def __post_init__(self):
        if list(self.length_buckets) != sorted(set(self.length_buckets)):
            raise ValueError(f"data.length_buckets={self.length_buckets} must ascend without repeats")
