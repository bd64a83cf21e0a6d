"""Which records are kept, against plain lists."""

import collections

import numpy as np
import pytest

from jepa_jax.data.records import BadRecordError, Pair
from jepa_jax.data.sources import selection
from tests.records import Records, record


@pytest.mark.parametrize("removed", [[], [0], [9], [0, 1, 2, 5, 9], list(range(10))])
def test_kept_are_those_that_are_not_removed(removed):
    kept = selection.Kept(10, removed)
    assert list(kept) == [i for i in range(10) if i not in removed]
    for index in (-1, len(kept)):
        with pytest.raises(IndexError):
            kept[index]


def of_queries(*queries: str | None) -> Records:
    """A record for each; None is one whose text cannot be read."""
    bad = BadRecordError("text not UTF-8", "clip")
    made = [bad if q is None else record(0, Pair(query=q, targets=("a cat",))) for q in queries]
    return Records(made)


@pytest.mark.parametrize(
    ("sources", "query"),
    [
        ([["", None, ""]], ""),
        ([["what?"] * 20, [None], ["what?"]], "what?"),
        ([["", "", "what?"]], None),
        ([[""], ["what?"]], None),
        ([[None]], None),
    ],
)
def test_the_only_query_of_all(sources, query):
    assert selection.only_query([of_queries(*queries) for queries in sources]) == query


@pytest.mark.parametrize("at_once", [1, 7, 2**18])
@pytest.mark.parametrize("read", [1, 3, 2**16])
def test_equal_hashes_are_found_however_they_are_read(monkeypatch, at_once, read):
    monkeypatch.setattr(selection, "_AT_ONCE", at_once)
    monkeypatch.setattr(selection, "_READ", read)
    rng = np.random.default_rng(0)
    numbers = np.cumsum(rng.integers(1, 5, 200)).tolist()
    hashes = [int(value) for value in rng.integers(2**63, 2**63 + 300, 200, dtype=np.uint64)]
    counts = collections.Counter(hashes)
    expected = [n for n, value in zip(numbers, hashes, strict=True) if counts[value] > 1]
    assert 20 < len(expected) < 180
    assert selection.with_equal_hashes(zip(numbers, hashes, strict=True)) == expected


def test_some_are_spread_over_all():
    assert [selection.spread(count, 3) for count in (0, 1, 3, 9)] == [[], [0], [0, 1, 2], [0, 4, 8]]


def test_no_hashes():
    assert selection.with_equal_hashes([]) == []
