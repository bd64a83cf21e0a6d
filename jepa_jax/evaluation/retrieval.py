"""Retrieval metrics from embeddings."""

import numpy as np


def ranks(queries: np.ndarray, gallery: np.ndarray, is_match: np.ndarray) -> np.ndarray:
    """Rank, from 1, of the best match of each query.

    Ties count against the query: an item that scores as high as the match stands before it, so a
    model that gives everything one embedding ranks last, not first.

    Args:
      queries: [Q, E] and gallery: [P, E], unit vectors.
      is_match: [Q, P] bool, at least one True in a row.

    Returns:
      [Q] int.
    """
    scores = queries @ gallery.T
    best = np.where(is_match, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~is_match).sum(axis=1)


def recall_metrics(rank: np.ndarray, gallery_size: int, prefix: str) -> dict[str, dict]:
    """R@1, 5, 10 and the median rank, each beside chance with one match in the gallery.

    Returns:
      {"PREFIX_recall_at_1": {"value": .., "chance": .., "n": ..}, .., "PREFIX_median_rank": ..}
    """
    metrics = {
        f"{prefix}_recall_at_{k}": {
            "value": float(np.mean(rank <= k)),
            "chance": min(1.0, k / gallery_size),
            "n": len(rank),
        }
        for k in (1, 5, 10)
    }
    metrics[f"{prefix}_median_rank"] = {
        "value": float(np.median(rank)),
        "chance": (gallery_size + 1) / 2,
        "n": len(rank),
    }
    return metrics


def retrieval_metrics(video: np.ndarray, text: np.ndarray) -> dict[str, dict]:
    """Both directions over B pairs of unit vectors: [B, E], [B, E]; pair i belongs together."""
    match = np.eye(len(video), dtype=bool)
    return {
        **recall_metrics(ranks(text, video, match), len(video), "text_to_video"),
        **recall_metrics(ranks(video, text, match), len(text), "video_to_text"),
    }
