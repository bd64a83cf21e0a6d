"""Open-vocabulary classification: the nearest candidate text wins."""

import functools
from collections.abc import Sequence

import numpy as np

from jepa_jax.evaluation.benchmark import Answers, Benchmark, Item, Metrics
from jepa_jax.evaluation.retrieval import OneMatch, ranks
from jepa_jax.flags import UsageError
from jepa_jax.part_models import checked_numbers


def class_embeddings(embed_text, phrasings: Sequence[Sequence[str]]) -> np.ndarray:
    """One unit vector per class: the mean of its phrasings' embeddings, normalised.

    Args:
      embed_text: texts -> [B, E] unit vectors.
      phrasings: for each class, its texts.

    Returns:
      [classes, E].

    Raises:
      UsageError: they are not numbers.
    """
    flat = checked_numbers(embed_text([text for texts in phrasings for text in texts]))
    ends = np.cumsum([len(texts) for texts in phrasings])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(flat, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def phrased(name: str, templates: Sequence[str]) -> list[str]:
    """A class in each template, "{}" being its name.

    Raises:
      ValueError: a template has no place for it, so that all classes would be one text.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f'the template {template!r} has no "{{}}" where the class goes')
    return [template.replace("{}", name) for template in templates]


def top_k_metrics(
    predicted: np.ndarray, classes: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]
) -> dict[str, dict]:
    """Accuracy within the k nearest classes, beside chance: [B, E], [classes, E], [B] int."""
    rank = ranks(predicted, classes, OneMatch(labels, len(classes)))
    return {
        f"top_{k}": {
            "value": float(np.mean(rank <= k)),
            "chance": min(1.0, k / len(classes)),
            "n": len(labels),
        }
        for k in ks
    }


def class_mean_recall(
    predicted: np.ndarray, classes: np.ndarray, labels: np.ndarray, k: int
) -> dict[str, float]:
    """Recall within the k nearest classes, averaged over the classes that occur, so that rare ones
    count as much as frequent ones: [B, E], [classes, E], [B] int."""
    found = ranks(predicted, classes, OneMatch(labels, len(classes))) <= k
    counts = np.bincount(labels)
    hits = np.bincount(labels, weights=found)
    occurs = counts > 0
    return {
        "value": float(np.mean(hits[occurs] / counts[occurs])),
        "chance": min(1.0, k / len(classes)),
        "n": len(labels),
    }


def checked(classes: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """The classes, if there is something to choose from.

    Raises:
      UsageError: there are fewer than two.
    """
    if len(classes) < 2:
        raise UsageError(f"classification among {len(classes)} class says nothing: at least two are needed")
    return classes


def _score(
    items: Sequence[Item], predicted: np.ndarray, model: Answers, *, classes: Sequence[Sequence[str]]
) -> Metrics:
    labels = np.array([item.answer for item in items])
    return top_k_metrics(predicted, class_embeddings(model.embed_text, classes), labels, ks=(1, 5))


def benchmark(
    items: Sequence[Item], classes: Sequence[Sequence[str]], unknown: dict[str, str] | None = None
) -> Benchmark:
    """Top-1 and top-5 of items whose answers are indices of classes, given as their texts.

    Raises:
      UsageError: there are fewer than two classes.
    """
    score = functools.partial(_score, classes=checked(classes))
    return Benchmark(items=items, score=score, unknown=unknown or {}, classes=classes)
