"""What every training command does: step after step, saves, stops when told, goes on where it was."""

import contextlib
import logging
import os
import pathlib
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping

import jax
from etils import epath
from jax.sharding import Mesh

import jepa_jax
from jepa_jax import distributed, flags
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.data import pipeline, tokenizer
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.loader import Loader
from jepa_jax.metrics import NotFiniteError, RunLog
from jepa_jax.places import PlaceError, check_savable, held, write_whole
from jepa_jax.sharding import shard_global_batch, sum_over_hosts, to_host
from jepa_jax.state import TrainState, to_items

logger = logging.getLogger(__name__)
# Seconds in which a signal that comes again is the same one.
_AT_ONCE = 0.3


class StopFlag:
    """Set by SIGTERM, SIGINT and SIGHUP within its context; the loop looks at it between steps. A second
    signal kills.

    Of several hosts one may get it alone: then SIGTERM is left to JAX, which tells them all, and the others
    are passed on as SIGTERM. There a second Ctrl-C ends the process.
    """

    def __init__(self):
        self.signal: int | None = None
        self._passed_on = False
        self._before = {}

    def __enter__(self):
        # Python lets its main thread alone take signals.
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            handlers = {signal.SIGINT: self._pass_on}
            if alone:
                handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._set)
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` leaves it
                handlers[signal.SIGHUP] = self._set if alone else _as_sigterm
            for number, handler in handlers.items():
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def look(self) -> bool:
        """Whether to stop after this step; of several hosts each looks at every one."""
        if distributed.asked_to_stop():
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _set(self, number, _):
        if self.signal is not None:
            return
        self.signal = number
        # Not a second one yet: `timeout` sends each to its process and at once to the whole group.
        time.sleep(_AT_ONCE)
        for known in self._before:  # a Ctrl-C after a SIGTERM is a second one as well
            signal.signal(known, signal.SIG_DFL)

    def _pass_on(self, *_):
        if self._passed_on:
            return
        self._passed_on = True
        _as_sigterm()
        time.sleep(_AT_ONCE)  # as in `_set`
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _as_sigterm(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def run_steps(
    step_fn: Callable,
    state: TrainState,
    loader: Loader,
    start: int,
    config,
    workdir: epath.Path,
    *,
    mesh: Mesh,
    checkpointer: Checkpointer,
    bad: BadRecords,
    identity: dict[str, str],
    score: Callable[[TrainState], dict[str, float]] | None = None,
    after: Callable[[dict[str, float]], None] = lambda scalars: None,
) -> tuple[TrainState, int | None]:
    """Steps `start` + 1 to `config.steps`, or until a signal; logs, and saves on the way and last.

    Args:
      step_fn: (state, batch on the devices) -> the next state and scalars.
      loader: of the batches from `start` on; it is closed at the end.
      config: the run's, with `steps`, `checkpoint` and what `RunLog` takes.
      bad: what the loader counts.
      identity: of the `sources`, and of what else is to be known again, kept with the position in them.
      after: is given each step's scalars.
      score: of a state about to be saved, for the log and for which checkpoint is the best; not of one that
        is saved for a signal alone.

    Returns:
      The state, and the signal that stopped it, be it in the last step; None without.

    Raises:
      NotFiniteError: the loss or the gradient norm is NaN or infinite.
      TooManyBadRecordsError: more records than `data.max_bad_fraction` cannot be used.
      WorkerEndedError: one of `data.workers` died.
    """
    step, unlogged = start, None
    alone = jax.process_count() == 1
    log = RunLog(workdir, config, start, write=distributed.is_main())

    def read(step, metrics, counted) -> dict[str, float]:
        if not alone:
            bad.count(*to_host(counted))
            counted = bad.total
        return log.step(step, metrics, counted)

    with contextlib.closing(log), contextlib.closing(loader), StopFlag() as stop:
        for step in range(start + 1, config.steps + 1):
            # Step N - 1 is under way while batch N is waited for and put on the devices.
            with log.data_wait():
                batch = next(loader)
            # Not a wait for data: on CPUs this takes its turn with the step that is under way.
            state, metrics = step_fn(state, shard_global_batch(batch, mesh))
            # Step N is under way before step N - 1 is read, so the device never waits for us.
            if unlogged:
                after(read(*unlogged))
            unlogged = (step, metrics, bad.total if alone else sum_over_hosts(bad.take(), mesh))
            stopping = stop.look()
            if step % config.checkpoint.every and step < config.steps and not stopping:
                continue
            scores = read(*unlogged)  # raises before a state that is not finite is saved
            unlogged = None
            # A checkpoint that a signal asked for is never scored: a preemption gives it half a minute.
            if score and (step % config.checkpoint.every == 0 or step == config.steps):
                found = score(state)
                log.write(step, found)
                scores |= found
            log.flush()
            position = {**loader.get_state(), **identity}
            checkpointer.save(step, to_items(state), position, scores)
            bad.save()
            if stopping:
                break
        checkpointer.wait()
    if stop.signal is not None:
        saved = f"saved step {step}" if step in checkpointer.steps() else f"step {step} could not be saved"
        distributed.tell(f"\n{signal.Signals(stop.signal).name}: {saved}, stopping")
    return state, stop.signal


def identity_of(sources, tokenizers: Iterable[tokenizer.Tokenizer]) -> dict[str, str]:
    """What a run's batches depend on, for its checkpoints."""
    return {"sources": pipeline.identity(sources), "tokenizers": tokenizer.identity_of(tokenizers)}


def going_on(step: int, config, was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Say at which step a run goes on, and whether it finds other data or tokenizers than it left.

    Args:
      was, now: `identity_of` then and now; earlier checkpoints have nothing of the tokenizers.
    """
    distributed.tell(f"resuming from step {step} of {config.steps}")
    if was["sources"] != now["sources"]:
        logger.warning("the data has changed since step %d: its order is another from here on", step)
    if was.get("tokenizers", now["tokenizers"]) != now["tokenizers"]:
        # Its rules are compared as the library writes them, which another version may do otherwise.
        logger.warning(
            "a tokenizer or its library has changed since step %d: texts may have other tokens", step
        )


def report_failure(error: Exception, workdir: epath.Path) -> int:
    """Print why a training cannot go on and what is left of it; the exit status.

    Of several hosts one that others may wait for ends here.
    """
    kept = f"the last good checkpoint is in {workdir}" if begun(workdir) else "nothing had been saved yet"
    print(f"error: {error}; {kept}", file=sys.stderr, flush=True)
    # All hosts have the same loss; all else may have happened to this one alone.
    if jax.process_count() > 1 and not isinstance(error, NotFiniteError):
        distributed.end_at_once()
    return 1


def status_of(checkpointer: Checkpointer, steps: int) -> int:
    """The exit status of a run that has done its steps: 1, and a sentence, where the last was not saved."""
    if steps in checkpointer.steps():
        return 0
    print(f"error: the checkpoint of step {steps} could not be saved", file=sys.stderr)
    return 1


def begun(workdir: epath.Path) -> bool:
    """Whether a run has saved something there: then what it started from may be gone by now."""
    checkpoints = workdir / "checkpoints"
    return checkpoints.exists() and any(folder.name.isdigit() for folder in checkpoints.iterdir())


def open_tally(limit: float, workdir: epath.Path) -> BadRecords:
    """Of the records that cannot be used; each host names those that it reads itself."""
    host = "" if distributed.is_main() else f".{jax.process_index()}"
    return BadRecords(limit, workdir / f"bad_records{host}.json", alone=jax.process_count() == 1)


# Where a host finds things and how it reads them ahead. All else is the whole run's.
_OF_A_HOST = {"data.data_dir", "data.path", "data.features", "data.threads", "data.workers", "data.prefetch"}

# JAX's settings, by the environment's variables of these names, that change numbers.
_OF_NUMBERS = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_enable_x64")


def check_workdir(config, workdir: epath.Path, free: set[str]) -> None:
    """Raise UsageError where the work directory holds a run of another config, but for the fields in
    `free`, or where nothing can be saved in it."""
    with flags.as_usage_errors(PlaceError):
        check_savable(workdir)
    file = workdir / "config.json"
    if not file.exists():
        return
    old = flags.flatten(flags.config_from_json(file.read_bytes(), str(file), type(config)))
    new = flags.flatten(config)
    if not distributed.is_main():  # the file is the first host's
        free = free | _OF_A_HOST
    changed = [
        f"{name} is {old.get(name)!r} there, {new.get(name)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name not in free
    ]
    if changed:
        nothing = "" if begun(workdir) else ", or remove this one: the run had saved nothing yet"
        raise flags.UsageError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:3])}"
            f"{'; ...' if len(changed) > 3 else ''}): name another --workdir{nothing}"
        )


def check_hosts(config) -> None:
    """Raise UsageError, on every host, where one has another config, another version of this package or of
    JAX, or settings of JAX by which it would compute other numbers."""
    if jax.process_count() == 1:  # and no need to read the code
        return
    flat = flags.flatten(config)
    known = {name: repr(value) for name, value in flat.items() if name not in _OF_A_HOST}
    # Where they are is a host's own, but not whether there are any: steps of tokens and of frames are
    # different programs.
    if "data.features" in flat:
        known["data.features"] = "set" if flat["data.features"] else "not set"
    known |= {name.upper(): str(getattr(jax.config, name)) for name in _OF_NUMBERS}
    distributed.check_alike(known | {"jepa_jax": _version(), "jax": jax.__version__})


def check_inputs(identity: Mapping[str, str], init, **known: str) -> None:
    """Raise UsageError, on every host, where one has other data, another tokenizer or other weights to start
    from under the same name: each may have files of its own.

    Args:
      identity: as `identity_of` gives it.
      init: whatever has an `identity`, or None.
      known: checksums of more that must be alike.
    """
    if jax.process_count() == 1:  # and no need to read them
        return
    known |= identity
    if init is not None:
        known["init"] = init.identity
    distributed.check_alike({f"the checksum of {name}": checksum for name, checksum in known.items()})


def _version() -> str:
    """Its number and a checksum: of two checkouts the number says little."""
    package = pathlib.Path(jepa_jax.__file__).parent
    code = b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))
    return f"{jepa_jax.__version__}-{zlib.crc32(code):08x}"


def take_workdir(config, workdir: epath.Path) -> contextlib.ExitStack:
    """Make the work directory, with `config.json`, this run's until what is returned is closed.

    Raises:
      PlaceError: another training of this machine is at work there.
      OSError: it cannot be written.
    """
    with contextlib.ExitStack() as taken:
        workdir.mkdir(parents=True, exist_ok=True)
        if distributed.is_main():
            taken.enter_context(held(workdir, "training"))
            write_whole(workdir / "config.json", flags.config_to_json(config))
        return taken.pop_all()
