"""The texts a decoder learns: the run's targets, as its odds have them, the same wherever a run goes on."""

import dataclasses

import numpy as np
import pytest

from jepa_jax.config import DataConfig
from jepa_jax.data.records import Pair
from jepa_jax.data.targets import target_batches
from jepa_jax.data.tokenizer import Tokenizer
from tests.records import Records, record
from tests.tiny_decoder import config as base

PAIRS = [
    (
        Pair(kind="describe", query="what?", targets=(f"a dog spins {i}",)),
        Pair(kind="how_many", query="how many?", targets=("one",)),
    )
    for i in range(23)
]
SOURCES = [Records([record(i, *pairs) for i, pairs in enumerate(PAIRS)])]
DATA = DataConfig(length_buckets=((7, 13),), pairs_per_clip=2)
CONFIG = dataclasses.replace(base, batch_size=12)


@pytest.fixture(scope="module")
def tokenizers():
    return Tokenizer("emoji_motion"), Tokenizer("emoji_motion")


def texts(batch, tokenizer) -> list[str]:
    return [tokenizer.text(row) for row in batch["text"]]


def test_both_readings_are_of_the_same_texts(tokenizers):
    batch = target_batches(CONFIG, DATA, SOURCES, tokenizers)[3].arrays
    shapes = {name: x.shape for name, x in batch.items()}
    assert shapes == {"target": (12, 13), "target_mask": (12, 13), "text": (12, 11), "text_mask": (12, 11)}
    found = texts(batch, tokenizers[1])
    assert set(found) <= {text for pairs in PAIRS for pair in pairs for text in pair.targets}
    np.testing.assert_array_equal(batch["target"], tokenizers[0].batch(found, 13)[0])
    # Without the token that starts a text, with the one that ends it.
    for row, mask, text in zip(batch["text"], batch["text_mask"], found, strict=True):
        assert row[mask][-1] == tokenizers[1].end_id
        assert mask.sum() == tokenizers[1].count(text) - 1


def test_a_text_that_is_cut_does_not_end(tokenizers):
    long = "a dog spins and spins and spins and spins"
    ids, mask = tokenizers[1].batch_to_write([long], 5)
    assert mask.all()
    assert tokenizers[1].end_id not in ids
    assert long.startswith(tokenizers[1].text(ids[0]))


def test_odds_are_those_given(tokenizers):
    only = dataclasses.replace(DATA, pair_weights=(("how_many", 1.0),))
    assert set(texts(target_batches(CONFIG, only, SOURCES, tokenizers)[0].arrays, tokenizers[1])) == {"one"}
    with pytest.raises(ValueError, match="gives no odds to any"):
        target_batches(CONFIG, dataclasses.replace(DATA, pair_weights=(("poem", 1.0),)), SOURCES, tokenizers)


@pytest.mark.parametrize("count", [3, 6])
def test_hosts_share_one_global_batch(tokenizers, count):
    """In its order: a text is disturbed by its place in the batch. Of six hosts each has one record's."""
    whole = target_batches(CONFIG, DATA, SOURCES, tokenizers)[5].arrays["text"]
    hosts = [{"process_index": i, "process_count": count} for i in range(count)]
    shares = [target_batches(CONFIG, DATA, SOURCES, tokenizers, **host)[5].arrays["text"] for host in hosts]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_what_does_not_divide_or_is_empty_is_refused(tokenizers):
    with pytest.raises(ValueError, match="batch_size=12 is not a multiple of 5 hosts times 2 texts"):
        target_batches(CONFIG, DATA, SOURCES, tokenizers, process_count=5)
    with pytest.raises(ValueError, match="has no records"):
        target_batches(CONFIG, DATA, [Records([])], tokenizers)
