"""Rows of a text file by number: where one begins is kept for each block of the file, and found again for
the others."""

import bisect
import csv
import dataclasses
import io
from array import array
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from etils import epath

from jepa_jax.data.records import BadRecordError
from jepa_jax.data.sources.files import read_piece

# A longer line is taken for damage: it is not read.
MAX_LINE_BYTES = 2**24
# Of the rows that begin in one block of the file the first is kept.
BLOCK_BYTES = 2**13
# So much of a last line shows that it is a row, and not blank.
_SHOWS_A_ROW = 2
_READ_BYTES = 2**20
_ROWS_TOGETHER = 4096
# A row of CSV that cannot be read is read on from its second line, and a quote may go on to the end of the
# file. Rows that people spoil end at the next quote, so the same bytes are read again a few times at most.
_AGAIN, _AGAIN_BYTES = 4, 2**25
_BLANK = np.frombuffer(b" \t\r\v\f", np.uint8)
# Python's own is 131,072 characters, which a column of boxes or of a transcript may well have.
csv.field_size_limit(MAX_LINE_BYTES)

# Reads a file on from where a row begins, and gives of some rows at a time where they begin, in bytes from
# there, and in which line from there on: [n], [n] int64.
Scan = Callable[[BinaryIO], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class _Block:
    """The rows that begin in one block.

    Attributes:
      first: how many rows are before them.
      content: from the first of them on, at least to where the last begins.
      begins: [rows + 1], where in the file they begin, and the last one ends, in bytes.
      lines: [rows], in which line of the file they begin.
    """

    first: int
    content: bytes
    begins: np.ndarray
    lines: np.ndarray


class Rows:
    """Rows of a file. Memory is 24 bytes for each 8 kB of it, and one such block.

    Args:
      scan: a function of a module, so that it can be pickled.
      start: where the first row may begin, in bytes.
    """

    def __init__(self, path: epath.Path, scan: Scan, start: int = 0):
        self._path, self._scan = path, scan
        # Of the first row of each block: how many rows are before it, where it begins, in which line.
        self._firsts, self._begins, self._lines = array("q"), array("q"), array("q")
        self._count, last = 0, -1
        with path.open("rb") as file:
            file.seek(start)
            for places, lines in scan(file):
                begins = places + start
                blocks = begins // BLOCK_BYTES
                new = np.flatnonzero(np.diff(blocks, prepend=last))
                self._firsts.extend((new + self._count).tolist())
                self._begins.extend(begins[new].tolist())
                self._lines.extend(lines[new].tolist())
                self._count, last = self._count + len(begins), blocks[-1]
            self._size = file.tell()
        # Neighbours are often read one after another. Threads replace it whole.
        self._last: _Block | None = None

    def __getstate__(self):
        return self.__dict__ | {"_last": None}

    def __len__(self) -> int:
        return self._count

    def read(self, index: int, name: str) -> bytes:
        """A row, and what blank lines follow it.

        Raises:
          BadRecordError: it is too long, or the file is gone or not what it was.
        """
        block = self._block(index, name)
        place = index - block.first
        begin, end = block.begins[place : place + 2].tolist()
        if end - begin > MAX_LINE_BYTES:
            raise BadRecordError("line not readable", name, f"{end - begin} bytes")
        offset = begin - int(block.begins[0])
        if offset + end - begin <= len(block.content):
            return block.content[offset : offset + end - begin]
        return read_piece(self._path, begin, end - begin, name)

    def line(self, index: int) -> int:
        """In which line of the file a row begins, from 0; of a file that is gone, as if none were blank."""
        number = self._number(index)
        place = index - self._firsts[number]
        if number + 1 < len(self._firsts):
            rows, lines = (kept[number + 1] - kept[number] for kept in (self._firsts, self._lines))
            if rows == lines:
                return self._lines[number] + place
        try:
            return int(self._block(index, "").lines[place])
        except BadRecordError:
            return self._lines[number] + place

    def _number(self, index: int) -> int:
        """Of the block that a row begins in."""
        if not 0 <= index < self._count:
            raise IndexError(f"{index} of {self._count} rows")
        return bisect.bisect_right(self._firsts, index) - 1

    def _block(self, index: int, name: str) -> _Block:
        block = self._last
        if block is None or not 0 <= index - block.first < len(block.lines):
            self._last = block = self._read_block(self._number(index), name)
        return block

    def _read_block(self, number: int, name: str) -> _Block:
        begin, first = self._begins[number], self._firsts[number]
        is_last = number + 1 == len(self._firsts)
        end, after = (
            (self._size, self._count) if is_last else (self._begins[number + 1], self._firsts[number + 1])
        )
        size = min(end - begin, BLOCK_BYTES + _SHOWS_A_ROW)
        content = read_piece(self._path, begin, size, name)
        found = list(self._scan(io.BytesIO(content)))
        if sum(len(begins) for begins, _ in found) < after - first:
            raise BadRecordError("archive damaged", name, "its file is not what it was")
        # The last row may go on after what was read, and what follows of it look like more rows.
        begins, lines = (np.concatenate(parts)[: after - first] for parts in zip(*found, strict=True))
        return _Block(first, content, np.append(begins + begin, end), lines + self._lines[number])


def json_rows(file: BinaryIO) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Lines that are not blank, as `Scan` has it. A blank line holds nothing, or one space: the first half
    of Windows' end of line."""
    begin, size, line = 0, 0, 0  # of the line that goes on; of what was read; its number
    last = 0  # byte that was read

    def rows(begins: np.ndarray, ends: np.ndarray, firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blank = (begins == ends) | ((ends - begins == 1) & np.isin(firsts, _BLANK))
        return begins[~blank], line + np.flatnonzero(~blank)

    while content := file.read(_READ_BYTES):
        block = np.frombuffer(content, np.uint8)
        ends = np.flatnonzero(block == ord("\n")) + size
        if len(ends):
            begins = np.concatenate([[begin], ends[:-1] + 1])
            # Of a line that goes on from the block before, what counts is whether it is one byte.
            firsts = np.where(begins < size, last, block[np.maximum(begins - size, 0)])
            found = rows(begins, ends, firsts)
            if len(found[0]):
                yield found
            begin, line = int(ends[-1]) + 1, line + len(ends)
        size, last = size + len(block), int(block[-1])
    if begin < size:
        found = rows(np.array([begin]), np.array([size]), np.array([last]))
        if len(found[0]):
            yield found


class CsvLines:
    """A file's lines for `csv`: of one that is longer than a row may be, pieces. What is not UTF-8 in them is
    told when the row is read: here only quotes count.

    Attributes:
      row: bytes of the row so far; who takes rows sets it back. A row of fields without end would take 15
        times its bytes of memory.
    """

    def __init__(self, file: BinaryIO, encoding: str = "utf-8"):
        self._file, self._encoding, self.row = file, encoding, 0

    def __iter__(self) -> "CsvLines":
        return self

    def __next__(self) -> str:
        """Raises csv.Error where the row is too long."""
        line = self._file.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self.row += len(line)
        if self.row > MAX_LINE_BYTES:
            raise csv.Error(f"a row of more than {MAX_LINE_BYTES} bytes")
        return line.decode(self._encoding, "replace")


def csv_rows(file: BinaryIO) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of CSV that are not empty, as `Scan` has it. A row that cannot be read ends with its first line:
    a quote that nobody closed would else take in all that follow.

    Raises:
      ValueError: quotes that are not closed lead to the file's end too often.
    """
    start = file.tell()
    begins, lines = array("q"), array("q")
    given = CsvLines(file)
    rows = csv.reader(given, strict=True)
    begin = line = before = again = 0  # `before`: lines that earlier readers were given
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            row = [""]  # told when it is read
            again += file.tell() - start - begin
            if again > _AGAIN_BYTES + _AGAIN * begin:
                raise ValueError(
                    f"row after row has a quote that is not closed, line {line + 1} too"
                ) from error
            file.seek(start + begin)
            file.readline(MAX_LINE_BYTES)
            given = CsvLines(file)
            rows, before = csv.reader(given, strict=True), line + 1
        given.row = 0
        if row:
            begins.append(begin)
            lines.append(line)
        if len(begins) == _ROWS_TOGETHER or (row is None and begins):
            yield np.array(begins, np.int64), np.array(lines, np.int64)
            del begins[:], lines[:]
        if row is None:
            return
        begin, line = file.tell() - start, before + rows.line_num
