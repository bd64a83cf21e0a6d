"""Embeddings to texts."""

import os

import numpy as np
import pytest

from jepa_jax.flags import UsageError
from jepa_jax.streaming.texts import NearestText, Written, read_bank

PLACES = {"up": [0.0, 1.0], "right": [1.0, 0.0]}


class Model:
    def embed_text(self, texts):
        return np.array([PLACES[text] for text in texts])

    def decode(self, embeddings):
        return ["up"] * len(embeddings)


EMBEDDINGS = np.array([[0.8, 0.6], [0.28, 0.96]])


def test_the_nearest_text_and_its_cosine():
    said = NearestText(Model(), ["up", "right", "up"])(EMBEDDINGS)
    assert said == [("right", 0.8), ("up", 0.96)]


def test_what_is_written_is_scored_by_its_own_embedding():
    said = Written(Model())(EMBEDDINGS)
    assert [text for text, _ in said] == ["up", "up"]
    np.testing.assert_allclose([score for _, score in said], [0.6, 0.96])


@pytest.mark.parametrize("speak", [Written, lambda model: NearestText(model, ["up", "right"])])
def test_what_is_not_a_number_is_near_to_no_text(speak, monkeypatch):
    """The first text of the bank was said, with the score NaN, which JSON does not have."""
    with pytest.raises(UsageError, match="not numbers"):
        speak(Model())(np.full((1, 2), np.nan))
    monkeypatch.setitem(PLACES, "up", [np.nan, 0.0])
    with pytest.raises(UsageError, match="not numbers"):
        speak(Model())(EMBEDDINGS)


def test_a_bank_is_read_without_empty_lines(tmp_path):
    (tmp_path / "bank.txt").write_text("\ufeffa dog\n\n  ein Bär  \r\ntwo\u2028parts", encoding="utf-8")
    assert read_bank(str(tmp_path / "bank.txt")) == ["a dog", "ein Bär", "two\u2028parts"]


def test_a_bank_comes_through_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, b"a dog\na cat\n")
    os.close(writing)
    assert read_bank(f"/dev/fd/{reading}") == ["a dog", "a cat"]
    os.close(reading)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "holds no texts"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")]
)
def test_what_is_no_bank_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "bank.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_bank(str(tmp_path / "bank.txt"))
