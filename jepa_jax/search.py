"""Search a collection of embedded videos by text.

    python -m jepa_jax.search "a dog spins" --index=DIR --checkpoint=DIR [--top=8] [--out=FILE]

--index is what `python -m jepa_jax.embed --out` named. The FAISS index is built at the first search and
saved there, where that can be. Prints the nearest videos as a table and draws frames of the first 64
(default: search.png).
"""

import argparse
import dataclasses
import logging
import pathlib
import sys
import time

import numpy as np
from matplotlib.figure import Figure

from jepa_jax import flags, inference
from jepa_jax.config import DatasetConfig
from jepa_jax.embed import checksum
from jepa_jax.embeddings import index as indexing
from jepa_jax.embeddings import table
from jepa_jax.embeddings.collection import Collection, DatasetCollection, Item, LeftOut
from jepa_jax.embeddings.table import Manifest, Row, Rows
from jepa_jax.errors import encodable, printable
from jepa_jax.evaluation.pictures import film_strip
from jepa_jax.figures import save_figure, shortened
from jepa_jax.inference import Model

logger = logging.getLogger(__name__)
# More take minutes, and from some 600 on no picture is so high.
_DRAWN = 64


def open_index(folder: pathlib.Path, manifest: Manifest, rows: Rows, kind: indexing.Kind | None):
    """The FAISS index of a folder of embeddings; see `indexing.opened`."""
    return indexing.opened(
        folder,
        lambda: table.embeddings_of(folder, manifest),
        len(rows),
        manifest.size,
        kind or indexing.kind_for(len(rows), manifest.size),
        {**dataclasses.asdict(manifest), "embeddings": rows.checksum},
    )


def read_again(collection: Collection, row: Row) -> Item | LeftOut:
    """The video of a row, if the collection still has it in its place."""
    found = collection[row.row] if row.row < len(collection) else None
    if found is None or encodable(found.name) != row.name:
        return LeftOut(row.name, "the collection is not what it was when it was embedded")
    return found


def first_text(row: Row) -> str:
    """The first of a video's texts, "" where it has none. A column of the collection's own may be called so
    as well, and hold anything."""
    said = row.metadata.get("texts")
    first = next(iter(said), "") if isinstance(said, list) else said
    return "" if first is None else str(first)


def format_table(hits: list[tuple[float, Row]]) -> str:
    """Rank, cosine, name, metadata."""
    names = [printable(row.name) for _, row in hits]
    width = max(map(len, names))
    lines = []
    for rank, (name, (score, row)) in enumerate(zip(names, hits, strict=True), 1):
        said = first_text(row) or str(row.metadata or "")
        lines.append(f"{rank:4}  {score:6.3f}  {name.ljust(width)}  {printable(said)}".rstrip())
    return "\n".join(lines)


def draw(path: pathlib.Path, text: str, hits: list[tuple[float, Row, np.ndarray]], shown: int = 4) -> None:
    """A strip of frames for each hit, in rows of two, best first: frames [T, H, W, C] uint8."""
    columns = min(2, len(hits))
    rows = -(-len(hits) // columns)
    figure = Figure(figsize=(6.2 * columns, 1.9 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for rank, (panel, (score, row, frames)) in enumerate(zip(panels, hits, strict=False), 1):
        picked = frames[np.linspace(0, len(frames) - 1, min(shown, len(frames))).astype(int)]
        panel.imshow(film_strip(picked), interpolation="nearest")
        said = first_text(row)
        title = printable(f"{rank}.  {score:.3f}  {row.name}{': ' if said else ''}{said}")
        # Two dollars in a text are no formula.
        look = {"fontsize": 9, "loc": "left", "parse_math": False}
        panel.set_title(shortened(title, 72), **look)
    title = f"“{shortened(text, 55 * columns)}”"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, parse_math=False)
    save_figure(figure, path, dpi=110)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's values."""
    parser = flags.parser(__doc__)
    parser.add_argument("text", help="what is looked for")
    parser.add_argument("--index", required=True, metavar="DIR", help="what jepa_jax.embed wrote")
    parser.add_argument("--checkpoint", required=True, help="the model that embedded it")
    parser.add_argument("--top", type=flags.count, default=8, help="how many are shown (default: 8)")
    parser.add_argument("--kind", choices=("exact", "ivf"), help="of index (default: by size)")
    parser.add_argument(
        "--out", type=flags.local_file, default="search.png", metavar="FILE", help="(default: search.png)"
    )
    values = flags.parse_without_config(arguments, parser)
    if not values.text.strip():
        raise flags.UsageError("nothing to look for: the text is empty")
    return values


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    values = parse(arguments)
    table.check_installed()
    folder = pathlib.Path(values.index)
    manifest = table.read_manifest(folder)
    missing = table.missing_parts(folder, manifest)
    if missing:
        raise flags.UsageError(
            f"{len(missing)} of the {manifest.parts} parts of {folder} are not there yet: the same "
            "python -m jepa_jax.embed goes on with them"
        )
    rows = Rows(folder, manifest)
    if not len(rows):
        raise flags.UsageError(f"{folder} holds no videos")
    model = inference.load(values.checkpoint)
    if not isinstance(model, Model) or checksum(model) != manifest.model:
        raise flags.UsageError(f"{values.checkpoint} is not the model that embedded {folder}")
    index = open_index(folder, manifest, rows, values.kind)
    if model.cuts(values.text):
        logger.warning(
            "the text is longer than the model takes (data.length_buckets of its run): its end is cut off"
        )
    wanted = model.embed_text([values.text])
    begin = time.perf_counter()
    scores, places = indexing.search(index, wanted, min(values.top, len(rows)))
    spent = time.perf_counter() - begin
    hits = [(float(s), rows[int(p)]) for s, p in zip(scores[0], places[0], strict=True) if p >= 0]
    print(format_table(hits))
    print(f"{len(rows):,} videos searched in {1e3 * spent:.1f} ms")
    where = {"dataset": manifest.dataset, "path": manifest.path, "split": manifest.split}
    try:
        collection = DatasetCollection(
            model.config, DatasetConfig(**where, data_dir=model.config.data.data_dir)
        )
    except ValueError as error:
        logger.warning("nothing is drawn, for the videos are not where they were embedded from: %s", error)
        return 0
    items = [(score, row, read_again(collection, row)) for score, row in hits[:_DRAWN]]
    for _, _, item in items:
        if isinstance(item, LeftOut):
            logger.warning("%s is not drawn: %s", printable(item.name), printable(item.cause))
    seen = [(score, row, item.frames) for score, row, item in items if not isinstance(item, LeftOut)]
    if seen:
        with flags.as_usage_errors(ValueError, OSError):
            values.out.parent.mkdir(parents=True, exist_ok=True)
            draw(values.out, encodable(values.text), seen)
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
