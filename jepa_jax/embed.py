"""Embed a collection of videos, for `python -m jepa_jax.search`.

    python -m jepa_jax.embed --checkpoint=DIR --dataset=NAME|--path=FOLDER [--split=NAME] --out=DIR

Writes Parquet parts. Killed at any moment, the same command goes on with what is missing, and the
result is the same. Every device of a host takes its share of each batch; several hosts, started with the
flags of `python -m jepa_jax.train`, take whole parts in turn.
"""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import sys
import zlib

import jax
import numpy as np
from etils import epath
from flax import nnx
from tqdm import tqdm

from jepa_jax import distributed, flags, inference
from jepa_jax.checkpoint import fingerprint
from jepa_jax.config import DatasetConfig
from jepa_jax.embeddings import table
from jepa_jax.embeddings.collection import Collection, DatasetCollection, LeftOut, read_ahead
from jepa_jax.embeddings.table import Manifest
from jepa_jax.errors import encodable, printable
from jepa_jax.inference import Model
from jepa_jax.part_models import checked_numbers
from jepa_jax.places import PlaceError, held, is_local

logger = logging.getLogger(__name__)
# Of what the source leaves out so many are named one by one.
_TOLD = 10


def checksum(model: Model) -> str:
    """Of all parameters: other weights give another."""
    return f"{zlib.crc32(np.asarray(fingerprint(nnx.state(model.module))).tobytes()):08x}"


def embed_part(model: Model, collection: Collection, folder: pathlib.Path, part: int, manifest: Manifest):
    """Embed a part's rows and write it.

    Returns:
      What had to be left out, list[LeftOut].

    Raises:
      UsageError: the model's embeddings are not numbers.
    """
    data, batch = model.config.data, model.config.eval.batch_size
    rows, items, left_out, embeddings = [], [], [], []
    pending: list[np.ndarray] = []

    def flush():
        embeddings.append(checked_numbers(model.embed_video(np.stack(pending), manifest.query)))
        pending.clear()

    wanted = manifest.rows_of(part)
    for row, item in zip(wanted, read_ahead(collection, wanted, data.threads), strict=True):
        if isinstance(item, LeftOut):
            left_out.append(item)
            continue
        pending.append(item.frames)
        rows.append(row)
        # What is no UTF-8 becomes an escape, which JSON has too.
        metadata = json.dumps(dict(item.metadata), ensure_ascii=False, sort_keys=True)
        items.append((encodable(item.name), encodable(metadata)))
        if len(pending) == batch:
            flush()
    if pending:
        flush()
    whole = np.concatenate(embeddings) if embeddings else np.zeros((0, manifest.size), np.float32)
    names, metadata = [name for name, _ in items], [text for _, text in items]
    table.write_part(folder, part, manifest, rows, names, whole, metadata, left_out)
    return left_out


def embed(model: Model, collection: Collection, folder: pathlib.Path, manifest: Manifest) -> None:
    """Make the missing parts that fall to this host.

    Raises:
      UsageError: the folder holds other embeddings, another process is making them, or the model's are not
        numbers.
    """
    with contextlib.ExitStack() as taken:
        with flags.as_usage_errors(PlaceError), distributed.main_first():
            table.open_folder(folder, manifest)
            if distributed.is_main():
                taken.enter_context(held(folder, "embedding"))
        distributed.check_shared(epath.Path(folder))
        index, count = jax.process_index(), jax.process_count()
        mine = [part for part in table.missing_parts(folder, manifest) if part % count == index]
        for part in tqdm(mine, unit="part", mininterval=1, disable=not distributed.is_main()):
            for item in embed_part(model, collection, folder, part, manifest):
                logger.warning("%s is left out: %s", printable(item.name), printable(item.cause))


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's values."""
    parser = flags.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a work directory or a checkpoint in it")
    collection = parser.add_mutually_exclusive_group(required=True)
    collection.add_argument("--dataset", metavar="NAME", help="of TFDS")
    collection.add_argument("--path", metavar="FOLDER", help="any that data.path takes")
    parser.add_argument("--split", default="train", help="(default: train)")
    parser.add_argument(
        "--query",
        help="of each video (default: the run's, if it had one alone, or 'describe the clip')",
    )
    parser.add_argument("--out", type=flags.local_path, required=True, metavar="DIR")
    parser.add_argument("--part_rows", type=int, default=1024, help="videos to a part (default: 1024)")
    flags.add_batch(parser)
    distributed.add_arguments(parser)
    values = flags.parse_without_config(arguments, parser)
    if values.part_rows < 1:
        raise flags.UsageError(f"--part_rows={values.part_rows} must be at least 1")
    return values


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    values = parse(arguments)
    table.check_installed()
    distributed.initialize(values)
    with distributed.together():
        taking = {"devices": jax.local_devices(), "batch_size": values.batch}
        loaded = inference.load(values.checkpoint, **taking)
        if not isinstance(loaded, Model):
            raise flags.UsageError(f"{values.checkpoint} holds one part: only whole models can embed")
    config = loaded.config
    query = loaded.default_query() if values.query is None else values.query
    with flags.as_usage_errors(ValueError), distributed.main_first():
        loaded.check_query(query)
        # Of a disk the whole path: who goes on with it, or searches, may stand in another folder.
        path = os.path.abspath(values.path) if values.path and is_local(values.path) else values.path
        where = {"dataset": values.dataset, "path": path, "split": values.split}
        collection = DatasetCollection(config, DatasetConfig(**where, data_dir=config.data.data_dir))
    manifest = Manifest(
        **where,
        source=collection.identity,
        query=query,
        model=checksum(loaded),
        frames=config.data.frames,
        size=config.model.embedding_size,
        rows=len(collection),
        part_rows=values.part_rows,
    )
    out = values.out
    if distributed.is_main():
        for item in collection.skipped[:_TOLD]:
            logger.warning("%s is left out: %s", printable(item.name), printable(item.cause))
    with distributed.ending_together(out):
        embed(loaded, collection, out, manifest)
        with distributed.main_first():  # all are done when the first has seen the last
            pass
    if distributed.is_main():
        lacking = [item for part in range(manifest.parts) for item in table.left_out_of(out, part)]
        lacking = [*collection.skipped, *lacking]
        done = manifest.rows + len(collection.skipped) - len(lacking)
        print(f"{done} videos embedded in {manifest.parts} parts in {out}")
        if lacking:
            first = printable(f"{lacking[0].name}: {lacking[0].cause}")
            print(f"{len(lacking)} left out; the first: {first}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
