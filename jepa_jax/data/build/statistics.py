"""Sizes, durations and lengths of any number of records in constant memory."""

import math
from collections import Counter
from typing import Any

import numpy as np

# Edges of a histogram's bins are powers of this: a quantile is off by 6 % at most.
_BINS_PER_DECADE = 20
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Histogram:
    """Counts of numbers >= 0 in bins that are equally wide on a logarithmic scale, and one for 0."""

    def __init__(self):
        self.count, self.total = 0, 0.0
        self.least, self.most = math.inf, 0.0
        self._zeros = 0
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count a number."""
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        if value > 0:
            self._bins[math.floor(math.log10(value) * _BINS_PER_DECADE)] += 1
        else:
            self._zeros += 1

    def merge(self, other: "Histogram") -> None:
        """Count what another has counted."""
        self.count += other.count
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self._zeros += other._zeros
        self._bins += other._bins

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges [bins + 1] and counts [bins] of the numbers above 0, without gaps."""
        if not self._bins:
            return np.array([1.0]), np.zeros(0, int)
        first, last = min(self._bins), max(self._bins)
        edges = 10 ** (np.arange(first, last + 2) / _BINS_PER_DECADE)
        return edges, np.array([self._bins[i] for i in range(first, last + 1)])

    def quantile(self, q: float) -> float:
        """The number below which a share `q` lies: the middle of its bin, within least and most."""
        wanted = q * self.count - self._zeros
        if wanted <= 0:
            return self.least
        edges, counts = self.bins()
        found = min(int(np.searchsorted(np.cumsum(counts), wanted)), len(counts) - 1)
        return float(np.clip(np.sqrt(edges[found] * edges[found + 1]), self.least, self.most))

    def to_json(self) -> dict[str, Any]:
        """All of it, plain for JSON."""
        return {
            "count": self.count,
            "total": self.total,
            "least": self.least if self.count else None,
            "most": self.most,
            "zeros": self._zeros,
            "bins": sorted(self._bins.items()),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Histogram":
        """From what `to_json` made."""
        found = cls()
        found.count, found.total, found.most = value["count"], value["total"], value["most"]
        found.least = math.inf if value["least"] is None else value["least"]
        found._zeros, found._bins = value["zeros"], Counter(dict(map(tuple, value["bins"])))
        return found

    def summary(self) -> dict[str, Any]:
        """What a report says of it."""
        if not self.count:
            return {"count": 0}
        edges, counts = self.bins()
        return {
            "count": self.count,
            "mean": self.total / self.count,
            "least": self.least,
            "most": self.most,
            "quantiles": {f"{100 * q:g}%": self.quantile(q) for q in QUANTILES},
            "zeros": self._zeros,
            "histogram": [[float(f"{e:.4g}"), int(n)] for e, n in zip(edges, counts) if n],
        }
