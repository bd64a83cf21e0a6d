"""Rows of a manifest by number: JSON Lines, CSV or Parquet."""

import contextlib
import csv
import functools
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from etils import epath

from jepa_jax.data.records import BadRecordError
from jepa_jax.data.sources.fields import is_within, paths_of
from jepa_jax.data.sources.files import checksum, extension
from jepa_jax.data.sources.rows import Rows, Scan, csv_lines, csv_rows, json_rows

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
    """A text file whose rows are found by their number, and parsed when they are asked for. Blank lines
    belong to the row before them."""

    def __init__(self, path: epath.Path, scan: Scan, start: int = 0):
        self._path, self._rows = path, Rows(path, scan, start)
        self.identity = f"{path.name} {checksum(path)}"

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f"{self._path.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        name = self.name(index)
        try:
            text = self._rows.read(index, name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", name, str(error.reason)) from error
        try:
            return self._row_of(text)
        except (ValueError, RecursionError, csv.Error) as error:
            raise BadRecordError("line not readable", name, str(error)) from error

    def values(self, key: str) -> Iterator[tuple[int, Any]]:
        return ((i, row.get(key)) for i, row in self._readable())

    def _readable(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(len(self)):
            with contextlib.suppress(BadRecordError):  # told again by `row`
                yield i, self.row(i)

    def _row_of(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    @functools.cached_property
    def known(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for _, row in itertools.islice(self._readable(), ROWS_ASKED):
            found |= dict.fromkeys(paths_of(row))
        return tuple(found)


class JsonLines(_Lines):
    """An object a line; blank lines are no rows."""

    def __init__(self, path: epath.Path):
        super().__init__(path, json_rows)

    def name(self, index: int) -> str:
        return f"{self._path.name}:{self._rows.line(index) + 1}"

    def _row_of(self, text: str) -> dict[str, Any]:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        return row


class Csv(_Lines):
    """A header with the columns' names, then rows; a quoted field may go over several lines."""

    def __init__(self, path: epath.Path):
        with path.open("rb") as file:
            try:
                self._header = next(csv.reader(csv_lines(file, "utf-8-sig"), strict=True), [])
            except csv.Error as error:
                raise ValueError(f"{path}: its first line cannot be read: {error}") from error
            start = file.tell()
        if not self._header or len(set(self._header)) != len(self._header):
            raise ValueError(f"{path}: its first line must name every column once")
        super().__init__(path, csv_rows, start)

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(self._header)

    def _row_of(self, text: str) -> dict[str, Any]:
        (values,) = csv.reader([text.rstrip("\r\n")], strict=True)
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
