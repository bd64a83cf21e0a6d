"""Rows of a manifest by number: JSON Lines, CSV or Parquet."""

import contextlib
import csv
import functools
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from jepa_jax.data.records import BadRecordError
from jepa_jax.data.sources.fields import is_within, paths_of
from jepa_jax.data.sources.files import checksum, extension, read_piece

# A longer line is taken for damage: it is not read.
MAX_LINE_BYTES = 2**24
# So many rows are asked for the names of their fields.
ROWS_ASKED = 100


class Table(Protocol):
    """Rows of one file.

    Attributes:
      identity: the file's name and a checksum of its content.
      known: paths of all fields.
    """

    identity: str
    known: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Of the row: the file and the row's number, from 1."""

    def row(self, index: int) -> dict[str, Any]:
        """Raises BadRecordError for a row that cannot be read."""

    def values(self, key: str) -> Iterator[tuple[int, Any]]:
        """Of one top-level field in all rows that can be read, with the rows' indices."""


def open_table(path: epath.Path) -> Table:
    """The table of a file, by its extension."""
    return {"jsonl": JsonLines, "csv": Csv, "parquet": Parquet}[extension(path.name)](path)


class _Lines:
    """A text file whose rows are found by their offsets; a row is parsed when it is asked for."""

    def __init__(self, path: epath.Path, spans: np.ndarray):
        self._path = path
        self._spans = spans  # [rows, 2] of begin and end, in bytes
        self.identity = f"{path.name} {checksum(path)}"

    def __len__(self) -> int:
        return len(self._spans)

    def name(self, index: int) -> str:
        return f"{self._path.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        self._check_length(index)
        begin, end = (int(value) for value in self._spans[index])
        return self._parse(index, read_piece(self._path, begin, end - begin, self.name(index)))

    def values(self, key: str) -> Iterator[tuple[int, Any]]:
        return ((i, row.get(key)) for i, row in self._rows())

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._path.open("rb") as file:
            for i, (begin, end) in enumerate(self._spans):
                try:
                    self._check_length(i)
                    file.seek(int(begin))
                    yield i, self._parse(i, file.read(int(end - begin)))
                except BadRecordError:
                    continue  # told again by `row`

    def _check_length(self, index: int) -> None:
        begin, end = self._spans[index]
        if end - begin > MAX_LINE_BYTES:
            raise BadRecordError("line not readable", self.name(index), f"{end - begin} bytes")

    def _parse(self, index: int, content: bytes) -> dict[str, Any]:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", self.name(index), str(error.reason)) from error
        try:
            return self._row_of(text)
        except (ValueError, RecursionError, csv.Error) as error:
            raise BadRecordError("line not readable", self.name(index), str(error)) from error

    def _row_of(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    @functools.cached_property
    def known(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for _, row in itertools.islice(self._rows(), ROWS_ASKED):
            found |= dict.fromkeys(paths_of(row))
        return tuple(found)


class JsonLines(_Lines):
    """An object a line; empty lines are no rows."""

    def __init__(self, path: epath.Path):
        ends, size = [], 0
        with path.open("rb") as file:
            while block := file.read(2**22):
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + size)
                size += len(block)
        ends = np.concatenate([*ends, [size]]).astype(np.int64)
        spans = np.stack([np.concatenate([[0], ends[:-1] + 1]), ends], axis=1)
        # An empty line holds nothing, or the first half of Windows' end of line.
        short = spans[:, 1] - spans[:, 0] <= 1
        if short.any():
            with path.open("rb") as file:
                for i in np.flatnonzero(short):
                    file.seek(int(spans[i, 0]))
                    short[i] = not file.read(int(spans[i, 1] - spans[i, 0])).strip()
        self._numbers = np.flatnonzero(~short)
        super().__init__(path, spans[~short])

    def name(self, index: int) -> str:
        return f"{self._path.name}:{int(self._numbers[index]) + 1}"

    def _row_of(self, text: str) -> dict[str, Any]:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        return row


class Csv(_Lines):
    """A header with the columns' names, then rows; a quoted field may go over several lines."""

    def __init__(self, path: epath.Path):
        spans, begin, end = [], 0, 0

        def lines() -> Iterator[str]:
            nonlocal end
            with path.open("rb") as file:
                # Not a whole line of any length, which may be all of a file that is no CSV.
                while line := file.readline(MAX_LINE_BYTES):
                    end += len(line)
                    # Rows that are not UTF-8 are told when they are read: here only quotes count.
                    yield line.decode("utf-8-sig" if end == len(line) else "utf-8", "replace")

        rows = csv.reader(lines(), strict=True)
        self._header = None
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error:
                row = [""]  # told when it is read
            if self._header is None:
                self._header = row
            elif row:
                spans.append((begin, end))
            begin = end
        if not self._header or len(set(self._header)) != len(self._header):
            raise ValueError(f"{path}: its first line must name every column once")
        super().__init__(path, np.array(spans, np.int64).reshape(-1, 2))

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(self._header)

    def _row_of(self, text: str) -> dict[str, Any]:
        (values,) = csv.reader([text], strict=True)
        if len(values) != len(self._header):
            raise ValueError(f"{len(values)} values for {len(self._header)} columns")
        return {key: value for key, value in zip(self._header, values, strict=True) if value != ""}


class Parquet:
    """A Parquet file. Its columns come into memory, as Arrow keeps them, in each process that reads it and
    when it first does: only those that `use` names."""

    def __init__(self, path: epath.Path):
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(f"{path}: reading Parquet takes pyarrow: pip install pyarrow") from error
        try:
            with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
                self._rows = parquet.metadata.num_rows
                schema = parquet.schema_arrow
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path}: not a Parquet file: {error}") from error
        self._path = path
        self._columns = list(schema.names)
        empty = {field.name: _shape_of(field.type) for field in schema}
        self.known = tuple(paths_of(empty))
        self.identity = f"{path.name} {checksum(path)}"
        self._table, self._lock = None, threading.Lock()

    def use(self, paths: Sequence[str]) -> None:
        """Read only the columns of these fields."""
        self._columns = [name for name in self._columns if any(is_within(path, name) for path in paths)]

    def __len__(self) -> int:
        return self._rows

    def name(self, index: int) -> str:
        return f"{self._path.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        table = self._loaded()
        return {column: self._value(table, column, index) for column in self._columns}

    def values(self, key: str) -> Iterator[tuple[int, Any]]:
        table = self._loaded()
        for i in range(len(self)):
            with contextlib.suppress(BadRecordError):  # told again by `row`
                yield i, self._value(table, key, i)

    def _value(self, table, column: str, index: int) -> Any:
        try:
            return table[column][index].as_py()
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", self.name(index), str(error.reason)) from error
        except (ValueError, OverflowError) as error:  # a time that Python has none for
            raise BadRecordError("line not readable", self.name(index), str(error)) from error

    def _loaded(self):
        import pyarrow.parquet

        with self._lock:
            if self._table is None:
                try:
                    with self._path.open("rb") as file:
                        self._table = pyarrow.parquet.read_table(file, columns=self._columns)
                except (pyarrow.ArrowException, OSError) as error:
                    raise ValueError(f"{self._path}: it cannot be read: {error}") from error
            return self._table

    def __getstate__(self):
        return self.__dict__ | {"_table": None, "_lock": None}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _shape_of(kind) -> Any:
    """A value of an Arrow type's shape, for `paths_of`."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {field.name: _shape_of(field.type) for field in kind}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return [_shape_of(kind.value_type)]
    return None
