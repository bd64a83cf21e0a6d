"""Offsets against plain lists, and lines against Python's own."""

import numpy as np
import pytest
from etils import epath

from jepa_jax.data.sources import offsets


def test_what_was_added_comes_back_however_far_apart():
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.integers(1, 2**31, 1000))
    found = offsets.Offsets()
    for piece in np.split(values, [0, 1, 400, 997]):
        found.extend(piece)
    assert [found[i] for i in range(len(found))] == values.tolist()
    with pytest.raises(IndexError):
        found[len(values)]


def test_four_bytes_a_row():
    found = offsets.Offsets()
    for begin in range(0, 2**20, 2**16):
        found.extend(np.arange(begin, begin + 2**16) * 100)
    assert sum(group.nbytes for group in found._distances) == 4 * 2**20


@pytest.mark.parametrize("block", [1, 2, 7, 2**22])
@pytest.mark.parametrize("seed", range(4))
def test_lines_are_pythons_whatever_the_blocks(tmp_path, monkeypatch, block, seed):
    rng = np.random.default_rng(seed)
    parts = [b"", b"\r", b"a", b"{}", b"some words", b" "]
    content = b"\n".join(parts[i] for i in rng.integers(0, len(parts), 60)) + b"\n" * (seed % 2)
    file = epath.Path(tmp_path / "rows")
    file.write_bytes(content)
    monkeypatch.setattr(offsets, "_BLOCK_BYTES", block)
    begins, empty, size = offsets.lines(file)
    split = content.split(b"\n")
    split = split[:-1] if content.endswith(b"\n") else split
    kept = [number for number, line in enumerate(split) if line.strip()]
    starts = np.cumsum([0] + [len(line) + 1 for line in split])
    assert size == len(content)
    assert [begins[i] for i in range(len(begins))] == [starts[number] for number in kept]
    assert list(empty) == [
        sum(k < number for k in kept) for number, line in enumerate(split) if not line.strip()
    ]
