"""Retrieval metrics from embeddings."""

from collections.abc import Sequence

import numpy as np

from jepa_jax.evaluation.benchmark import Answers, Item, Metrics
from jepa_jax.flags import UsageError
from jepa_jax.part_models import checked_numbers

# So many scores are in memory at a time.
_SCORES_AT_ONCE = 2**24
# Cosines of float32 vectors that differ by no more may be of equal vectors.
TIE = 1e-6


def _blocks(rows: int, columns: int) -> list[slice]:
    """Rows of a matrix of scores, some at a time."""
    size = max(1, _SCORES_AT_ONCE // columns)
    return [slice(first, first + size) for first in range(0, max(rows, 1), size)]


def ranks_of_scores(scores: np.ndarray, is_match: np.ndarray) -> np.ndarray:
    """Rank, from 1, of the best match of each row.

    Ties count against the query: an item that scores as high as the match stands before it, so a
    model that gives everything one embedding ranks last, not first. Scores of equal embeddings differ by
    their place in a matrix product: what is no further apart than that is a tie.

    Args:
      scores: [Q, P], higher is nearer.
      is_match: [Q, P] bool, at least one True in a row.

    Returns:
      [Q] int.

    Raises:
      UsageError: a score is not a number; compared with, it would come first.
    """
    best = np.where(is_match, checked_numbers(scores), -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best - TIE) & ~is_match).sum(axis=1)


class OneMatch:
    """[Q, P] bool with one True in a row, of which only the rows that are asked for are made: of 100,000
    queries in as many clips the whole takes 10 GB.

    Args:
      places: [Q] int, the column that is True.
      columns: P.
    """

    def __init__(self, places: np.ndarray, columns: int):
        self._places, self._columns = places, np.arange(columns)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._places[rows, None] == self._columns


def ranks(queries: np.ndarray, gallery: np.ndarray, is_match: np.ndarray | OneMatch) -> np.ndarray:
    """`ranks_of_scores` by cosine: [Q, E] and [P, E] unit vectors, [Q, P] bool -> [Q] int."""
    blocks = _blocks(len(queries), len(gallery))
    return np.concatenate([ranks_of_scores(queries[rows] @ gallery.T, is_match[rows]) for rows in blocks])


def nearest(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Place of the nearest by cosine, the first of several: [Q, E] and [P, E] unit vectors -> [Q] int.

    Raises:
      UsageError: a cosine is not a number, which `argmax` would take for the nearest.
    """
    blocks = _blocks(len(queries), len(gallery))
    scores = (checked_numbers(queries[rows] @ gallery.T) for rows in blocks)
    return np.concatenate([np.argmax(block, axis=1) for block in scores])


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


def retrieval_metrics(
    video: np.ndarray, text: np.ndarray, owner: np.ndarray | None = None
) -> dict[str, dict]:
    """Both directions.

    Where videos have several captions, each is a query of text-to-video; in video-to-text a video's
    captions count as one entry of the gallery, as near as the nearest of them (the protocol of MSVD in
    the CLIP4Clip line of work).

    Args:
      video: [B, E] unit vectors.
      text: [P, E] unit vectors.
      owner: [P] int, ascending, the video of each text; None where text i is of video i.
    """
    owner = np.arange(len(video)) if owner is None else owner
    right, own = OneMatch(owner, len(video)), OneMatch(np.arange(len(video)), len(video))
    starts = np.flatnonzero(np.diff(owner, prepend=-1))

    def nearest_of_each(scores: np.ndarray) -> np.ndarray:
        # Where each has one there is nothing to choose, which would take as long as all the rest.
        return scores if len(starts) == len(text) else np.maximum.reduceat(scores, starts, axis=1)

    nearest_captions = [
        ranks_of_scores(nearest_of_each(video[rows] @ text.T), own[rows])
        for rows in _blocks(len(video), len(text))
    ]
    return {
        **recall_metrics(ranks(text, video, right), len(video), "text_to_video"),
        **recall_metrics(np.concatenate(nearest_captions), len(video), "video_to_text"),
    }


def score_captions(items: Sequence[Item], predicted: np.ndarray, model: Answers) -> Metrics:
    """Retrieval among items whose answers are their captions, one or several. Items of one clip are one
    entry with the captions of all: apart, each would stand in the other's way.

    Raises:
      UsageError: there is only one clip.
    """
    captions: dict[tuple, list[str]] = {}
    places = []  # of each clip's first item
    for place, item in enumerate(items):
        clip = (item.media, item.start, item.end)
        if clip not in captions:
            places.append(place)
        captions.setdefault(clip, []).extend(item.answer)
    if len(captions) < 2:
        raise UsageError(f"retrieval among {len(captions)} clip says nothing: at least two are needed")
    texts = [caption for own in captions.values() for caption in own]
    owner = np.repeat(np.arange(len(captions)), [len(own) for own in captions.values()])
    return retrieval_metrics(predicted[places], model.embed_text(texts), owner)
