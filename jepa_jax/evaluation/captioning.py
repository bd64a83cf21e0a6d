"""CIDEr of decoded texts, by pycocoevalcap on words split here: its own tokenizer needs Java."""

import re
from collections.abc import Sequence

import numpy as np

from jepa_jax.evaluation.benchmark import Answers, Item, Metrics, decoder_of
from jepa_jax.flags import UsageError

_WORD = re.compile(
    r"""
    (?:[^\W\d_]\.){2,}                             # u.s., e.g.
    | (?:mr|mrs|ms|dr|prof|jr|sr|st|vs|etc|co|inc|ltd)\.
    | [^\W\d_]{1,2}&[^\W\d_]{1,2}(?!\w)             # at&t, r&b
    | (?:\d+(?:[.,:]\d+)+|\w+)(?:[-'/]\w+)*         # 1,000, 10:30, 3-year-old, his/her
    | [&$%\#@+=*/()[\]{}]
    """,
    re.VERBOSE,
)
_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))$")
# What the Penn Treebank's tokenizer writes for some.
_WRITTEN = {
    "cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me",
    "lemme": "lem me", "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip


def words(text: str) -> list[str]:
    """A text's words, lower case, without punctuation.

    Near to the Penn Treebank's tokenizer that published figures use: contractions are split ("don't"
    is "do n't", "man's" is "man 's"), hyphenated words are one, brackets and symbols are words.
    """
    found = []
    for word in _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        found += _WRITTEN.get(word, _CONTRACTION.sub(r" \1", word)).split()
    return found


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each of B texts against its references: [B], 1.0 being what papers print as 100.

    The weights of n-grams come from all the references, so a score depends on the whole set.

    Raises:
      UsageError: pycocoevalcap is not installed, there is one text alone, which always scores 0, or no
        reference has a word.
      ValueError: a text has no references.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise UsageError("CIDEr needs pycocoevalcap: pip install 'jepa_jax[eval]'") from error
    if len(candidates) < 2:
        raise UsageError(
            f"CIDEr weighs words by how many clips they tell apart: {len(candidates)} is too few"
        )
    if not all(references):
        raise ValueError("CIDEr of a text needs at least one reference")
    hypotheses = {i: [" ".join(words(text))] for i, text in enumerate(candidates)}
    truths = {i: [" ".join(words(text)) for text in texts] for i, texts in enumerate(references)}
    if not any(text for texts in truths.values() for text in texts):
        raise UsageError("CIDEr compares words, and the references have none")
    return Cider().compute_score(truths, hypotheses)[1]


def caption_metrics(written: Sequence[str], references: Sequence[Sequence[str]]) -> Metrics:
    """{"cider": ..} of B texts against their references; chance is that of the same texts, each given
    to the next clip."""
    moved = [*written[1:], *written[:1]]
    return {
        "cider": {
            "value": float(cider(written, references).mean()),
            "chance": float(cider(moved, references).mean()),
            "n": len(written),
        }
    }


def score_texts(items: Sequence[Item], predicted: np.ndarray, model: Answers) -> Metrics:
    """CIDEr of what the model says of items whose answers are their reference captions."""
    return caption_metrics(decoder_of(model)(predicted), [item.answer for item in items])
