"""WorldPrediction-WM: which action leads from one state to another."""

import pathlib
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_rows
from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.retrieval import TIE

SPLITS = ("wm",)
QUERY = "What is being done in the video?"


class _Row(BaseModel):
    id: str
    states: tuple[str, str]
    candidates: list[str]
    answer: int


def _score(items: Sequence[Item], predicted: np.ndarray, _: Answers) -> Metrics:
    """Items of a group: the state clip, then its candidates; a state's answer is the right one's place."""
    right, chance = [], []
    starts = [place for place, item in enumerate(items) if item.answer is not None]
    for start, end in zip(starts, [*starts[1:], len(items)], strict=True):
        similar = predicted[start + 1 : end] @ predicted[start]
        answer = items[start].answer
        # A candidate as near as the right one counts against the model.
        right.append((similar >= similar[answer] - TIE).sum() == 1)
        chance.append(1 / len(similar))
    return {
        "accuracy": {
            "value": float(np.mean(right)),
            "chance": float(np.mean(chance)),
            "n": len(right),
        }
    }


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`worldprediction_wm.jsonl`: {"id", "states": [FIRST, LAST], "candidates": [CLIP, ..], "answer":
    place of the right one}; media are the images and clips named there.

    The two images, each repeated, are one clip as long as the candidates.
    """
    items, unknown = [], {}
    for row in read_rows(main_file(path, "worldprediction_wm.jsonl", "worldprediction_wm.json"), _Row):
        if not (0 <= row.answer < len(row.candidates) > 1):
            unknown[row.id] = f"its answer, {row.answer}, is none of {len(row.candidates)} candidates"
            continue
        items.append(
            Item(name=row.id, media=row.states, query=QUERY, answer=row.answer, group=f"sample {row.id}")
        )
        items += [
            Item(
                name=f"{row.id}, candidate {number}",
                media=(clip,),
                query=QUERY,
                answer=None,
                group=f"sample {row.id}",
            )
            for number, clip in enumerate(row.candidates)
        ]
    return Benchmark(items=items, score=_score, unknown=unknown)
