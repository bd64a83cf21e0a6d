"""Embeddings to texts: the nearest of a bank, or what the Y-Decoder writes."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jepa_jax.flags import UsageError
from jepa_jax.part_models import checked_numbers

MAX_BANK_BYTES = 1 << 28


class Reads(Protocol):
    """What a bank needs of a model."""

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """B texts -> S_Y, [B, E] unit vectors."""


class Writes(Reads, Protocol):
    """A model with a Y-Decoder."""

    def decode(self, embeddings: np.ndarray) -> list[str]:
        """[B, E] -> B texts."""


class Speaks(Protocol):
    """Embeddings [B, E] to B texts with their scores: the cosine of S_Y of the text and the embedding.

    Raises UsageError where they are not numbers, for the first text would be the nearest.
    """

    def __call__(self, embeddings: np.ndarray) -> list[tuple[str, float]]: ...


class NearestText:
    """The nearest of the given texts."""

    def __init__(self, model: Reads, texts: Sequence[str]):
        self._texts = list(dict.fromkeys(texts))
        self._embeddings = model.embed_text(self._texts)

    def __call__(self, embeddings: np.ndarray) -> list[tuple[str, float]]:
        scores = checked_numbers(embeddings @ self._embeddings.T)
        best = scores.argmax(axis=1)
        return [(self._texts[i], float(row[i])) for i, row in zip(best, scores, strict=True)]


class Written:
    """What the model's decoder writes."""

    def __init__(self, model: Writes):
        self._model = model

    def __call__(self, embeddings: np.ndarray) -> list[tuple[str, float]]:
        texts = self._model.decode(checked_numbers(embeddings))
        scores = checked_numbers(np.sum(self._model.embed_text(texts) * embeddings, axis=1))
        return list(zip(texts, scores.tolist(), strict=True))


def read_bank(path: str) -> list[str]:
    """The texts of a file, one a line, without empty ones.

    Raises:
      UsageError: it is missing, too large, not UTF-8 or empty.
    """
    try:
        with open(path, "rb") as file:  # it may be a pipe, whose size nobody knows
            content = file.read(MAX_BANK_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--bank={path}: {error.strerror}") from error
    if len(content) > MAX_BANK_BYTES:
        raise UsageError(f"--bank={path} has more than {MAX_BANK_BYTES:,} bytes")
    try:
        lines = content.decode("utf-8-sig").split("\n")  # and by nothing else: texts may hold it
    except UnicodeDecodeError as error:
        raise UsageError(f"--bank={path} is not UTF-8 text (byte {error.start})") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UsageError(f"--bank={path} holds no texts: it takes one a line")
    return texts
