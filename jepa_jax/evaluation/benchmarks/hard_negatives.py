"""SugarCrepe++ and VISLA: two texts that mean the same and one that does not, by the Y-Encoder alone."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from jepa_jax.evaluation.annotations import locate, read_rows, read_table
from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.retrieval import TIE
from jepa_jax.part_models import checked_numbers

SPLITS = ("all",)
# Of three similarities, that of the positives is to be the greatest.
CHANCE = 1 / 3


class _SugarCrepe(BaseModel):
    caption: str
    caption2: str
    negative_caption: str

    @property
    def triplet(self) -> tuple[str, str, str]:
        return self.caption, self.caption2, self.negative_caption


class _Generic(BaseModel):
    caption: str
    second: str = Field(alias="second positive")
    negative_caption: str

    @property
    def triplet(self) -> tuple[str, str, str]:
        return self.caption, self.second, self.negative_caption


class _Spatial(BaseModel):
    sent1: str
    sent2: str
    # Near in its words, the opposite in what it means.
    negative: str = Field(alias="Best reference (Semantically close)")

    @property
    def triplet(self) -> tuple[str, str, str]:
        return self.sent1, self.sent2, self.negative


def is_right(first: np.ndarray, second: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Whether sim(p1, p2) > max(sim(p1, n), sim(p2, n)): [B, E] unit vectors each -> [B] bool. What is no
    further apart than rounding is a tie, and wrong."""
    together = (first * second).sum(axis=-1)
    apart = np.maximum((first * negative).sum(axis=-1), (second * negative).sum(axis=-1))
    return together > apart + TIE


def _score(items: Sequence[Item], _: None, model: Answers) -> Metrics:
    triplets = zip(*(triplet for _, triplet in (item.answer for item in items)), strict=True)
    right = is_right(*(checked_numbers(model.embed_text(list(texts))) for texts in triplets))
    parts = np.array([item.answer[0] for item in items])
    found = {part: right[parts == part] for part in dict.fromkeys(parts.tolist())}
    found["accuracy"] = right
    return {
        name: {"value": float(part.mean()), "chance": CHANCE, "n": len(part)} for name, part in found.items()
    }


def _benchmark(
    path: pathlib.Path, suffix: str, forms: dict[str, type[BaseModel]], read: Callable[..., list[Any]]
) -> Benchmark:
    """All of a benchmark's parts, a file each."""
    items = [
        Item(name=f"{part}, row {number}", answer=(part, row.triplet))
        for part, form in forms.items()
        for number, row in enumerate(read(locate(path, part + suffix), form))
    ]
    return Benchmark(items=items, score=_score)


def read_sugarcrepe_pp(path: pathlib.Path, split: str) -> Benchmark:
    """`swap_obj.json`, `swap_att.json`, `replace_obj.json`, `replace_att.json`, `replace_rel.json`:
    {"caption", "caption2", "negative_caption"} in rows."""
    parts = ("swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel")
    return _benchmark(path, ".json", dict.fromkeys(parts, _SugarCrepe), read_rows)


def read_visla(path: pathlib.Path, split: str) -> Benchmark:
    """`SugarCrepe.tsv` (the generic part) and `VSR_spatial.tsv` (the spatial part)."""
    return _benchmark(path, ".tsv", {"SugarCrepe": _Generic, "VSR_spatial": _Spatial}, read_table)
