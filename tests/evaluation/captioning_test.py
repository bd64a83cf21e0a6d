"""CIDEr against the formula of its paper (arXiv 1411.5726), and the words it is computed on."""

import collections
import math

import numpy as np
import pytest

from jepa_jax.evaluation.captioning import cider, words
from jepa_jax.flags import UsageError

REFERENCES = [
    ["a dog runs after a ball", "the dog is running after the red ball"],
    ["a man plays a lute", "someone plays an old lute on a stage", "a lute is played"],
    ["two boats pass a lighthouse"],
    ["a dog sleeps on a man"],
]
CANDIDATES = ["a dog runs after the red ball", "a man plays an old old lute", "a boat passes", "dog"]


def grams(sentence: str, n: int) -> collections.Counter:
    split = sentence.split()
    return collections.Counter(zip(*(split[i:] for i in range(n))))


def cider_d(candidates, references):
    """CIDEr-D as the paper defines it, n-gram by n-gram, with dense vectors."""
    scores = np.zeros(len(candidates))
    for n in (1, 2, 3, 4):
        seen = collections.Counter()
        for texts in references:
            seen.update({gram for text in texts for gram in grams(text, n)})
        vocabulary = sorted({*seen, *(gram for text in candidates for gram in grams(text, n))})
        weights = np.array([math.log(len(references) / max(1, seen[gram])) for gram in vocabulary])

        def vector(text, n=n, vocabulary=vocabulary, weights=weights):
            counts = grams(text, n)
            return np.array([counts[gram] for gram in vocabulary]) * weights

        for i, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
            c = vector(candidate)
            for text in texts:
                r = vector(text)
                norm = np.linalg.norm(c) * np.linalg.norm(r)
                cosine = np.minimum(c, r) @ r / norm if norm else 0.0
                # The released code counts a sentence's length in pairs of words.
                gap = max(0, len(candidate.split()) - 1) - max(0, len(text.split()) - 1)
                penalty = math.exp(-(gap**2) / (2 * 6.0**2))
                scores[i] += 10 / 4 * penalty * cosine / len(texts)
    return scores


def test_cider_is_the_papers_formula():
    np.testing.assert_allclose(cider(CANDIDATES, REFERENCES), cider_d(CANDIDATES, REFERENCES), atol=1e-6)


def test_it_is_that_of_pycocoevalcap_on_words_that_are_already_apart():
    from pycocoevalcap.cider.cider import Cider

    truths = dict(enumerate(REFERENCES))
    expected = Cider().compute_score(truths, {i: [text] for i, text in enumerate(CANDIDATES)})[1]
    np.testing.assert_allclose(cider(CANDIDATES, REFERENCES), expected, atol=1e-6)


def test_case_and_punctuation_do_not_count():
    plain = cider(CANDIDATES, REFERENCES)
    loud = cider([f"{text.upper()}!" for text in CANDIDATES], REFERENCES)
    np.testing.assert_array_equal(plain, loud)


def test_words():
    """What Stanford's tokenizer, with pycocoevalcap's list of punctuation, makes of them."""
    assert words("A man's T-shirt: don't (ever) wash, at 30.5 degrees...") == [
        *("a", "man", "'s", "t-shirt", "do", "n't", "-lrb-", "ever", "-rrb-", "wash", "at", "30.5", "degrees")
    ]
    assert words("It\N{RIGHT SINGLE QUOTATION MARK}s 3pm. Then") == ["it", "'s", "3pm", "then"]
    for whole in (
        "3-year-old",
        "5-star",
        "50-50",
        "360-degree",
        "1,000",
        "2.5-inch",
        "4x4",
        "2-on-2",
        "10:30",
    ):
        assert words(f"a {whole} one") == ["a", whole, "one"]
    for whole in ("u.s.", "p.m.", "his/her", "at&t", "dr.", "24/7", "mid-1990s"):
        assert words(f"a {whole.upper()} one") == ["a", whole, "one"]
    assert words("cannot, gonna") == ["can", "not", "gon", "na"]
    assert words("$5 & 50%") == ["$", "5", "&", "50", "%"]
    assert words(" -- ... ") == []


def test_an_empty_text_scores_nothing():
    assert cider(["", *CANDIDATES[1:]], REFERENCES)[0] == 0


def test_one_clip_alone_has_no_weights():
    with pytest.raises(UsageError, match="1 is too few"):
        cider(["a dog"], [["a dog"]])


def test_a_text_without_references_is_an_error():
    with pytest.raises(ValueError, match="at least one reference"):
        cider(["a dog", "a cat"], [["a dog"], []])


def test_references_without_a_word_are_an_error():
    with pytest.raises(UsageError, match="have none"):
        cider(["a dog", "a cat"], [["..."], ["!"]])
