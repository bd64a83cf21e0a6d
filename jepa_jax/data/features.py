"""Visual tokens kept on disk."""

import pathlib

import numpy as np


class FeatureSource:
    """The visual tokens of a source's records."""

    def __init__(self, folder: str, source):
        self._folder = pathlib.Path(folder)
        self._count = len(source)

    def visual(self, index: int) -> np.ndarray:
        """[N, D] bfloat16."""
        return np.load(self._folder / f"{index}.npy")
