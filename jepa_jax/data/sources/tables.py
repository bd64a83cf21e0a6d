"""Rows of a manifest by number: JSON Lines, CSV or Parquet."""

import bisect
import collections
import contextlib
import csv
import functools
import itertools
import json
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from etils import epath

from jepa_jax.data.records import BadRecordError
from jepa_jax.data.sources.fields import is_within, paths_of
from jepa_jax.data.sources.files import checksum, extension
from jepa_jax.data.sources.rows import CsvLines, Rows, Scan, csv_rows, json_rows
from jepa_jax.data.sources.selection import spread

# So many rows are asked for the names of their fields, the first, and as many spread over the others: of
# files joined into one the later may have other fields.
ROWS_ASKED = 100
# Of Parquet: a table of so many bytes and rows is read at once (what repeats takes no bytes); of others so
# many rows, through so large a buffer.
SMALL_TABLE_BYTES, _SMALL_TABLE_ROWS, _BATCH_ROWS, _BUFFER_BYTES = 2**20, 2**15, 1024, 2**20
# A column so large, so large by row, and so much larger in memory than in the file was made to fill the
# memory: of texts it is ten times.
_EXPANDED_BYTES, _EXPANDED_ROW_BYTES, _EXPANSION = 2**26, 2**12, 1000
# Rows are read in any order if the next one was not near so many times of late, and once in so many reads.
_JUMPS, _STEPS_PER_JUMP = 100, 16


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
        return ((i, row.get(key)) for i, row in self._readable(range(len(self))))

    def _readable(self, indices: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in indices:
            with contextlib.suppress(BadRecordError):  # told again by `row`
                yield i, self.row(i)

    def _row_of(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    @functools.cached_property
    def known(self) -> tuple[str, ...]:
        found: dict[str, None] = {}
        first = itertools.islice(self._readable(range(len(self))), ROWS_ASKED)
        for _, row in itertools.chain(first, self._readable(spread(len(self), ROWS_ASKED))):
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
                self._header = next(csv.reader(CsvLines(file, "utf-8-sig"), strict=True), [])
            except csv.Error as error:
                raise ValueError(f"{path}: its first line cannot be read: {error}") from error
            start = file.tell()
        if not self._header or len(set(self._header)) != len(self._header):
            raise ValueError(f"{path}: its first line must name every column once")
        try:
            super().__init__(path, csv_rows, start)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(self._header)

    def _row_of(self, text: str) -> dict[str, Any]:
        (values,) = csv.reader([text.rstrip("\r\n")], strict=True)
        if len(values) != len(self._header):
            raise ValueError(f"{len(values)} values for {len(self._header)} columns")
        return {key: value for key, value in zip(self._header, values, strict=True) if value != ""}


class Parquet:
    """A Parquet file, of which only the columns that `use` names are read.

    A few rows are in memory, as Arrow keeps them, where rows are read one after another. All are, in each
    process, where they are few, or are read in any order: Parquet has no access to single rows.
    """

    def __init__(self, path: epath.Path):
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(f"{path}: Parquet needs pyarrow: pip install 'jepa_jax[parquet]'") from error
        try:
            with path.open("rb") as file, pyarrow.parquet.ParquetFile(file) as parquet:
                metadata = parquet.metadata
                groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
                # How many rows are before each group.
                self._before = [0, *itertools.accumulate(group.num_rows for group in groups)]
                size = sum(group.total_byte_size for group in groups)
                # What describes the groups is read at each jump: of small ones that is soon all of the file.
                are_small = len(self) <= _BATCH_ROWS * len(groups)
                self._jumps_to_all = path.stat().length / metadata.serialized_size if are_small else math.inf
                self._is_small = size <= SMALL_TABLE_BYTES and len(self) <= _SMALL_TABLE_ROWS
                schema = parquet.schema_arrow
                self._expanding = {x for group in groups for x in _expanding(group)}
        except (pyarrow.ArrowException, OSError) as error:  # the latter of damage in what describes it, too
            raise ValueError(f"{path}: not a Parquet file: {error}") from error
        self._path = path
        self._columns = list(schema.names)
        empty = {field.name: _shape_of(field.type) for field in schema}
        self.known = tuple(paths_of(empty))
        self.identity = f"{path.name} {checksum(path)}"
        self._forget()

    def _forget(self) -> None:
        # The batches that follow, and the one that was read last, with how many rows are before it.
        self._batches: Iterator[Any] | None = None
        self._first, self._batch = 0, None
        # All rows, once they are in memory, in batches, and how many are before each and in all.
        self._all, self._begins = [], [0]
        # Rows that were read, and how many had been at each of the last jumps, elsewhere than into the last
        # batch or after it. What was read in order before, to measure all texts, says nothing of what comes.
        self._steps = 0
        self._jumps: collections.deque[int] = collections.deque(maxlen=_JUMPS)
        self._lock = threading.Lock()

    def use(self, paths: Sequence[str]) -> None:
        """Read only the columns of these fields.

        Raises:
          ValueError: one of them takes far more memory than the file has bytes, or stands there twice.
        """
        self._columns = [name for name in self._columns if any(is_within(path, name) for path in paths)]
        if twice := [name for name in self._columns if self._columns.count(name) > 1]:
            raise ValueError(f"{self._path}: several of its columns are called {twice[0]!r}: rename them")
        if expanding := sorted(self._expanding.intersection(self._columns)):
            raise ValueError(
                f"{self._path}: {expanding[0]} would take over {_EXPANDED_BYTES:,} bytes of memory, "
                f"{_EXPANSION:,} times what the file has of it: it is not read"
            )

    def __len__(self) -> int:
        return self._before[-1]

    def name(self, index: int) -> str:
        return f"{self._path.name}:{index + 1}"

    def row(self, index: int) -> dict[str, Any]:
        first, batch = self._batch_of(index)
        return {column: self._value(batch, column, index - first, index) for column in self._columns}

    def values(self, key: str) -> Iterator[tuple[int, Any]]:
        for i in range(len(self)):
            first, batch = self._batch_of(i)
            with contextlib.suppress(BadRecordError):  # told again by `row`
                yield i, self._value(batch, key, i - first, i)

    def _value(self, batch, column: str, place: int, index: int) -> Any:
        try:
            return batch[column][place].as_py()
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", self.name(index), str(error.reason)) from error
        except (ValueError, OverflowError) as error:  # a time that Python has none for
            raise BadRecordError("line not readable", self.name(index), str(error)) from error

    def _batch_of(self, index: int) -> tuple[int, Any]:
        """The rows in memory that a row is among, read now if they are not, and how many are before them."""
        import pyarrow.parquet

        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} rows")
        with self._lock:
            try:
                if self._batch is None or not 0 <= index - self._first < len(self._batch):
                    self._read(index)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{self._path}: it cannot be read: {error}") from error
            self._steps += 1
            return self._first, self._batch

    def _read(self, index: int) -> None:
        from pyarrow import parquet

        after = self._first + (0 if self._batch is None else len(self._batch))
        if not self._all and (self._batches is None or not after <= index < after + _BATCH_ROWS):
            is_often = len(self._jumps) == _JUMPS and self._steps - self._jumps[0] < _JUMPS * _STEPS_PER_JUMP
            self._jumps.append(self._steps)
            if self._is_small or is_often or len(self._jumps) > self._jumps_to_all:
                with self._path.open("rb") as file:
                    # A table looks for a row in one of its pieces after another.
                    self._all = parquet.read_table(file, columns=self._columns).to_batches()
                self._begins = [0, *itertools.accumulate(map(len, self._all))]
            else:
                group = bisect.bisect_right(self._before, index) - 1
                after, self._batches = self._before[group], self._stream(group)
        if index < self._begins[-1]:
            place = bisect.bisect_right(self._begins, index) - 1
            self._first, self._batch, self._batches = self._begins[place], self._all[place], None
            return
        for batch in self._batches or ():
            self._first, self._batch = after, batch
            after += len(batch)
            if index < after:
                return
        raise OSError(f"{after} of {len(self)} rows are left")

    def _stream(self, group: int) -> Iterator[Any]:
        """Its rows from a group of them on, some at a time."""
        from pyarrow import parquet

        with self._path.open("rb") as file, parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES) as opened:
            groups = range(group, len(self._before) - 1)
            yield from opened.iter_batches(_BATCH_ROWS, groups, self._columns, use_threads=False)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_batches", "_batch", "_all", "_lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._forget()


def _expanding(group) -> Iterator[str]:
    """The columns of a group of rows that would fill the memory."""
    least = max(_EXPANDED_BYTES, _EXPANDED_ROW_BYTES * group.num_rows)
    for column in map(group.column, range(group.num_columns)):
        if column.total_uncompressed_size > max(least, _EXPANSION * column.total_compressed_size):
            yield column.path_in_schema.split(".")[0]


def _shape_of(kind) -> Any:
    """A value of an Arrow type's shape, for `paths_of`."""
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {field.name: _shape_of(field.type) for field in kind}
    kinds = pyarrow.types
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return [_shape_of(kind.value_type)]
    return None
