"""Rows by number against a file that is read whole."""

import csv
import io
import pickle

import numpy as np
import pytest
from etils import epath

from jepa_jax.data.records import BadRecordError
from jepa_jax.data.sources import rows
from jepa_jax.data.sources.tables import Csv, JsonLines


def json_content(rng, end):
    parts = [b"", b"\r", b"a", b"{}", b"some words that take more", b" ", b"\xff\xfe"]
    return b"\n".join(parts[i] for i in rng.integers(0, len(parts), 60)) + end


def csv_content(rng, end):
    parts = ["a,b", '"two\nlines",x', '"say ""so""",', "", "\r", ",,,", '"broken"x,y', "größer,ö", ' "a', '"']
    # The last opens a field that only the next quote closes, lines later.
    chances = np.array([10.0] * 9 + [1.0])
    picked = rng.choice(len(parts), 60, p=chances / chances.sum())
    return "\n".join(parts[i] for i in picked).encode() + end


SCANS = {rows.json_rows: json_content, rows.csv_rows: csv_content}


@pytest.mark.parametrize("block", [1, 2, 7, 60, 2**13])
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("seed", range(6))
def test_each_row_is_what_one_scan_of_the_file_finds(tmp_path, monkeypatch, block, scan, seed):
    rng = np.random.default_rng(seed)
    content = SCANS[scan](rng, b"\n" * (seed % 3))
    begins, lines = map(np.concatenate, zip(*scan(io.BytesIO(content)), strict=True))
    path = epath.Path(tmp_path / "rows")
    header = b"x,y\n" * (seed % 2)
    path.write_bytes(header + content)
    monkeypatch.setattr(rows, "BLOCK_BYTES", block)
    found = rows.Rows(path, scan, start=len(header))
    assert len(found) == len(begins) > 10
    ends = [*begins[1:], len(content)]
    for i in (*range(len(found)), *rng.permutation(len(found))):
        assert found.read(i, "") == content[begins[i] : ends[i]]
        assert found.line(i) == lines[i]
    with pytest.raises(IndexError):
        found.read(len(found), "")


@pytest.mark.parametrize("read", [1, 2, 7, 2**22])
@pytest.mark.parametrize("seed", range(4))
def test_lines_are_pythons_however_they_are_read(monkeypatch, read, seed):
    content = json_content(np.random.default_rng(seed), b"\n" * (seed % 2))
    monkeypatch.setattr(rows, "_READ_BYTES", read)
    begins, numbers = map(np.concatenate, zip(*rows.json_rows(io.BytesIO(content)), strict=True))
    lines = content.split(b"\n")
    kept = [number for number, line in enumerate(lines) if line.strip()]
    starts = np.cumsum([0] + [len(line) + 1 for line in lines])
    assert begins.tolist() == [starts[number] for number in kept]
    assert numbers.tolist() == kept


def test_rows_of_csv_are_pythons(tmp_path):
    text = 'h,i\n"one\n\ntwo",x\n\n\r\n1,2\n"a ""b""",\n'
    path = epath.Path(tmp_path / "a.csv")
    path.write_bytes(text.encode())
    table = Csv(path)
    expected = [{k: v for k, v in row.items() if v} for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert [table.row(i) for i in range(len(table))] == expected


def test_memory_is_of_the_files_size_and_not_of_its_rows(tmp_path):
    path = epath.Path(tmp_path / "a.jsonl")
    path.write_bytes(b'{"a": 1}\n' * 500_000)
    table = JsonLines(path)
    assert len(table) == 500_000
    assert len(pickle.dumps(table)) < 30_000
    assert (table.row(499_999), table.name(499_999)) == ({"a": 1}, "a.jsonl:500000")
    assert len(pickle.dumps(table)) < 30_000, "what was read goes along"


@pytest.fixture
def sizes(monkeypatch):
    """Of all that is read, in bytes."""
    read, found = rows.read_piece, []

    def counted(path, offset, size, name):
        found.append(size)
        return read(path, offset, size, name)

    monkeypatch.setattr(rows, "read_piece", counted)
    return found


def test_neighbours_are_read_together(tmp_path, sizes):
    path = epath.Path(tmp_path / "a.jsonl")
    path.write_bytes(b'{"a": 1}\n' * 10_000)
    table = JsonLines(path)
    assert all(table.row(i) == {"a": 1} for i in range(10_000))
    assert len(sizes) < 30


def test_a_file_that_changed_or_went(tmp_path):
    path = epath.Path(tmp_path / "a.jsonl")
    path.write_bytes(b'{"a": 1}\n\n' * 10_000)
    table = JsonLines(path)
    for change in (lambda: path.write_bytes(b"\n" * 100_000), path.unlink):
        change()
        with pytest.raises(BadRecordError) as raised:
            table.row(5_000)
        assert raised.value.cause == "archive damaged"
        assert raised.value.name.startswith("a.jsonl:")


def test_a_line_that_is_too_long_is_not_read(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 50_000)
    path = epath.Path(tmp_path / "a.jsonl")
    path.write_bytes(b'{"a": 1}\n{"a": "%s"}\n{"a": "%s"}' % (b"x" * 90_000, b"x" * 40_000))
    table = JsonLines(path)
    with pytest.raises(BadRecordError, match=r"line not readable \(90\d\d\d bytes\)"):
        table.row(1)
    assert len(table.row(2)["a"]) == 40_000
    assert max(sizes) < 50_000


def test_a_row_of_fields_without_end_is_given_up(tmp_path, monkeypatch):
    """They would take many times their bytes of memory, as a header or as a row."""
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 100)
    path = epath.Path(tmp_path / "x.csv")
    path.write_text("a,b," + 'c","\n' * 1000)
    with pytest.raises(
        ValueError, match=r"x\.csv: its first line cannot be read: a row of more than 100 bytes"
    ):
        Csv(path)
    read = rows.CsvLines(io.BytesIO(b'x,"\n' + b'c","\n' * 1000))
    with pytest.raises(csv.Error, match="a row of more than 100 bytes"):
        next(csv.reader(read, strict=True))
    path.write_text("a,b\n" + "x,y\n" * 1000)  # of many rows none is long
    assert len(Csv(path)) == 1000
