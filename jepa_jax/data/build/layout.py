"""Where the pieces of a dataset that is being built are, and which records each is of."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from jepa_jax.data.schema import TEXTS
from jepa_jax.places import held

# In the dataset's folder, until it is complete: what is finished, and pieces that are not.
STATE = ".build"
SETTINGS, REPORT, INFO = "build.json", "report.json", "dataset_info.json"


class BuildError(ValueError):
    """A build that cannot be as it was asked for: one sentence that says why and what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A split and its shards.

    Attributes:
      folder: DIR/NAME/VERSION.
      dataset: the dataset's name.
      name: of the split.
      records: how many the source has.
      shards: into how many files they go.
    """

    folder: pathlib.Path
    dataset: str
    name: str
    records: int
    shards: int

    def indices(self, shard: int) -> range:
        """The source's records that a shard is made of: neighbours, which often lie in one file."""
        first, stop = (self.records * i // self.shards for i in (shard, shard + 1))
        return range(first, stop)

    def _file(self, shard: int) -> str:
        return f"{self.dataset}-{self.name}.array_record-{shard:05}-of-{self.shards:05}"

    def shard(self, shard: int) -> pathlib.Path:
        """A shard, by the name that TFDS gives it."""
        return self.folder / self._file(shard)

    def texts(self, shard: int) -> pathlib.Path:
        """The texts of a shard alone."""
        return self.folder / TEXTS / self._file(shard)

    def state(self, shard: int, kind: str) -> pathlib.Path:
        """What is known of a shard while the dataset is not complete."""
        return self.folder / STATE / f"{self.name}-{shard:05}.{kind}"

    def finished(self, shard: int) -> bool:
        """Whether a shard is written: its summary is there, and its files are of the sizes in it."""
        summary = self.state(shard, "json")
        if not summary.exists():
            return False
        sizes = json.loads(summary.read_text(encoding="utf-8"))["sizes"]
        files = (self.shard(shard), self.texts(shard))
        return all(f.exists() and f.stat().st_size == s for f, s in zip(files, sizes, strict=True))

    def summaries(self) -> Iterator[dict[str, Any]]:
        """What each shard's writing left of it, in order."""
        for shard in range(self.shards):
            yield json.loads(self.state(shard, "json").read_text(encoding="utf-8"))


@contextlib.contextmanager
def replacing(path: pathlib.Path, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new file that takes a path's place when all of it is written: a kill leaves the whole or nothing.

    Args:
      folder: DIR/NAME/VERSION. What a kill leaves unfinished in it the next run deletes.
    """
    # Two workers may be at the same piece: Beam's runners start some twice.
    temporary = folder / STATE / f"{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any, folder: pathlib.Path) -> None:
    """A JSON file, whole or not at all."""
    with replacing(path, folder) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # What is not UTF-8, as a file's name may be, becomes an escape of JSON's own.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def claimed(folder: pathlib.Path, settings: dict[str, Any]) -> Iterator[None]:
    """Make a folder this build's, for as long as it runs.

    Args:
      settings: all that its records depend on, plain for JSON.

    Raises:
      BuildError: another build is in it, or something else is.
      PlaceError: another build runs in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, "build"):
        known = folder / SETTINGS
        if known.exists():
            was = json.loads(known.read_text(encoding="utf-8"))
            wrong = [key for key in settings.keys() | was.keys() if settings.get(key) != was.get(key)]
            if wrong:
                key = min(wrong)
                raise BuildError(
                    f"{folder} holds another build, with {key} {_short(was.get(key))} and not "
                    f"{_short(settings.get(key))}: give another --out, --name or --version, or delete it"
                )
        elif others := sorted(p.name for p in folder.iterdir() if p.name != STATE):
            raise BuildError(f"{folder} holds {others[0]}, which no build wrote: give another folder")
        (folder / STATE).mkdir(exist_ok=True)
        for leftover in (folder / STATE).glob("*.tmp"):
            leftover.unlink()
        (folder / TEXTS).mkdir(exist_ok=True)
        write_json(known, settings, folder)
        yield


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def clean_up(folder: pathlib.Path) -> None:
    """Delete what only an incomplete dataset needs."""
    shutil.rmtree(folder / STATE)
