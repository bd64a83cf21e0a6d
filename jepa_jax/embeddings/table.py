"""Embeddings on disk: a folder of Parquet parts, each whole or not there, and a manifest of what they are.

A row is `row` (its place in the collection), `name`, `embedding` (a list of E float32) and `metadata` (JSON).
"""

import dataclasses
import json
import logging
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import pydantic

from jepa_jax.config.types import OPTIONS, NonNegative, Positive
from jepa_jax.embeddings.collection import LeftOut
from jepa_jax.errors import first_line
from jepa_jax.flags import UsageError, as_usage_errors
from jepa_jax.places import write_whole

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:  # of the extra `search`: `check_installed` says so
    pa = pq = None

logger = logging.getLogger(__name__)
_MANIFEST = "embeddings.json"
_LEFT_OUT = b"left_out"
_OF = b"manifest"
_SUM = b"checksum"


@pydantic.dataclasses.dataclass(**OPTIONS)
class Manifest:
    """All that the rows depend on: the same one, the same bytes.

    Attributes:
      dataset, path, split: the collection: a dataset's name or a folder.
      source: a checksum of what the collection is: names, versions, sizes.
      query: what the model was asked about each video.
      model: a checksum of its parameters.
      frames: of each video.
      size: E.
      rows: of the whole collection.
      part_rows: rows of the collection to a part.
    """

    dataset: str | None
    path: str | None
    split: str
    source: str
    query: str
    model: str
    frames: Positive
    size: Positive
    rows: NonNegative
    part_rows: Positive

    @property
    def parts(self) -> int:
        return -(-self.rows // self.part_rows)

    def rows_of(self, part: int) -> range:
        """The collection's rows that a part holds, those left out included."""
        return range(part * self.part_rows, min((part + 1) * self.part_rows, self.rows))


def check_installed() -> None:
    """Whether there is what reads and writes parts.

    Raises:
      UsageError: pyarrow is not installed.
    """
    if pa is None:
        raise UsageError("collections are Parquet, which needs pyarrow: pip install 'jepa_jax[search]'")


def read_manifest(folder: pathlib.Path) -> Manifest:
    """The manifest of a folder of embeddings.

    Raises:
      UsageError: there is none, or it is not one.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no embeddings: python -m jepa_jax.embed --out={folder} makes them")
    try:
        manifest = Manifest(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is damaged, or of an earlier version ({first_line(error)})") from error
    return manifest


def open_folder(folder: pathlib.Path, manifest: Manifest) -> None:
    """Make a folder for these embeddings, or find that it is one already.

    Raises:
      UsageError: it holds other embeddings, or cannot be made.
    """
    with as_usage_errors(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _MANIFEST).exists():
        write_whole(folder / _MANIFEST, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
        return
    found, asked = dataclasses.asdict(read_manifest(folder)), dataclasses.asdict(manifest)
    for name, value in found.items():
        if name == "source" and asked[name] != value:
            raise UsageError(f"{folder} is of the collection before it changed: name another --out")
        if asked[name] != value:
            raise UsageError(
                f"{folder} holds other embeddings ({name} {value!r}, and here it is {asked[name]!r}): name "
                "another --out"
            )


def part_path(folder: pathlib.Path, part: int) -> pathlib.Path:
    return folder / f"part-{part:06d}.parquet"


def _digest(manifest: Manifest) -> bytes:
    return json.dumps(dataclasses.asdict(manifest), sort_keys=True).encode()


def is_finished(folder: pathlib.Path, part: int, manifest: Manifest) -> bool:
    """Whether a part is there, whole and of this manifest; what is not is said and will be made again."""
    path = part_path(folder, part)
    if not path.exists():
        return False
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning("%s is damaged and is made again: %s", path, first_line(error))
        return False
    if (metadata.metadata or {}).get(_OF) != _digest(manifest):
        logger.warning("%s is of other embeddings and is made again", path)
        return False
    return True


def write_part(
    folder: pathlib.Path,
    part: int,
    manifest: Manifest,
    rows: list[int],
    names: list[str],
    embeddings: np.ndarray,
    metadata: list[str],
    left_out: list[LeftOut],
) -> None:
    """Write a part, whole or not at all: `rows`, `names`, [rows, E] float32, JSON; and what it lacks."""
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    columns = {
        "row": pa.array(rows, pa.int64()),
        "name": pa.array(names, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, manifest.size),
        "metadata": pa.array(metadata, pa.string()),
    }
    lacking = json.dumps([dataclasses.asdict(item) for item in left_out])
    known = {_OF: _digest(manifest), _LEFT_OUT: lacking, _SUM: f"{zlib.crc32(flat.to_numpy()):08x}"}
    table = pa.table(columns).replace_schema_metadata(known)
    path = part_path(folder, part)
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True)
    temporary.replace(path)


def left_out_of(folder: pathlib.Path, part: int) -> list[LeftOut]:
    """What a finished part lacks."""
    lacking = pq.read_metadata(part_path(folder, part)).metadata[_LEFT_OUT]
    return [LeftOut(**item) for item in json.loads(lacking)]


def missing_parts(folder: pathlib.Path, manifest: Manifest) -> list[int]:
    """The parts that are still to be made."""
    return [part for part in range(manifest.parts) if not is_finished(folder, part, manifest)]


def _read(folder: pathlib.Path, part: int, columns: list[str]) -> "pa.Table":
    """Columns of a finished part.

    Raises:
      UsageError: its bytes are not those that were written.
    """
    path = part_path(folder, part)
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path} is damaged: delete it and run jepa_jax.embed again") from error


def embeddings_of(folder: pathlib.Path, manifest: Manifest) -> Iterator[np.ndarray]:
    """The embeddings [rows, E] float32 of each part in turn, so that one part is in memory."""
    for part in range(manifest.parts):
        column = _read(folder, part, ["embedding"])["embedding"]
        flat = column.combine_chunks().flatten() if column.num_chunks != 1 else column.chunk(0).flatten()
        yield flat.to_numpy(zero_copy_only=False).reshape(-1, manifest.size)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of an embedding: its place in the collection, its name, its metadata."""

    row: int
    name: str
    metadata: dict


class Rows:
    """The embeddings' rows by their place among all parts, read when they are asked for.

    Attributes:
      checksum: of all embeddings. A part that was deleted and made again may have others, and as many: of
        media that were replaced nothing in the manifest tells.
    """

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self._folder = folder
        footers = [pq.read_metadata(part_path(folder, part)) for part in range(manifest.parts)]
        self._ends = np.cumsum([footer.num_rows for footer in footers])
        # Parts were written without one at first.
        sums = b"".join((footer.metadata or {}).get(_SUM, b"") for footer in footers)
        self.checksum = f"{zlib.crc32(sums):08x}"

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: int) -> Row:
        part = int(np.searchsorted(self._ends, place, side="right"))
        first = self._ends[part - 1] if part else 0
        table = _read(self._folder, part, ["row", "name", "metadata"])
        found = table.slice(place - int(first), 1).to_pylist()[0]
        return Row(found["row"], found["name"], json.loads(found["metadata"]))
