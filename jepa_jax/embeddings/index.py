"""Search among embeddings with FAISS: exact for small collections, in 8 bits by clusters for large ones."""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from jepa_jax.errors import first_line
from jepa_jax.flags import UsageError
from jepa_jax.places import write_whole

logger = logging.getLogger(__name__)

Kind = Literal["exact", "ivf"]
Parts = Callable[[], Iterator[np.ndarray]]
# Beyond this many float32 numbers (400 MB) a search of all of them takes some hundredths of a second.
_EXACT_NUMBERS = 10**8
# Vectors to a cluster that its centre is learnt from: FAISS asks for 39 to 256.
_TRAINING_PER_CLUSTER = 64
# The share of the clusters that a search looks into.
_PROBED = 1 / 16


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise UsageError("search needs FAISS: pip install 'jepa_jax[search]'") from error
    return faiss


def kind_for(rows: int, size: int) -> Kind:
    """Exact where that is fast enough."""
    return "exact" if rows * size <= _EXACT_NUMBERS else "ivf"


def clusters_for(rows: int) -> int:
    """A power of two near the square root of the rows."""
    return 1 << max(0, round(np.log2(max(rows, 1)) / 2))


def factory(kind: Kind, rows: int) -> str:
    """FAISS's own name of the index: "Flat", or "IVF1024,SQ8"."""
    return "Flat" if kind == "exact" else f"IVF{clusters_for(rows)},SQ8"


def _sample(parts: Iterable[np.ndarray], rows: int, wanted: int) -> np.ndarray:
    """About `wanted` of the rows, drawn evenly, a part at a time; the same every time."""
    rng = np.random.default_rng(0)
    share = min(1.0, wanted / rows)
    return np.concatenate([part[rng.random(len(part)) < share] for part in parts])


def build(parts: Parts, rows: int, size: int, kind: Kind):
    """An index of unit vectors by cosine.

    Args:
      parts: () -> an iterator of [rows, E] float32, gone through once or twice; one part is in memory.

    Returns:
      The FAISS index.
    """
    faiss = _faiss()
    index = faiss.index_factory(size, factory(kind, rows), faiss.METRIC_INNER_PRODUCT)
    if kind == "ivf":
        index.cp.spherical = True
        clusters = clusters_for(rows)
        index.train(_sample(parts(), rows, _TRAINING_PER_CLUSTER * clusters))
        index.nprobe = max(1, round(clusters * _PROBED))
    for part in parts():
        index.add(np.ascontiguousarray(part))
    return index


def search(index, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows: [Q, E] -> cosines [Q, count], best first, and places [Q, count]; -1 where there
    are no more."""
    queries = np.ascontiguousarray(queries, np.float32)
    scores, places = index.search(queries, count)
    if places.min() < 0 and count <= index.ntotal:  # the clusters looked into hold fewer: look into all
        index.nprobe = index.nlist
        scores, places = index.search(queries, count)
    return scores, places


def _checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(index, path: pathlib.Path, about: dict) -> None:
    """Write an index and what it is of, `about`, beside it: whole or not at all."""
    faiss = _faiss()
    temporary = path.with_name(path.name + ".tmp")
    try:
        faiss.write_index(index, str(temporary))
    except RuntimeError:  # half of it would keep a full disk full
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    about = {**about, "checksum": _checksum(temporary)}  # FAISS has none of its own
    path.with_suffix(".json").unlink(missing_ok=True)  # never the old one's words beside the new one
    temporary.replace(path)
    write_whole(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")


def load(path: pathlib.Path, about: dict):
    """The index at `path`; None where there is none, a damaged one, or one of something else than
    `about`."""
    words = path.with_suffix(".json")
    if not path.is_file() or not words.is_file():
        return None
    try:
        found = json.loads(words.read_bytes())
        checksum = found.pop("checksum", None)
    except (ValueError, AttributeError, TypeError):  # no JSON, or no object
        found = None
    if found != about:
        logger.warning("%s is of other embeddings and is built again", path)
        return None
    if checksum != _checksum(path):
        logger.warning("%s is damaged and is built again", path)
        return None
    try:
        return _faiss().read_index(str(path))
    except RuntimeError as error:  # FAISS's own, of a file that another version wrote
        logger.warning("%s cannot be read and is built again: %s", path, first_line(error))
        return None


def opened(folder: pathlib.Path, parts: Parts, rows: int, size: int, kind: Kind, about: dict):
    """The saved index of a folder, built first where it is not there or is out of date, and saved if it can
    be: a folder may be only to be read.

    Args:
      parts: as of `build`.
      about: what the embeddings are; the index is built again where that changed.
    """
    about = {**about, "index": factory(kind, rows), "indexed_rows": rows}
    path = folder / "index.faiss"
    index = load(path, about)
    if index is None:
        index = build(parts, rows, size, kind)
        try:
            save(index, path, about)
        except (RuntimeError, OSError) as error:  # the first is FAISS's own
            logger.warning("the index is not kept, the next search makes it again: %s", first_line(error))
    return index
