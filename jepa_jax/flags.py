"""The command line: a config file, overrides, and one sentence for whatever is wrong with them."""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import errno
import gc
import importlib.util
import json
import os
import pathlib
import re
import signal
import sys
from typing import Any, TypeVar, get_type_hints

from etils import epath
from pydantic import TypeAdapter, ValidationError

from jepa_jax import places
from jepa_jax.config import Config, DecoderConfig
from jepa_jax.errors import encodable, first_line, printable

ConfigT = TypeVar("ConfigT")
DEFAULT_CONFIG = "configs/demo.py"
# Whose configuration it is.
_KINDS = {Config: "a run", DecoderConfig: "a decoder"}


class UsageError(ValueError):
    """The user's mistake: printed as one sentence, exit status 2."""


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else f"; it has {', '.join(known)}"


def explain(error: ValidationError, where: str) -> str:
    """The first of a validation's complaints as a sentence."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(p) for p in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}"
    if first["type"] in ("missing", "json_invalid"):  # what was given is all there is
        return f"{where}: {place}: {message[0].lower()}{message[1:]}" if place else f"{where}: {message}"
    if message == "Input should be a valid array":  # JSON's word; a config file needs a tuple
        message = "input should be a list in brackets, texts in it in quotes: ['a', 'b']"
    given = first["input"]
    return f"{where}: {place or 'config'}={given!r}: {message[0].lower()}{message[1:]}"


def load_config(path: str, kind: type[ConfigT] = Config) -> ConfigT:
    """The `config` of some kind that a Python config file defines.

    Raises:
      UsageError: the file is missing, does not run, or defines no valid `config`.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        # The configs stand beside the package in a checkout, and inside it where it was installed.
        package = pathlib.Path(__file__).parent
        shipped = [folder / path for folder in (package.parent, package) if (folder / path).is_file()]
        if not shipped:
            raise UsageError(f"no config file {path!r}")
        file = shipped[0]
    spec = importlib.util.spec_from_file_location("jepa_jax_run_config", file)
    if spec is None:
        raise UsageError(f"config file {path!r} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValidationError as error:
        raise UsageError(explain(error, f"config file {path!r}")) from error
    except Exception as error:  # whatever a user's file raises is the user's to read
        line = getattr(error, "lineno", None)
        place = f", line {line}" if line else ""
        raise UsageError(
            f"config file {path!r}{place} does not run: {type(error).__name__}: {error}"
        ) from error
    config = getattr(module, "config", None)
    if not isinstance(config, kind):
        raise UsageError(f"config file {path!r} must define `config`, a jepa_jax.config.{kind.__name__}")
    return config


def config_from_json(text: str | bytes, where: str, kind: type[ConfigT] = Config) -> ConfigT:
    """A configuration from JSON; `where` names the source in the message of a UsageError."""
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        for other, name in _KINDS.items():
            with contextlib.suppress(ValidationError):
                TypeAdapter(other).validate_json(text)
                raise UsageError(f"{where} is that of {name}: give the folder of {_KINDS[kind]}") from error
        raise UsageError(explain(error, where)) from error


def config_to_json(config) -> str:
    """JSON that `config_from_json` reads back as an equal configuration."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def flatten(config) -> dict[str, object]:
    """{"optim.learning_rate": 5e-5, ...}: every field by its path."""
    flat = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{name}": v for name, v in flatten(value).items()}
        else:
            flat[field.name] = value
    return flat


def _literal(text: str):
    """A Python literal that JSON has too, `true` / `false` / `null`, or else the text itself."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError):  # the last: a set, say
        return text
    return value


def _value(text: str, hint: Any):
    """A field's value as the command line has it. Of one that holds a text, 2024 and true are texts too."""
    value = _literal(text)
    is_text = hint in (str, str | None) and value is not None
    return text if is_text and not isinstance(value, str) else value


def override(config: ConfigT, assignments: list[tuple[str, str]]) -> ConfigT:
    """A configuration with fields replaced: [("optim.learning_rate", "1e-4"), ...].

    All replacements are made before the whole is checked, so two fields that depend on each other
    can change together.

    Raises:
      UsageError: an unknown field, a wrong type, or an impossible combination.
    """
    tree = dataclasses.asdict(config)
    for path, value in assignments:
        parts = path.split(".")
        node, section = tree, config
        for depth, part in enumerate(parts):
            inside = ".".join(parts[:depth]) or "the config"
            if not isinstance(node, dict):
                raise UsageError(f"--config.{path}: {inside} has no fields of its own")
            if dataclasses.is_dataclass(section) and part not in node:
                raise UsageError(f"--config.{path}: {inside} has no field {part!r}{_nearest(part, node)}")
            hint = get_type_hints(type(section)).get(part) if dataclasses.is_dataclass(section) else None
            section = getattr(section, part, None)
            if depth < len(parts) - 1:
                node = node[part]
        new = _value(value, hint)
        if encodable(written := json.dumps(new, ensure_ascii=False)) != written:  # a path of other bytes
            raise UsageError(f"--config.{path}={encodable(value)}: it is not UTF-8, which config.json is in")
        if dataclasses.is_dataclass(section) and new is not None:  # null leaves out one that may be
            known = ", ".join(node[parts[-1]])
            raise UsageError(f"--config.{path} is a section; set one of its fields: {known}")
        node[parts[-1]] = new
    return config_from_json(json.dumps(tree), "command line", type(config))


def count(word: str) -> int:
    """A flag's value that is a whole number from 1 on."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _check_named(word: str) -> None:
    if not word:
        raise argparse.ArgumentTypeError("it is empty: is a variable of the shell not set?")


def place(word: str) -> epath.Path:
    """A flag's value that is a work directory, here or in a bucket."""
    _check_named(word)
    try:
        return places.place(word)
    except places.PlaceError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_path(word: str) -> pathlib.Path:
    """A flag's value that is a place to write to, on any file system of this machine."""
    _check_named(word)
    if not places.is_local(word):
        raise argparse.ArgumentTypeError(
            f"{word} is in an object store: name a place on a disk, shared or not, or a bucket mounted as one"
        )
    return pathlib.Path(os.path.expanduser(word))


def local_file(word: str) -> pathlib.Path:
    """A flag's value that is a file to write, on any file system of this machine: a command that works for
    minutes looks at its start."""
    path = local_path(word)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a folder: name a file")
    return path


class _Parser(argparse.ArgumentParser):
    """argparse with the same one-sentence errors as everything else."""

    def error(self, message: str):
        raise UsageError(message)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose errors are `UsageError`s and whose flags cannot be abbreviated. The command is called as
    the description's first indented line has it; a module's docstring is None under `python -OO`."""
    command = re.search(r"^ +(python -m [\w.]+)", description or "", re.MULTILINE)
    return _Parser(
        prog=command and command[1],
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_batch(parser: argparse.ArgumentParser) -> None:
    """`--batch` for commands that ask a model about many videos, on smaller devices than its run's."""
    words = "rows at a time over all devices, at most (default: the run's eval.batch_size)"
    parser.add_argument("--batch", type=count, metavar="ROWS", help=words)


# Arguments that go to the model: it may well be asked nothing.
_TEXTS = ("query", "text")


def _at_home(found: re.Match) -> str:
    return (found[1] or "") + os.path.expanduser("~")


def parse(
    arguments: list[str], known: argparse.ArgumentParser
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags of `known`, and the (path, text) pairs of `--config.PATH=TEXT`. A value that begins with ~/
    is in the home directory: of `--path=~/DIR` a shell leaves it as it is.

    Raises:
      UsageError: an unknown flag, or one without a value, which texts for the model alone may be.
    """
    arguments = [re.sub(r"^(--[\w.-]+=)?~(?=/)", _at_home, word) for word in arguments]
    flags, rest = known.parse_known_args(arguments)
    for name, value in vars(flags).items():
        if value == "" and name not in _TEXTS:
            raise UsageError(f"--{name}= is empty: is a variable of the shell not set?")
    overrides = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--config."):
            raise UsageError(f"unknown argument {word!r}; {' '.join(known.format_usage().split())}")
        path, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UsageError(f"--config.{path} needs a value: --config.{path}=VALUE")
        overrides.append((path, value))
    return flags, overrides


def parse_without_config(arguments: list[str], known: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of `known`, of a command that takes its config from a checkpoint.

    Raises:
      UsageError: as `parse`, or there are flags of a config.
    """
    values, overrides = parse(arguments, known)
    if overrides:
        raise UsageError("the config is the checkpoint's own: no --config flags here")
    return values


@contextlib.contextmanager
def as_usage_errors(*kinds: type[Exception]):
    """Turn exceptions of these kinds, raised inside, into a `UsageError` of their first line."""
    try:
        yield
    except kinds as error:
        raise UsageError(first_line(error)) from error


class _Unread:
    """A stream of which it is of no account whether anybody can read it: `lost` is what does not count.

    Of standard error, nothing: Ctrl-C ends the `tee` of `2>&1 | tee LOG` as well, and a log's disk may be
    full. Progress bars and warnings end no command. Of standard output, a reader that is gone: as `head`, it
    has all it wants, and what a command writes into files is written all the same.
    """

    def __init__(self, stream, lost: type[OSError]):
        self._stream = stream
        self._lost = lost

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(self._lost):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(self._lost):
            self._stream.flush()


def _flushed(stream) -> OSError | None:
    """Why what was printed cannot be written, if so. Python would try again at its end, and make that the
    exit status."""
    try:
        if stream is not None:  # where a shell closed it
            stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None


# What a disk that takes nothing more answers, in the words that libraries repeat in errors of their own.
_UNWRITABLE = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)))


@contextlib.contextmanager
def _imports_frozen():
    """What was imported is not looked through for garbage: tracing a step makes so many objects that Python
    would do so again and again, a sixth of the time that a small training takes."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run(main, arguments: list[str]) -> int:
    """Run a command; a `UsageError` becomes one line on standard error and status 2, Ctrl-C status 130, a
    disk that is full or only to be read one line and status 1."""
    printed, told = sys.stdout, sys.stderr
    if hasattr(sys.stdout, "reconfigure"):
        # Captions and names of files have letters that a terminal's encoding, or any, may lack.
        sys.stdout.reconfigure(errors="backslashreplace")
    with (
        contextlib.redirect_stdout(printed and _Unread(printed, BrokenPipeError)),
        contextlib.redirect_stderr(told and _Unread(told, OSError)),
        _imports_frozen(),
    ):
        try:
            status = main(arguments)
        except UsageError as error:
            # It may name what a dataset calls its fields and files.
            print(f"error: {printable(str(error))}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            status = 128 + signal.SIGINT
        except Exception as error:
            said = next((words for words in _UNWRITABLE if words in str(error)), None)
            if said is None:
                raise
            # Libraries say it behind all that was under way.
            print(f"error: writing failed ({said}): {first_line(error)[:300]}", file=sys.stderr)
            status = 1
        lost = _flushed(printed)
        if lost is not None and not isinstance(lost, BrokenPipeError):
            print(f"error: standard output: {lost}", file=sys.stderr)
            status = status or 1
    _flushed(told)
    return status
