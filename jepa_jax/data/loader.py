"""Batches read ahead, in threads or in worker processes, from any step on."""

import collections
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import types

import grain
import numpy as np
from absl import flags

from jepa_jax.config import DataConfig
from jepa_jax.data.bad_records import BadRecords

# How Grain says that one of its processes is gone.
_GONE = re.compile("terminated unexpectedly with exit code (-?)([0-9]+)")
_REASONS = {
    "SIGBUS": "/dev/shm, where workers leave batches, is full: make it larger (docker run --shm-size=8g)",
    "SIGKILL": "as a rule the memory did not suffice: take fewer",
}


class WorkerEndedError(RuntimeError):
    """A worker process ended by itself."""


def _as_ended(error: RuntimeError) -> WorkerEndedError | None:
    """Grain's error in a sentence; None for another one."""
    if not (found := _GONE.search(str(error))):
        return None
    by = f"status {found[2]}"
    if found[1]:  # a signal, and not all have names
        number = int(found[2])
        by = next((known.name for known in signal.Signals if known == number), f"signal {number}")
    reason = f" ({_REASONS[by]})" if by in _REASONS else ""
    return WorkerEndedError(f"a worker process of the data ended by {by}{reason}; data.workers=0 has none")


def _start_worker(index: int, count: int) -> None:
    """Runs in a worker process before anything else."""
    del index, count
    # A signal to the whole group, as a terminal and some schedulers send it, is the training process's to
    # answer: it still wants batches until its step is saved.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    # Killed, it tells nobody, and a worker would wait for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def _nothing_in_the_main_module():
    """New processes import the main module again, with all of the model and the optimizer, unless it
    looks as if there were nothing in it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Loader:
    """This host's batches, endlessly: an iterator of `{name: array}`.

    It owns threads and processes: close it. The records that were left out go to `bad`, whichever
    process met them.

    Args:
      dataset: of `pipeline.batches`.
      data: `threads`, `workers` and `prefetch`, on which no batch depends.
      bad: the tally.
      state: of `get_state`; None starts at step 0.
    """

    def __init__(
        self, dataset: grain.MapDataset, data: DataConfig, bad: BadRecords, state: dict | None = None
    ):
        self._step = 0 if state is None else state["step"]
        self._bad = bad
        self._shared = bool(data.workers)
        self._unstarted = data.workers
        self._first: collections.deque = collections.deque()
        rest = dataset[self._step :] if self._step else dataset
        if not data.workers:
            # Each thread makes a whole batch: more of them than batches ahead would have nothing to do.
            threads = min(data.threads, data.prefetch)
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=data.prefetch)
            self._iterator = iter(rest.to_iter_dataset(options))
            return
        if not flags.FLAGS.is_parsed():  # Grain's processes look at flags of its own, which have defaults
            flags.FLAGS.mark_as_parsed()
        # Of `prefetch` batches every worker keeps its share ready, beside those its threads work on.
        options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.threads)
        several = grain.MultiprocessingOptions(
            num_workers=data.workers, per_worker_buffer_size=-(-data.prefetch // data.workers)
        )
        self._iterator = iter(
            rest.to_iter_dataset(options).mp_prefetch(several, worker_init_fn=_start_worker)
        )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Raises TooManyBadRecordsError, WorkerEndedError."""
        if self._unstarted:
            # Each gives one batch in its turn; the last of them has started when the last of these is here.
            with _nothing_in_the_main_module():
                self._first.extend(self._read() for _ in range(self._unstarted))
            self._unstarted = 0
        found = self._first.popleft() if self._first else self._read()
        self._step += 1
        self._bad.read(found.records, found.bad)
        if not self._shared:
            return found.arrays
        # Out of the memory shared with the worker, which is scarce and would stay for as long as a device
        # that computes in the host's memory, or a caller, holds the batch.
        return {name: np.array(x) for name, x in found.arrays.items()}

    def _read(self):
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if ended := _as_ended(error):
                raise ended from error
            raise

    def get_state(self) -> dict[str, int]:
        """The position: the next step, counted from 0."""
        return {"step": self._step}

    def close(self) -> None:
        """Stop the threads or processes."""
        self._iterator.close()
