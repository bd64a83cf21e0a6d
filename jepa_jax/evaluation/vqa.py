"""Discriminative visual question answering: the nearest of the candidate answers."""

from collections.abc import Sequence

import numpy as np

from jepa_jax.evaluation.benchmark import Answers, Item, Metrics
from jepa_jax.evaluation.classification import class_embeddings
from jepa_jax.evaluation.retrieval import TIE, OneMatch, ranks

YES_NO: tuple[tuple[str, ...], ...] = (("yes",), ("no",))


def is_nearest(predicted: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the right class is nearer than every other: [B, E], [classes, E], [B] int -> [B] bool."""
    return ranks(predicted, classes, OneMatch(labels, len(classes))) == 1


def accuracy_metric(right: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of right answers, [B] bool, beside that of always giving the commonest of the labels, [B] int."""
    return {
        "value": float(np.mean(right)),
        "chance": float(np.bincount(labels).max() / len(labels)),
        "n": len(labels),
    }


def yes_no_metrics(said_yes: np.ndarray, is_yes: np.ndarray) -> Metrics:
    """Accuracy, and precision, recall and F1 of "yes", beside those of a coin: [B] bool each.

    Precision without a "yes" said, and recall without one right, are 0.
    """
    hits, said, true = ((said_yes & is_yes).sum(), said_yes.sum(), is_yes.sum())
    share = float(np.mean(is_yes))
    values = {
        "accuracy": (np.mean(said_yes == is_yes), 0.5),
        "precision": (hits / max(1, said), share),
        "recall": (hits / max(1, true), 0.5),
        "f1": (2 * hits / max(1, said + true), share / (share + 0.5)),
    }
    return {
        name: {"value": float(value), "chance": chance, "n": len(is_yes)}
        for name, (value, chance) in values.items()
    }


def score_yes_no(items: Sequence[Item], predicted: np.ndarray, model: Answers) -> Metrics:
    """`yes_no_metrics` of items whose answers are (setting, is it yes).

    With more than one setting, of each apart and their mean. Where yes and no are as near, the answer is
    wrong.
    """
    yes, no = class_embeddings(model.embed_text, YES_NO)
    truth = np.array([is_yes for _, is_yes in (item.answer for item in items)], bool)
    nearer = predicted @ yes - predicted @ no
    said = np.where(np.abs(nearer) <= TIE, ~truth, nearer > 0)
    settings = np.array([item.answer[0] for item in items])
    names = list(dict.fromkeys(settings.tolist()))
    apart = {name: yes_no_metrics(said[settings == name], truth[settings == name]) for name in names}
    if len(names) == 1:
        return apart[names[0]]
    metrics = {f"{name}/{metric}": found for name in names for metric, found in apart[name].items()}
    for metric in apart[names[0]]:
        found = [apart[name][metric] for name in names]
        mean = {key: float(np.mean([f[key] for f in found])) for key in ("value", "chance")}
        metrics[metric] = {**mean, "n": len(items)}
    return metrics
