"""Open-vocabulary classification: the nearest candidate text wins."""

import numpy as np

from jepa_jax.evaluation.retrieval import ranks


def class_embeddings(embed_text, phrasings: list[list[str]]) -> np.ndarray:
    """One unit vector per class: the mean of its phrasings' embeddings, normalised.

    Args:
      embed_text: texts -> [B, E] unit vectors.
      phrasings: for each class, its texts.

    Returns:
      [classes, E].
    """
    flat = embed_text([text for texts in phrasings for text in texts])
    ends = np.cumsum([len(texts) for texts in phrasings])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(flat, ends)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def top_k_metrics(
    predicted: np.ndarray, classes: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]
) -> dict[str, dict]:
    """Accuracy within the k nearest classes, beside chance: [B, E], [classes, E], [B] int."""
    rank = ranks(predicted, classes, labels[:, None] == np.arange(len(classes)))
    return {
        f"top_{k}": {
            "value": float(np.mean(rank <= k)),
            "chance": min(1.0, k / len(classes)),
            "n": len(labels),
        }
        for k in ks
    }
