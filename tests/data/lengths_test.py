"""Lengths are told from texts alone, kept on disk, and told again when anything they depend on changes."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from jepa_jax.config import DataConfig, DatasetConfig
from jepa_jax.data import lengths
from jepa_jax.data.lengths import bucket_of_records
from jepa_jax.data.records import BadRecordError, Limits, Pair
from jepa_jax.data.tokenizer import Tokenizer
from tests.records import Records, example, record

TOKENIZER = Tokenizer("emoji_motion")
LIMITS = Limits.of(DataConfig())
DATASET = DatasetConfig(path="a")
BUCKETS = ((8, 8), (16, 16))
BAD = BadRecordError("text empty", "clip 3", "no words")
SOURCE = Records(
    [*(example(i, long=i % 3 == 0) for i in range(7)), BAD, *(example(i) for i in range(8, 600))]
)


def measure(source=SOURCE, dataset=DATASET, tokenizers=(TOKENIZER, TOKENIZER), buckets=BUCKETS, cache=None):
    return bucket_of_records(source, dataset, tokenizers, buckets, LIMITS, cache)


@pytest.fixture
def texts_only(monkeypatch):
    """Media are out of reach; gives the number of records whose texts were read."""
    read = []

    def pairs(self, index):
        read.append(index)
        found = self._records[index]
        if isinstance(found, BadRecordError):
            raise BadRecordError(*found.args)
        return found.pairs

    monkeypatch.setattr(Records, "pairs", pairs)
    monkeypatch.delattr(Records, "__getitem__")
    return read


def test_every_record_by_its_longest_text_and_no_media_are_read(texts_only):
    assigned, bad = measure()
    assert assigned.tolist() == [1, 0, 0, 1, 0, 0, 1, lengths.LEFT_OUT] + [0] * 592
    assert [error.args for error in bad] == [BAD.args]
    assert sorted(texts_only) == list(range(600))


def test_what_fits_nowhere_is_in_the_last():
    assert measure(buckets=((2, 2), (3, 3)))[0].tolist().count(1) == 599


@pytest.mark.parametrize(
    ("fields", "bucket"),
    [
        ({}, 1),
        ({"target": "first"}, 0),
        ({"target": "longest"}, 1),
        ({"target": "first", "query_templates": ("{query}", "the thing in the clip the thing: {query}")}, 1),
        ({"pair_weights": (("short", 1.0),)}, 0),
    ],
)
def test_only_texts_that_may_be_drawn_count(fields, bucket):
    long = "the thing in the clip the thing in the clip"
    pairs = (
        Pair(kind="long", query="cat", targets=("a cat", long)),
        Pair(kind="short", query="cat", targets=("a cat",)),
    )
    source = Records([record(0, *pairs)])
    assert measure(source, dataclasses.replace(DATASET, **fields))[0].tolist() == [bucket]


def test_a_second_start_reads_nothing_and_says_the_same(texts_only, tmp_path):
    first, bad = measure(cache=tmp_path)
    texts_only.clear()
    again, still_bad = measure(cache=tmp_path)
    assert not texts_only
    np.testing.assert_array_equal(again, first)
    assert [error.args for error in still_bad] == [error.args for error in bad] == [BAD.args]


def test_one_long_detail_does_not_give_its_room_to_all(texts_only, tmp_path):
    """Records that a run does not want may be most of a manifest."""
    errors = [BadRecordError("text empty", f"clip {i}", "x" * 20_000 * (i == 7)) for i in range(1000)]
    source = Records([example(0), *errors])
    tracemalloc.start()
    try:
        bads = [measure(source, cache=tmp_path)[1] for _ in range(2)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 20_000 * 1000 / 8
    for bad in bads:
        assert [error.args for error in bad] == [error.args for error in errors]


def test_a_cache_of_an_earlier_version_is_read(texts_only, tmp_path):
    first, _ = measure(cache=tmp_path)
    (file,) = tmp_path.iterdir()
    np.savez_compressed(file, assigned=first, bad=np.array([BAD.args]))
    texts_only.clear()
    again, bad = measure(cache=tmp_path)
    assert not texts_only
    np.testing.assert_array_equal(again, first)
    assert [error.args for error in bad] == [BAD.args]


CHANGES = {
    "source": {"source": Records([example(i) for i in range(600)])},
    "prefix": {"tokenizers": (TOKENIZER, Tokenizer("emoji_motion", "the "))},
    "buckets": {"buckets": ((7, 7), (16, 16))},
    "templates": {"dataset": dataclasses.replace(DATASET, query_templates=("the {query}",))},
    "target": {"dataset": dataclasses.replace(DATASET, target="first")},
    "kinds": {"dataset": dataclasses.replace(DATASET, pair_weights=(("describe", 1.0),))},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_question_is_not_answered_from_the_cache(change, tmp_path):
    measure(cache=tmp_path)
    measure(cache=tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


def _pickled(file):
    np.savez(file, assigned=np.array([{}], object), bad=np.zeros((0, 3), "U1"))


DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:99]),
    "empty": lambda file: file.write_bytes(b""),
    "pickled": _pickled,
    # One byte: in a header that is compressed, and the flag of encrypted files in the table at the end.
    "byte": lambda file: file.write_bytes(file.read_bytes()[:90] + b"\xff" + file.read_bytes()[91:]),
    "flag": lambda file: file.write_bytes(file.read_bytes().replace(b"PK\1\2-\3-\0\0", b"PK\1\2-\3-\0\1", 1)),
    "of another length": lambda file: np.savez(
        file, assigned=np.zeros(3, np.int16), bad=np.zeros((0, 3), "U1")
    ),
    "no such bucket": lambda file: np.savez(
        file, assigned=np.full(600, 7, np.int16), bad=np.zeros((0, 3), "U1")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_said_and_made_again(damage, tmp_path, caplog):
    expected, _ = measure(cache=tmp_path)
    (file,) = tmp_path.iterdir()
    damage(file)
    found, bad = measure(cache=tmp_path)
    np.testing.assert_array_equal(found, expected)
    assert len(bad) == 1
    assert "measured again" in caplog.text
    assert len(list(tmp_path.iterdir())) == 1
