"""GQA: questions on images, answered in a word or two."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_json
from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.classification import checked, class_embeddings
from jepa_jax.evaluation.vqa import accuracy_metric, is_nearest

SPLITS = ("testdev_balanced", "val_balanced", "testdev_all")


class _Question(BaseModel):
    imageId: str
    question: str
    answer: str


def _score(
    items: Sequence[Item], predicted: np.ndarray, model: Answers, *, classes: Sequence[Sequence[str]]
) -> Metrics:
    labels = np.array([item.answer for item in items])
    right = is_nearest(predicted, class_embeddings(model.embed_text, classes), labels)
    return {"accuracy": accuracy_metric(right, labels)}


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`testdev_balanced_questions.json` ({ID: {"imageId", "question", "answer"}}), media IMAGEID.jpg.

    The candidates are the answers that occur in the split.
    """
    questions = read_json(main_file(path, f"{split}_questions.json"), dict[str, _Question])
    answers = sorted({question.answer for question in questions.values()})
    places = {answer: place for place, answer in enumerate(answers)}
    items = [
        Item(name=name, media=(asked.imageId,), query=asked.question, answer=places[asked.answer])
        for name, asked in questions.items()
    ]
    classes = checked([[answer] for answer in answers])
    score = functools.partial(_score, classes=classes)
    return Benchmark(items=items, score=score, classes=classes, asks_its_own=True)
