"""Indices: the exact one is exact, the large one nearly, and a saved one is used while it is right."""

import numpy as np
import pytest

from jepa_jax.embeddings import index as indexing
from jepa_jax.streaming.online import unit

ROWS, SIZE = 3001, 37


@pytest.fixture(scope="module")
def vectors():
    """Around 50 centres, as embeddings of many videos are."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, SIZE))
    noise = rng.standard_normal((ROWS, SIZE))
    return unit(centres[rng.integers(50, size=ROWS)] + 0.5 * noise).astype(np.float32)


def parts_of(vectors):
    return lambda: iter(np.array_split(vectors, 7))


def exact(vectors, queries, count):
    scores = queries @ vectors.T
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def test_exact_is_exact(vectors):
    index = indexing.build(parts_of(vectors), ROWS, SIZE, "exact")
    scores, places = indexing.search(index, vectors[:23], 5)
    np.testing.assert_array_equal(places, exact(vectors, vectors[:23], 5))
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-5)


def test_the_large_kind_finds_nearly_all(vectors):
    index = indexing.build(parts_of(vectors), ROWS, SIZE, "ivf")
    assert index.ntotal == ROWS
    index.nprobe = 16
    queries = unit(vectors[::50] + 0.02 * np.random.default_rng(1).standard_normal((61, SIZE)))
    _, places = indexing.search(index, queries, 10)
    wanted = exact(vectors, queries.astype(np.float32), 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(places, wanted, strict=True)])
    assert recall > 0.9


def test_as_many_are_found_as_are_asked_for(vectors):
    """More than the clusters hold that a search looks into."""
    index = indexing.build(parts_of(vectors), ROWS, SIZE, "ivf")
    _, places = indexing.search(index, vectors[:3], ROWS)
    assert all(sorted(found) == list(range(ROWS)) for found in places.tolist())
    _, places = indexing.search(index, vectors[:3], ROWS + 2)
    assert (places < 0).sum(axis=1).tolist() == [2, 2, 2]


def test_the_kind_is_by_size():
    assert indexing.kind_for(50_000, 1536) == "exact"
    assert indexing.kind_for(1_000_000, 1536) == "ivf"
    assert indexing.factory("ivf", 1_000_000) == "IVF1024,SQ8"


def test_a_saved_index_is_used_until_the_embeddings_change(vectors, tmp_path, monkeypatch):
    built = []
    real = indexing.build
    monkeypatch.setattr(indexing, "build", lambda *a: built.append(a) or real(*a))
    for about in ({"model": "a"}, {"model": "a"}, {"model": "b"}, {"model": "b"}):
        index = indexing.opened(tmp_path, parts_of(vectors), ROWS, SIZE, "exact", about)
        assert indexing.search(index, vectors[5:6], 1)[1].tolist() == [[5]]
    assert len(built) == 2
    indexing.opened(tmp_path, parts_of(vectors), ROWS, SIZE, "ivf", {"model": "b"})
    assert len(built) == 3


def test_an_index_that_cannot_be_kept_is_searched_all_the_same(vectors, tmp_path, caplog):
    """As in a folder that is only to be read, on a disk that others share."""
    (tmp_path / "index.faiss.tmp").mkdir()  # no file can be written there
    index = indexing.opened(tmp_path, parts_of(vectors), ROWS, SIZE, "exact", {})
    assert indexing.search(index, vectors[5:6], 1)[1].tolist() == [[5]]
    assert "the index is not kept" in caplog.text
    assert not (tmp_path / "index.faiss").exists()


def test_an_index_without_its_words_is_not_trusted(vectors, tmp_path):
    indexing.opened(tmp_path, parts_of(vectors), ROWS, SIZE, "exact", {})
    about = {"index": "Flat", "indexed_rows": ROWS}
    assert indexing.load(tmp_path / "index.faiss", about) is not None
    for words in ("{", "[1]", "{}"):
        (tmp_path / "index.json").write_text(words)
        assert indexing.load(tmp_path / "index.faiss", about) is None
    (tmp_path / "index.json").unlink()
    assert indexing.load(tmp_path / "index.faiss", about) is None


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_damaged_index_is_built_again(vectors, tmp_path, caplog, kind):
    """FAISS would take a flipped bit for another vector, another row or another length."""
    arguments = tmp_path, parts_of(vectors), ROWS, SIZE, kind, {"of": "these"}
    indexing.opened(*arguments)
    file = tmp_path / "index.faiss"
    whole = file.read_bytes()
    places = [5, len(whole) // 2, len(whole) - 3]
    flipped = [whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :] for i in places]
    for damaged in (whole[: len(whole) // 2], b"", *flipped):
        file.write_bytes(damaged)
        assert indexing.opened(*arguments).ntotal == ROWS
        assert file.read_bytes() == whole
    assert "is damaged and is built again" in caplog.text
