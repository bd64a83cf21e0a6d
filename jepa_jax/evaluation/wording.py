"""Robustness to wording: how far answers spread over paraphrases of a query."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from jepa_jax.evaluation.annotations import read_json
from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.classification import class_embeddings
from jepa_jax.evaluation.retrieval import TIE
from jepa_jax.flags import UsageError


def mean_pairwise_cosine(answers: np.ndarray) -> float:
    """Mean over clips and pairs of wordings: [P, B, E] unit vectors -> [-1, 1]; 1 is no spread."""
    wordings = len(answers)
    # The squared length of the sum holds every ordered pair, and each answer with itself.
    pairs = (np.square(answers.sum(axis=0)).sum(axis=-1) - wordings) / (wordings * (wordings - 1))
    return float(np.mean(pairs))


def spread_metrics(
    answers: np.ndarray,
    classes: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    is_vqa: bool = False,
) -> Metrics:
    """How answers to one question vary with its wording.

    Args:
      answers: [P, B, E] unit vectors, of P wordings.
      classes: [classes, E] unit vectors; None for questions without candidates.
      labels: [B] int, the right class of each clip.
      is_vqa: of a task of questions, in which chance of the accuracy is always giving the commonest answer,
        not one class of all.

    Returns:
      `cosine`, and with classes `same_top_1` (the share of clips whose nearest class is the same under
      all wordings), `worst_wording` and `best_wording` (accuracy). Of several as near none is the nearest.
    """
    n = answers.shape[1]
    metrics = {"cosine": {"value": mean_pairwise_cosine(answers), "chance": 0.0, "n": n}}
    if classes is None:
        return metrics
    scores = answers @ classes.T
    chosen = scores.argmax(axis=-1)
    is_one = (scores >= scores.max(axis=-1, keepdims=True) - TIE).sum(axis=-1) == 1
    accuracy = (is_one & (chosen == labels)).mean(axis=1)
    chance = 1 / len(classes)
    guessed = float(np.bincount(labels).max() / n) if is_vqa else chance
    values = {
        "same_top_1": (np.mean((is_one & (chosen == chosen[0])).all(axis=0)), chance ** (len(answers) - 1)),
        "worst_wording": (accuracy.min(), guessed),
        "best_wording": (accuracy.max(), guessed),
    }
    for name, (value, by_chance) in values.items():
        metrics[name] = {"value": float(value), "chance": by_chance, "n": n}
    return metrics


def read_wordings(path: pathlib.Path) -> list[str] | dict[str, list[str]]:
    """Paraphrases from JSON: a list, each to be asked in place of a task's query; or an object
    {QUERY: [PARAPHRASE, ..]} for tasks whose items bring their own.

    Raises:
      UsageError: neither, fewer than two wordings, or not as many for every query.
    """
    if not path.is_file():
        raise UsageError(f"--wordings={path}: no such file")
    found = read_json(path, list[str] | dict[str, list[str]])
    lists = [found] if isinstance(found, list) else list(found.values())
    counts = {len(wordings) for wordings in lists}
    repeats = any(len(set(wordings)) < len(wordings) for wordings in lists)
    if len(counts) != 1 or min(counts) < 2 or repeats:
        raise UsageError(f"{path} needs at least two wordings, as many and all different for every query")
    return found


def reworded(benchmark: Benchmark, wordings: list[str] | dict[str, list[str]]) -> Benchmark:
    """A benchmark that asks every item in all wordings and scores the spread.

    Raises:
      UsageError: its answers are not classes, or a list is given where items bring their own query.
    """
    if not benchmark.classes:
        raise UsageError("--wordings compares classes: this task's answers are none")
    if isinstance(wordings, list) and benchmark.asks_its_own:
        raise UsageError("--wordings: this task's items bring their own queries, so give {QUERY: [..]}")
    items, unknown = [], dict(benchmark.unknown)
    for item in benchmark.items:
        asked = wordings if isinstance(wordings, list) else wordings.get(item.query)
        if asked is None:
            unknown[item.name] = "no wordings of its query"
            continue
        # Under one name: where its media are missing, all its wordings are left out together.
        items += [
            dataclasses.replace(item, query=query, answer=(number, item.answer))
            for number, query in enumerate(asked)
        ]
    score = functools.partial(_score, classes=benchmark.classes, is_vqa=benchmark.asks_its_own)
    return dataclasses.replace(
        benchmark, items=items, score=score, unknown=unknown, classes=(), asks_its_own=True
    )


def _score(
    items: Sequence[Item],
    predicted: np.ndarray,
    model: Answers,
    *,
    classes: Sequence[Sequence[str]],
    is_vqa: bool,
) -> Metrics:
    number = np.array([wording for wording, _ in (item.answer for item in items)])
    labels = np.array([item.answer[1] for item in items])
    wordings = number.max() + 1
    # Items follow one another, each in all its wordings.
    answers = predicted.reshape(-1, wordings, predicted.shape[-1]).swapaxes(0, 1)
    embeddings = class_embeddings(model.embed_text, classes)
    return spread_metrics(answers, embeddings, labels[::wordings], is_vqa=is_vqa)
