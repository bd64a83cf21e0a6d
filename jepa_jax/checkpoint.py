"""Checkpoints: everything Orbax. A checkpoint is whole or it is not used."""

import contextlib
import hashlib
import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from jepa_jax.config import CheckpointConfig
from jepa_jax.errors import first_line
from jepa_jax.places import is_local
from jepa_jax.sharding import NO_MESH, to_host

logger = logging.getLogger(__name__)
_policies = ocp.checkpoint_managers
# Seconds after which a host sees in a shared folder what another wrote: NFS remembers one for a minute.
_LATEST_TO_SEE = 90
_ARRAYS = ("params", "training")


class DamagedCheckpointError(ValueError):
    """A checkpoint whose arrays are not those that were saved, or cannot be read."""


def raise_if_damaged(failure: str | None, places: Iterable[jax.sharding.Sharding]) -> None:
    """Raise DamagedCheckpointError, of arrays that several hosts hold on all of them, where one of them says
    what failed: each has read its own shares, and none may go on without the others.

    Args:
      failure: one sentence, or None.
      places: where the arrays are. Those of this host alone concern no other.
    """
    failed = np.array([failure is not None])
    if not all(sharding.is_fully_addressable for sharding in places):
        failed = multihost_utils.process_allgather(failed).ravel()
    if failed.any():
        raise DamagedCheckpointError(failure or f"process {np.argmax(failed)} found it damaged")


def fingerprint(state) -> jax.Array:
    """One 32-bit checksum per array of a pytree: [number of arrays] uint32.

    The sum, modulo 2**32, of every element's bits times an odd number that depends on its place.
    Integer sums do not depend on their order, so any mesh gives the same figure. Orbax's own files
    do not notice a flipped bit in the numbers.
    """
    # The arrays say where they are. The mesh in context may be another: a program that has one of its own
    # loads a model as well.
    with jax.set_mesh(NO_MESH):
        return _fingerprint(state)


@jax.jit
def _fingerprint(state) -> jax.Array:
    def checksum(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if x.dtype == bool:
            x = x.astype(jnp.uint8)
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.full(x.shape, 1, jnp.uint32)
        for axis in range(x.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * jnp.uint32(0x9E3779B1) + 2 * index
        return jnp.sum(bits * place, dtype=jnp.uint32)

    return jnp.stack([checksum(x) for x in jax.tree.leaves(state)])


def sha256(tree) -> str:
    """Of the names, shapes, types and values of a pytree's arrays: a text equal on any mesh. Every host
    takes part, and has each array whole for a moment."""
    digest = hashlib.sha256()
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        digest.update(f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype}\n".encode())
        digest.update(np.ascontiguousarray(to_host(x)).view(np.uint8))
    return digest.hexdigest()


def _checksums(tree) -> list[int]:
    return to_host(fingerprint(tree)).tolist()


def _checksum_of_json(content) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def saved_identity(directory: epath.Path, step: int) -> str:
    """A text that is another where any array of a checkpoint is; empty where that is not to be read."""
    folder = directory / str(step) / "fingerprint"
    with contextlib.suppress(Exception), contextlib.closing(ocp.JsonCheckpointHandler()) as texts:
        return f"{_checksum_of_json(texts.restore(folder, args=ocp.args.JsonRestore())):08x}"
    return ""


class Checkpointer:
    """Saves a run's state asynchronously and restores the last whole checkpoint.

    A save that fails (a full disk) is reported and counted in `failed_saves`; training goes on and
    the last good checkpoint stays.
    """

    def __init__(self, directory: epath.PathLike, config: CheckpointConfig, *, read_only: bool = False):
        self._directory = epath.Path(directory)
        self._config = config
        self.failed_saves = 0
        self._pending: int | None = None
        self._read_only = read_only
        sign = -1.0 if config.best_metric == "loss" else 1.0
        score = lambda metrics: sign * metrics[config.best_metric]
        if not read_only:
            self._forget_damaged_metrics(score)
        best = _policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        latest = _policies.LatestN(config.keep)
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=(*_ARRAYS, "data", "fingerprint"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_policies.AnyPreservationPolicy([latest, best]),
                # Without it the metrics are not written, and a run that goes on would know of no best.
                best_fn=score,
                # Orbax's own `read_only` says so in three warnings each time.
                create=not read_only,
                # There is none, and a host that reads alone would wait here for the others.
                save_root_metadata=False,
                # Metrics are of no use to who only reads.
                lightweight_initialize=read_only,
                # On a disk by `_clear`: where Orbax cannot remove something (a file that NFS holds), each
                # of its saves fails for it.
                cleanup_tmp_directories=not read_only and not is_local(directory),
                enable_async_checkpointing=True,
            ),
        )
        if not read_only:
            self._clear()

    def _forget_damaged_metrics(self, score: Callable[[dict], float]) -> None:
        """Orbax reads those of all checkpoints when it starts, and ends there where it cannot. Without, a
        checkpoint is as good as before, but never the best."""
        for file in self._directory.glob("*/metrics/metrics") if jax.process_index() == 0 else []:
            try:
                score(json.loads(file.read_bytes()))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                logger.error("%s is damaged (%s) and removed", file, first_line(error))
                file.unlink()
        multihost_utils.sync_global_devices("metrics")

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict[str, Any], data: dict[str, Any], metrics: dict[str, float]) -> None:
        """Start saving; arrays are copied before this returns, files are written behind it.

        Args:
          step: of the checkpoint's name.
          items: pytrees of arrays, `params` and `training`.
          data: the data iterator's state, as JSON.
          metrics: without the configuration's `best_metric` any checkpoint that has it is better.
        """
        assert not self._read_only
        self.wait()
        if step in self._manager.all_steps():
            return
        if self.failed_saves:
            self._clear()  # or it would take the room of this one
        arguments = ocp.args.Composite(
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            data=ocp.args.JsonSave(data),
            fingerprint=ocp.args.JsonSave(
                {**{name: _checksums(tree) for name, tree in items.items()}, "data": _checksum_of_json(data)}
            ),
        )
        worst = math.inf if self._config.best_metric == "loss" else -math.inf
        metrics = {self._config.best_metric: worst, **metrics}
        self._pending = step
        try:
            self._manager.save(step, args=arguments, metrics=metrics)
        except Exception as error:  # whatever the file system raised, training goes on
            self._report_failure(error)

    def wait(self) -> None:
        """Wait for the save under way, if any."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._report_failure(error)
        self._pending = None

    def _report_failure(self, error: Exception) -> None:
        self.failed_saves += 1
        self._clear()
        self._manager.reload()
        kept = self.steps()
        logger.error(
            "saving step %s failed, training goes on (last good checkpoint: %s): %s",
            self._pending,
            f"step {kept[-1]}" if kept else "none",
            first_line(error),
        )
        self._pending = None

    def _clear(self) -> None:
        """Remove what killed and failed saves left, as far as no thread of Orbax still writes there."""
        for leftover in self._directory.glob("*.orbax-checkpoint-tmp*") if jax.process_index() == 0 else []:
            with contextlib.suppress(Exception):
                leftover.rmtree(missing_ok=True)

    def restore(self, template: dict[str, Any], step: int) -> tuple[dict[str, Any], dict]:
        """One checkpoint, or those of its items that `template` names.

        Args:
          template: pytrees of `jax.ShapeDtypeStruct` with shardings, as the items shall be placed.

        Returns:
          The items, and the data iterator's state.

        Raises:
          DamagedCheckpointError: it cannot be read, or an array differs from what was saved.
        """
        folder, failure = self._directory / str(step), None
        # Not by the manager, in which hosts that can read wait for one that cannot.
        arrays, texts = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
        try:
            with contextlib.closing(arrays), contextlib.closing(texts):
                found = {
                    name: arrays.restore(folder / name, args=ocp.args.StandardRestore(tree))
                    for name, tree in template.items()
                }
                data, fingerprints = (
                    texts.restore(folder / x, args=ocp.args.JsonRestore()) for x in ("data", "fingerprint")
                )
        except Exception as error:  # tensorstore raises bare Exceptions on bad files
            failure = first_line(error)
        places = [x.sharding for x in jax.tree.leaves(template)]
        raise_if_damaged(failure, places)
        fingerprints = fingerprints if isinstance(fingerprints, dict) else {}
        for name in template:
            if _checksums(found[name]) != fingerprints.get(name):
                failure = failure or f"arrays of {name} differ from those that were saved"
        # Earlier checkpoints have no checksum of it.
        if "data" in fingerprints and fingerprints["data"] != _checksum_of_json(data):
            failure = failure or "the position in the data differs from what was saved"
        raise_if_damaged(failure, places)
        return found, data

    def restore_latest(self, template) -> tuple[int, Any, dict[str, Any]] | None:
        """The last whole checkpoint: (step, items, data), or None where none was ever saved.

        A damaged one is reported and, unless read-only, set aside as `damaged-STEP` beside the folder. Where
        none is whole all stay: the next start, which may be a cluster's own, must not find an empty folder.

        Raises:
          DamagedCheckpointError: there are checkpoints and none is whole.
        """
        damaged = []
        while steps := [step for step in self._steps_of_first(template) if step not in damaged]:
            step = steps[-1]
            try:
                found = self.restore(template, step)
            except DamagedCheckpointError as error:
                damaged.append(step)
                folder = self._directory / str(step)
                if self._read_only:  # the run may be at work, with newer ones in the place of old ones
                    self._manager.reload()
                if not self._read_only or folder.exists():
                    logger.error("checkpoint %s is damaged (%s); going back to the one before", folder, error)
                continue
            if damaged and not self._read_only:
                self._set_aside(damaged)
            return step, *found
        if damaged:
            raise DamagedCheckpointError(
                f"none of the checkpoints in {self._directory} is whole: name another --workdir, or "
                "delete this one to start again"
            )
        return None

    def _steps_of_first(self, template) -> list[int]:
        """`steps` as the first host sees them, where the arrays are those of several: another may not see
        the last one yet, or one that was saved since, and each would go on from its own."""
        steps = self.steps()
        if all(x.sharding.is_fully_addressable for x in jax.tree.leaves(template)):
            return steps
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        if not count:
            return []
        of_first = multihost_utils.broadcast_one_to_all(np.resize(np.array(steps, np.int32), count)).tolist()
        end = time.monotonic() + _LATEST_TO_SEE
        while of_first[-1] not in steps and time.monotonic() < end:
            if (self._directory / str(of_first[-1])).exists():
                break
            time.sleep(0.5)
        return of_first

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps if jax.process_index() == 0 else []:
            aside = self._directory.parent / f"damaged-{step}"
            if aside.exists():
                aside.rmtree()
            (self._directory / str(step)).rename(aside)
            logger.error("it was moved to %s", aside)
        # Every host has to know: one that thinks the step is there would not save it again with the others.
        multihost_utils.sync_global_devices("set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait, then release the threads."""
        self.wait()
        try:
            self._manager.close()
        except Exception:
            # A second error of a save whose first was reported: Orbax keeps it, and raises it once.
            self._manager.close()
        if self.failed_saves:
            self._clear()
