"""Runs a function over shards on Apache Beam: what goes through the pipeline is numbers, never records."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from jepa_jax.data.build import DIRECT_RUNNER
from jepa_jax.data.build.layout import BuildError

logger = logging.getLogger(__name__)


class WorkerDiedError(RuntimeError):
    """A worker process ended by itself, or was killed, as for want of memory."""


class BeamRunner:
    """Beam with one of its runners.

    Beam groups nothing here, and a shard is one element: memory is that of one record a worker, and it
    does not matter which worker writes which shard, when, or twice.

    Args:
      runner: a name that Beam knows. "DirectRunner" is this machine, without Prism, a program that
        Beam's own choice of that name would fetch first.
      workers: processes on this machine; 1 is this one.
      options: for other runners, as Beam's flags: ("--project=NAME", ...).
    """

    def __init__(self, runner: str = DIRECT_RUNNER, workers: int = 1, options: Sequence[str] = ()):
        mode = "in_memory" if workers == 1 else "multi_processing"
        direct = [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}"]
        self._runner = FnApiRunner() if runner == DIRECT_RUNNER else runner
        self._options = [*(direct if runner == DIRECT_RUNNER else ()), *options]
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)

    def _check_known(self, options: PipelineOptions) -> None:
        """Raise ValueError for options that Beam itself does not know: it would go on without them. Other
        runners may have some of their own."""
        everything = options.get_all_options(retain_unknown_options=True)
        unknown = ", ".join(sorted(everything.keys() - options.get_all_options().keys()))
        if unknown and isinstance(self._runner, FnApiRunner):
            raise ValueError(f"there is no {unknown}")
        if unknown:
            logger.warning("Beam itself does not know these options: %s", unknown)

    def __call__(self, function: Callable[[int], None], shards: Sequence[int]) -> None:
        """Call a function, which goes to the workers by pickle, with each shard.

        Raises:
          WorkerDiedError: a worker process is gone.
          BuildError: Beam refuses its options.
          Exception: what the function raised, or a RuntimeError of Beam's about it.
        """
        if not shards:
            return
        try:
            options = PipelineOptions(self._options)
            self._check_known(options)
            pipeline = beam.Pipeline(runner=self._runner, options=options)
        except (ValueError, SystemExit) as error:
            raise BuildError(f"Beam refuses its options: {error}") from error
        # Without the shuffle all shards would be one piece of work.
        numbers = pipeline | beam.Create(list(shards)) | beam.Reshuffle()
        _ = numbers | beam.Map(function).with_output_types(type(None))
        with _watching_workers():
            pipeline.run().wait_until_finish()


@contextlib.contextmanager
def _watching_workers() -> Iterator[None]:
    """Stop when a worker process is gone: Beam notices in a thread of its own, and waits on."""
    died: list[BaseException] = []
    interrupted = False
    before = threading.excepthook

    def interrupt(*_):
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    # Whatever this process does with the signal otherwise.
    before_signal = signal.signal(signal.SIGINT, interrupt)

    def note(arguments):
        if arguments.thread is not None and arguments.thread.name == "run_worker" and not died:
            died.append(arguments.exc_value)
            os.kill(os.getpid(), signal.SIGINT)
        elif not died:
            before(arguments)

    threading.excepthook = note
    try:
        yield
    except (KeyboardInterrupt, RuntimeError):
        if died:
            raise WorkerDiedError(f"{died[0]}, as it does when memory runs out") from None
        if interrupted:  # in a shard, of which Beam makes an error of its own
            raise KeyboardInterrupt from None
        raise
    finally:
        threading.excepthook = before
        signal.signal(signal.SIGINT, before_signal)
