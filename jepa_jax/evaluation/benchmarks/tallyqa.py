"""TallyQA: how many, in simple questions and in complex ones."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_json
from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.classification import class_embeddings
from jepa_jax.evaluation.vqa import accuracy_metric, is_nearest

SPLITS = ("test", "train")
_TO_SEVEN = ("zero", "one", "two", "three", "four", "five", "six", "seven")
_TO_FIFTEEN = ("eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen")
# Both spellings of a number are one candidate, the mean of their embeddings.
NUMBERS: tuple[tuple[str, str], ...] = tuple(
    (str(i), word) for i, word in enumerate((*_TO_SEVEN, *_TO_FIFTEEN))
)


class _Question(BaseModel):
    image: str
    question: str
    question_id: int
    answer: int
    issimple: bool


def _score(
    items: Sequence[Item], predicted: np.ndarray, model: Answers, *, simple: frozenset[str]
) -> Metrics:
    is_simple = np.array([item.name in simple for item in items])
    labels = np.array([item.answer for item in items])
    right = is_nearest(predicted, class_embeddings(model.embed_text, NUMBERS), labels)
    parts = {"simple": is_simple, "complex": ~is_simple, "accuracy": np.ones_like(is_simple)}
    return {name: accuracy_metric(right[part], labels[part]) for name, part in parts.items() if part.any()}


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`test.json` ([{"image", "question", "question_id", "answer", "issimple"}]), media ID.jpg of Visual
    Genome and COCO_val2014_N.jpg.

    Candidates are 0 to 15. `accuracy` is of all questions: the mean of the two kinds, by their number.
    """
    items, unknown, simple = [], {}, set()
    for number, asked in enumerate(read_json(main_file(path, f"{split}.json"), list[_Question])):
        # Ids are of two sources: a number may come twice.
        name = f"row {number}, question {asked.question_id}"
        if not 0 <= asked.answer < len(NUMBERS):
            unknown[name] = f"the answer, {asked.answer}, is not among 0 to {len(NUMBERS) - 1}"
            continue
        if asked.issimple:
            simple.add(name)
        # Its images come from folders of two datasets, and no two have one name.
        image = pathlib.PurePosixPath(asked.image).name
        items.append(Item(name=name, media=(image,), query=asked.question, answer=asked.answer))
    score = functools.partial(_score, simple=frozenset(simple))
    return Benchmark(items=items, score=score, unknown=unknown, classes=NUMBERS, asks_its_own=True)
