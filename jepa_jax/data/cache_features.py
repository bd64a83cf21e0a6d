"""Run the frozen X-Encoder once over a run's dataset and keep its visual tokens, for training to read.

    python -m jepa_jax.data.cache_features --config=FILE.py --out=DIR [--batch_size=CLIPS]
        [--config.SECTION.FIELD=VALUE ...]

The X-Encoder is the one that training by the same config would start from. Then train with
--config.data.features=DIR. The same command again goes on where it was stopped, on any number of hosts
that see the same folder.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from jepa_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from pydantic import ValidationError

from jepa_jax import distributed, flags, loop
from jepa_jax.checkpoint import DamagedCheckpointError, sha256
from jepa_jax.config import Config
from jepa_jax.data import features
from jepa_jax.data.bad_records import by_cause
from jepa_jax.data.decode import read_frames
from jepa_jax.data.features import Manifest
from jepa_jax.data.records import BadRecordError, Limits, Source
from jepa_jax.data.sources import open_source
from jepa_jax.initial import open_initial
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.places import held, write_whole
from jepa_jax.sharding import check_batch, local_rows, make_mesh, shard_global_batch
from jepa_jax.state import abstract_state, draw_state
from jepa_jax.step import encode_frames

# Of a shard: what is lost when the command is killed. A large dataset's hold more, so that a folder of
# them can still be listed.
SHARD_RECORDS = 64
_MAX_SHARDS = 4096
# Clips that a device encodes at a time: products are large enough by then.
_CLIPS_PER_DEVICE = 4


class Encoder:
    """The X-Encoder that a run starts from, on a mesh that must be in context.

    Attributes:
      sha256: of its weights.

    Raises:
      ValueError: what `config.init` names cannot be had, or is another model.
    """

    def __init__(self, config: Config, mesh: jax.sharding.Mesh):
        with distributed.main_first():
            initial = open_initial(config, mesh)
        loop.check_inputs({}, initial)
        template = abstract_state(config, mesh)[1]
        # An optimizer's moments have no use here, so they are never made.
        shardings = jax.tree.map(lambda x: x.sharding, dataclasses.replace(template, optimizer=None))
        self._params = initial.apply(draw_state(config, shardings)).frozen["x_encoder"]
        self.sha256 = sha256(self._params)
        self._mesh = mesh
        module = nnx.eval_shape(lambda: VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0)).x_encoder)
        self._encode = jax.jit(functools.partial(_encode, graphdef=nnx.split(module)[0], config=config))

    def __call__(self, frames: np.ndarray) -> jax.Array:
        """This host's rows of a global batch, [B / hosts, T, H, W, C] uint8, to [B, N, D] bfloat16."""
        return self._encode(self._params, **shard_global_batch({"frames": frames}, self._mesh))


def _encode(params, frames, graphdef, config):
    return encode_frames(params, graphdef, frames, config).astype(jnp.bfloat16)


def _begin(out: epath.Path, new: Manifest, taken: contextlib.ExitStack) -> Manifest:
    """The manifest to work by: the folder's own where it has one. The folder is this run's until `taken` is
    closed.

    Raises:
      UsageError: the folder holds a cache of something else, or another run is making one there.
    """
    with flags.as_usage_errors(ValueError, OSError):
        with distributed.main_first():
            out.mkdir(parents=True, exist_ok=True)
            if distributed.is_main():
                taken.enter_context(held(out, "caching of features"))
            if not (out / features.FILE).exists():
                _write(out, new)
            there = features.read_manifest(out)
        distributed.check_shared(out)
    found = features.differences(there.made_with, new.made_with)
    if not found and there.x_encoder != new.x_encoder:
        found = "the weights of the X-Encoder are others"
    if not found and (there.identity, there.records) != (new.identity, new.records):
        found = f"{there.dataset}, {there.records} records there, {new.dataset}, {new.records} now"
    with distributed.together():
        if found:
            raise flags.UsageError(f"{out} holds a cache made otherwise ({found}): name another --out")
    return there


def _write(out: epath.Path, manifest: Manifest) -> None:
    _write_json(out / features.FILE, dataclasses.asdict(manifest))


def _write_json(path: epath.Path, content) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")


def _bad_file(out: epath.Path, manifest: Manifest, shard: int) -> epath.Path:
    return out / f"{manifest.shard_name(shard)}.bad.json"


class _ShardWriter:
    """Writes one shard; it has its name only when it is whole."""

    def __init__(self, out: epath.Path, manifest: Manifest, shard: int):
        self._out, self._manifest, self._shard = out, manifest, shard
        self._path = out / manifest.shard_name(shard)
        self._temporary = self._path.with_name(self._path.name + ".tmp")
        self._file = self._temporary.open("wb")
        self._bad: dict[str, tuple[str, str, str]] = {}

    def write(self, visual: np.ndarray, bad: dict[str, tuple[str, str, str]]) -> None:
        self._file.write(np.ascontiguousarray(visual).view(np.uint8).data)
        self._bad |= bad

    def commit(self) -> None:
        self._file.close()
        # First what explains the shard, then the shard. What was bad in an earlier one may be mended.
        explained = _bad_file(self._out, self._manifest, self._shard)
        if self._bad:
            _write_json(explained, self._bad)
        else:
            explained.unlink(missing_ok=True)
        self._temporary.replace(self._path)


def _batches(shards: np.ndarray, manifest: Manifest, rows: int) -> Iterator[tuple[int | None, range, bool]]:
    """What this host encodes, batch by batch: (shard, records, whether they are its last).

    All hosts give equally many, for they compute together: one that has run out of shards or records
    gives none.
    """
    hosts, here = jax.process_count(), jax.process_index()
    for first in range(0, len(shards), hosts):
        together = [int(shard) for shard in shards[first : first + hosts]]
        longest = max(len(manifest.records_of(shard)) for shard in together)
        mine = together[here] if here < len(together) else None
        records = range(0) if mine is None else manifest.records_of(mine)
        for start in range(0, longest, rows):
            yield mine, records[start : start + rows], start + rows >= longest


def _read(index: int, source: Source, config: Config) -> np.ndarray | BadRecordError:
    (dataset,) = config.data.datasets
    try:
        record = source[index]
        return read_frames(
            record.media,
            dataset.frames,
            resize=config.data.resize,
            crop=config.model.x_encoder.image_size,
            name=record.name,
            limits=Limits.of(config.data),
        )
    except BadRecordError as error:
        return error.with_traceback(None)


def _fill(out: epath.Path, manifest: Manifest, shards: np.ndarray, source, config, encoder, rows) -> None:
    """Make the shards: clips are decoded while those before them are encoded and written."""
    side = config.model.x_encoder.image_size
    nothing = np.zeros((config.data.frames, side, side, 3), np.uint8)
    writer: _ShardWriter | None = None
    done, since = 0, time.monotonic()

    def finish(batch, found, visual) -> None:
        nonlocal writer, done
        shard, records, last = batch
        visual = local_rows(visual)
        if shard is None:
            return
        writer = writer or _ShardWriter(out, manifest, shard)
        bad = {str(i): x.args for i, x in zip(records, found, strict=True) if isinstance(x, BadRecordError)}
        writer.write(visual[: len(records)], bad)
        done += len(records)
        if last:
            writer.commit()
            writer = None
            rate = done / (time.monotonic() - since)
            print(f"{manifest.shard_name(shard)}: {rate:.2f} clips/s on this host", flush=True)

    with ThreadPoolExecutor(config.data.threads) as pool:
        reading = collections.deque()
        encoding = None
        for batch in itertools.chain(_batches(shards, manifest, rows), [None]):
            if batch is not None:
                reading.append((batch, [pool.submit(_read, i, source, config) for i in batch[1]]))
            if reading and (batch is None or len(reading) > 1):
                ready, futures = reading.popleft()
                found = [future.result() for future in futures]
                frames = [nothing if isinstance(x, BadRecordError) else x for x in found]
                frames += [nothing] * (rows - len(frames))
                visual = encoder(np.stack(frames))  # under way while the one before is written
                if encoding is not None:
                    finish(*encoding)
                encoding = (ready, found, visual)
        if encoding is not None:
            finish(*encoding)


def cache(config: Config, out: epath.Path, batch_size: int | None) -> int:
    """Make or finish a cache in a folder.

    Args:
      batch_size: clips at a time, over all devices.

    Returns:
      The exit status: 1 where more records than `data.max_bad_fraction` cannot be read.

    Raises:
      UsageError: the configuration, data, weights or folder do not fit.
    """
    with flags.as_usage_errors(ValueError, OSError):
        loop.check_hosts(config)
        mesh = make_mesh(config.fsdp)
        distributed.connect(mesh)
        batch_size = _CLIPS_PER_DEVICE * mesh.size if batch_size is None else batch_size
        check_batch(batch_size, mesh, name="--batch_size")
        (dataset,) = config.data.datasets
        with distributed.main_first():
            source = open_source(dataset, Limits.of(config.data))
        known = {"--batch_size": str(batch_size), "the data's checksum": features.identity_of(source)}
        distributed.check_alike(known)
        if not len(source):
            raise ValueError(f"{dataset.label} has no records")
    with contextlib.ExitStack() as taken, jax.set_mesh(mesh):
        with flags.as_usage_errors(ValueError, OSError, DamagedCheckpointError):
            encoder = Encoder(config, mesh)
        x_encoder = config.model.x_encoder
        manifest = _begin(
            out,
            Manifest(
                x_encoder=encoder.sha256,
                made_with=features.made_with(config),
                dataset=dataset.label,
                identity=features.identity_of(source),
                records=len(source),
                tokens=(x_encoder.visual_tokens(config.data.frames), x_encoder.width),
                shard_records=max(SHARD_RECORDS, math.ceil(len(source) / _MAX_SHARDS)),
            ),
            taken,
        )
        missing = np.array([not manifest.has_shard(out, shard) for shard in range(manifest.shards)])
        if jax.process_count() > 1:  # all hosts go by what the first saw
            missing = multihost_utils.broadcast_one_to_all(missing)
        rows = batch_size // jax.process_count()
        _fill(out, manifest, np.flatnonzero(missing), source, config, encoder, rows)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("shards written")
        return _finish(out, manifest, config) if distributed.is_main() else 0


def _finish(out: epath.Path, manifest: Manifest, config: Config) -> int:
    files = [_bad_file(out, manifest, shard) for shard in range(manifest.shards)]
    bad = {}
    for file in files:
        if file.exists():
            bad |= {index: tuple(found) for index, found in json.loads(file.read_text()).items()}
    causes = by_cause([BadRecordError(*found) for found in bad.values()])
    if len(bad) > config.data.max_bad_fraction * manifest.records:
        print(
            f"error: {len(bad)} of {manifest.records} records cannot be read, more than "
            f"data.max_bad_fraction={config.data.max_bad_fraction:g} allows: {causes}: allow for more, or "
            f"mend them and delete {out}, in which they are left out",
            file=sys.stderr,
        )
        return 1
    _write(out, dataclasses.replace(manifest, bad=bad))
    size = manifest.records * manifest.record_bytes
    print(f"{out}: {manifest.records} clips, {manifest.record_bytes / 1e6:g} MB each, {size / 1e9:.3g} GB")
    if bad:
        print(f"left out: {causes}")
    return 0


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--config", default=flags.DEFAULT_CONFIG, help="a Python config file")
    parser.add_argument("--out", type=os.path.expanduser, required=True, help="the folder, for data.features")
    parser.add_argument(
        "--batch_size", type=flags.count, help=f"clips at a time (default: {_CLIPS_PER_DEVICE} a device)"
    )
    distributed.add_arguments(parser)
    values, overrides = flags.parse(arguments, parser)
    config = flags.override(flags.load_config(values.config), overrides)
    for dataset in config.data.datasets:
        if dataset.span == "random":
            raise flags.UsageError(
                f"{dataset.label}: span='random' takes other frames of a clip each time, so that its tokens "
                "cannot be kept: set it to 'whole'"
            )
    try:  # what cannot train from a cache need not be cached
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, features=values.out))
    except ValidationError as error:
        raise flags.UsageError(flags.explain(error, "command line")) from error
    distributed.initialize(values)
    out = epath.Path(values.out)
    with distributed.ending_together(out):
        return cache(config, out, values.batch_size)


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
