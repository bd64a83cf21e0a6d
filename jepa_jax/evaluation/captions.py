"""Written captions against their references."""

import numpy as np

from jepa_jax.flags import UsageError


def cider(written: list[str], references: list[list[str]]) -> float:
    """CIDEr (arXiv 1411.5726) of captions against each one's references, words parted by spaces.

    Raises:
      UsageError: pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise UsageError("CIDEr needs the package pycocoevalcap: pip install jepa_jax[eval]") from error
    given = {i: texts for i, texts in enumerate(references)}
    score, _ = Cider().compute_score(given, {i: [text] for i, text in enumerate(written)})
    return float(score)


def caption_metrics(written: list[str], references: list[list[str]]) -> dict[str, dict]:
    """{"cider": CIDEr}; chance is that of every caption moved to the next clip."""
    moved = [*written[1:], *written[:1]]
    chance = cider(moved, references)
    return {"cider": {"value": cider(written, references), "chance": chance, "n": len(written)}}


def share(hits: np.ndarray, chance: float) -> dict:
    """A metric that is a share of yes or no: [n] bool."""
    return {"value": float(np.mean(hits)) if len(hits) else 0.0, "chance": chance, "n": len(hits)}
