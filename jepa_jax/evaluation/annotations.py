"""Benchmarks' annotation files: JSON, JSON lines, tables and Parquet, checked against a stated form."""

import csv
import io
import json
import pathlib
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jepa_jax.errors import first_line
from jepa_jax.flags import UsageError

# Official files have some hundred MB at most.
MAX_BYTES = 1 << 30


def folder_of(path: pathlib.Path) -> pathlib.Path:
    """The folder of a benchmark's files, given it or a file in it."""
    return path if path.is_dir() else path.parent


def locate(path: pathlib.Path, *names: str) -> pathlib.Path:
    """A benchmark's file by its official name.

    Args:
      path: the folder that holds it, or has it in `annotations`; or another file of the same folder.
      names: the names it is known under; the first that exists is taken.

    Raises:
      UsageError: there is none.
    """
    folder = folder_of(path)
    for name in names:
        for place in (folder / name, folder / "annotations" / name):
            if place.is_file():
                return place
    raise UsageError(f"no {' or '.join(names)} in {folder}: give --annotations the folder that holds it")


def main_file(path: pathlib.Path, *names: str) -> pathlib.Path:
    """A benchmark's first file: `path` itself, whatever it is called, or the one so named in the folder."""
    return path if path.is_file() else locate(path, *names)


def _text(path: pathlib.Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UsageError(f"{path} has {size:,} bytes; annotation files of at most {MAX_BYTES:,} are read")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _checked(path: pathlib.Path, content: Any, form: Any) -> Any:
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UsageError(f"{path} is not of the form expected: at {place}, {reason}") from error


def _parsed(path: pathlib.Path, text: str, where: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the former is also that of a number of too many digits
        raise UsageError(f"{path}{where} is not JSON: {error}") from error


def read_json(path: pathlib.Path, form: Any) -> Any:
    """The content of a JSON file, as pydantic makes it of `form`.

    Raises:
      UsageError: not JSON, or not of that form; says where.
    """
    return _checked(path, _parsed(path, _text(path)), form)


def read_rows(path: pathlib.Path, row: Any) -> list[Any]:
    """The rows of a JSON list, of a JSON object of rows, or of a file with an object a line.

    Raises:
      UsageError: as `read_json`.
    """
    text = _text(path)
    # Not splitlines(): captions hold other line separators of Unicode, unescaped.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    # Several lines, each of which begins as an object: JSON lines. One line may be either.
    if lines and all(line.lstrip().startswith("{") for _, line in lines[:2]) and len(lines) > 1:
        content = [_parsed(path, line, f", line {number},") for number, line in lines]
    else:
        content = _parsed(path, text)
        if isinstance(content, dict):
            rows = list(content.values())
            content = rows if rows and all(isinstance(value, dict) for value in rows) else [content]
    return _checked(path, content, list[row])


def read_table(path: pathlib.Path, row: Any) -> list[Any]:
    """The rows of a table with a header: tabs in a .tsv, else commas.

    Raises:
      UsageError: as `read_json`.
    """
    # Tables with tabs are written without quoting: a quote in them is one.
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    try:
        rows = list(csv.DictReader(io.StringIO(_text(path), newline=""), **dialect))
    except csv.Error as error:
        raise UsageError(f"{path} is not a table: {error}") from error
    return _checked(path, [{k: v for k, v in found.items() if k is not None} for found in rows], list[row])


def read_lists(path: pathlib.Path) -> list[list[str]]:
    """The rows of a table without a header."""
    try:
        return [found for found in csv.reader(io.StringIO(_text(path), newline="")) if found]
    except csv.Error as error:
        raise UsageError(f"{path} is not a table: {error}") from error


def read_text_lines(path: pathlib.Path) -> list[str]:
    """The lines of a text, stripped, without empty ones and those that begin with #."""
    lines = [line.strip() for line in _text(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


def read_parquet(path: pathlib.Path, row: Any) -> list[Any]:
    """The rows of a Parquet file.

    Raises:
      UsageError: as `read_json`, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("Parquet files need pyarrow: pip install 'jepa_jax[eval]'") from error
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} is larger than the {MAX_BYTES:,} bytes that are read")
    try:
        content = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a Parquet file: {first_line(error)}") from error
    return _checked(path, content, list[row])
