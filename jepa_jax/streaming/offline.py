"""Selective decoding of a whole video: neighbours in time are joined to segments, one decode each.

(Paper, selective decoding.)
"""

import itertools
from typing import Literal

import numpy as np

from jepa_jax.flags import UsageError
from jepa_jax.streaming.online import Decode, unit
from jepa_jax.streaming.windows import Embedded


def cuts(embeddings: np.ndarray, count: int) -> np.ndarray:
    """Where `count` segments begin, the first left out: [N, E] -> [count - 1] places, ascending.

    Ward's agglomerative clustering, which joins the two segments whose joining raises the variance inside
    segments least; only neighbours in time may be joined.

    Raises:
      UsageError: scikit-learn is not installed.
      ValueError: there are not so many embeddings.
    """
    try:
        from scipy.sparse import diags_array
        from sklearn.cluster import AgglomerativeClustering
    except ImportError as error:
        raise UsageError("segments need scikit-learn: pip install 'jepa_jax[watch]'") from error
    total = len(embeddings)
    if not 1 <= count <= total:
        raise ValueError(f"{count} segments cannot be made of {total} windows")
    if count == 1:
        return np.zeros(0, int)
    neighbours = diags_array([np.ones(total - 1)] * 2, offsets=[-1, 1], format="csr")
    ward = AgglomerativeClustering(count, connectivity=neighbours, linkage="ward")
    return np.flatnonzero(np.diff(ward.fit_predict(embeddings))) + 1


def decodes(
    windows: list[Embedded], count: int, embedding: Literal["midpoint", "mean"] = "midpoint"
) -> list[Decode]:
    """A decode for each of at most `count` segments of a video.

    A segment begins midway between the middles of its first window and of the one before.

    Args:
      embedding: that of the window in a segment's middle, or the mean of all of its windows.
    """
    embeddings = np.stack([w.embedding for w in windows])
    edges = [0, *cuts(embeddings, min(count, len(windows))), len(windows)]
    found = []
    for first, end in itertools.pairwise(edges):
        start = (windows[first - 1].middle + windows[first].middle) / 2 if first else windows[0].start
        if embedding == "mean":
            middle = (windows[first].middle + windows[end - 1].middle) / 2
            found.append(Decode(start, middle, unit(embeddings[first:end].mean(axis=0))))
        else:
            window = windows[(first + end - 1) // 2]
            found.append(Decode(start, window.middle, window.embedding))
    return found
