"""What a run tells: metrics.jsonl, TensorBoard, the loss curve."""

import contextlib
import json
import logging
import math
import pathlib
import tempfile
import time
from array import array
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from jepa_jax.config import Config
from jepa_jax.figures import save_figure
from jepa_jax.places import Lines, is_local

logger = logging.getLogger(__name__)


def read_lines(path: epath.Path) -> Iterator[tuple[bytes, dict]]:
    """The whole lines of a metrics.jsonl, each with its values, one at a time: as objects those of a long run
    take ten times the file. A last line cut short by a kill is left out, and so are damaged ones, which is
    logged."""
    damaged = 0
    with path.open("rb") if path.exists() else contextlib.nullcontext(()) as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            try:
                row = json.loads(line)
                int(row["step"])
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += 1
            else:
                yield line, row
    if damaged:
        logger.warning("%s: %d damaged lines are left out", path, damaged)


class NotFiniteError(RuntimeError):
    """The loss or the gradient stopped being a number."""


class RunLog:
    """Follows a run step by step: progress bar, `metrics.jsonl`, TensorBoard.

    Lines beyond step `start`, which a killed run wrote after its last checkpoint, are dropped: the
    run that goes on from there writes them again. Failures to write (a full disk) are warned about
    once and training goes on. Of several hosts one writes; the others only look at the numbers.
    """

    def __init__(self, workdir: epath.Path, config: Config, start: int, *, write: bool = True):
        self._config = config
        self._writes = write
        self._waited = 0.0
        self._since = (start, time.perf_counter())
        if not write:
            return
        path = workdir / "metrics.jsonl"
        self._lines = Lines(path, (line for line, row in read_lines(path) if row["step"] <= start))
        self._events_in = workdir / "tensorboard"
        # TensorBoard's writer adds to its file: that of a bucket grows here and is copied.
        self._spool = None if is_local(workdir) else tempfile.TemporaryDirectory()
        # TensorBoard's own event writer needs no TensorFlow.
        self._events = EventFileWriter(self._spool.name if self._spool else str(self._events_in))
        # Events beyond `start` are dropped as the lines are: TensorBoard does so where a session starts.
        session = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._bar = tqdm(total=config.steps, initial=start, unit="step", desc=config.name, mininterval=0.5)
        self._warned = False

    @contextlib.contextmanager
    def data_wait(self):
        """Count the time spent inside as waiting for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    def step(self, step: int, metrics: dict[str, jax.Array], bad_records: int = 0) -> dict[str, float]:
        """Read a finished step's scalars; at every `log_every`-th write them.

        Args:
          bad_records: records left out so far.

        Returns:
          The scalars, with those of the run's speed where they were written.

        Raises:
          NotFiniteError: its loss or gradient norm is NaN or infinite.
        """
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(scalars[name]):
                raise NotFiniteError(f"{name} is {scalars[name]} at step {step}")
        if not self._writes:
            return scalars
        self._bar.update(1)
        if step % self._config.log_every == 0 or step == self._config.steps:
            now = time.perf_counter()
            steps, seconds = step - self._since[0], now - self._since[1]
            speed = {
                "samples_per_second": steps * self._config.batch_size / seconds,
                "data_wait": self._waited / seconds,
            }
            scalars |= speed
            self.write(step, scalars | {"bad_records": bad_records})
            self._bar.set_postfix(loss=f"{scalars['loss']:.3f}", refresh=False)
            self._waited, self._since = 0.0, (step, now)
        return scalars

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line and one TensorBoard event."""
        if not self._writes:
            return
        values = [Summary.Value(tag=name, simple_value=v) for name, v in scalars.items()]
        try:
            self._lines.add(json.dumps({"step": step, **scalars}) + "\n")
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
            self._events.add_event(event)
        except OSError as error:
            self._warn(error)

    def flush(self) -> None:
        """What was written so far reaches a work directory in a bucket too."""
        if not self._writes:
            return
        try:
            self._lines.flush()
            if self._spool:
                self._events.flush()
                for file in pathlib.Path(self._spool.name).iterdir():
                    (self._events_in / file.name).write_bytes(file.read_bytes())
        except Exception as error:  # each store has errors of its own
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.error("metrics could not be written: %s", error)
        self._warned = True

    def close(self) -> None:
        """Flush and close the bar and both files."""
        if not self._writes:
            return
        self._bar.close()
        self.flush()
        self._events.close()
        if self._spool:
            self._spool.cleanup()


# Terms of the objectives that a curve is drawn of, where a run's lines have them.
_TERMS = {
    "alignment": "--",
    "uniformity": ":",
    "invariance": "--",
    "variance": ":",
    "covariance": "-.",
    "sigreg": ":",
}


def plot_loss(workdir: epath.Path) -> None:
    """`loss.png`: the loss and its terms over steps, and InfoNCE's in-batch accuracy, from metrics.jsonl."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    drawn: dict[str, array] = {}
    for _, row in read_lines(workdir / "metrics.jsonl"):
        if "loss" in row:
            names = drawn or [x for x in ("step", "loss", "accuracy", *_TERMS) if x in row]
            for name in names:
                drawn.setdefault(name, array("d")).append(row[name])
    if not drawn:
        return
    steps = drawn["step"]
    info_nce = "accuracy" in drawn
    marker = "o" if len(steps) == 1 else None  # one point makes no line
    figure = Figure(figsize=(10 if info_nce else 5, 3.6), layout="constrained")
    left, *right = figure.subplots(1, 1 + info_nce, squeeze=False)[0]
    for name, style in {"loss": "-", **_TERMS}.items():
        if name in drawn:
            left.plot(steps, drawn[name], style, linewidth=1.2, marker=marker, label=name)
    left.set(xlabel="step", title="Loss and its terms")
    if info_nce:
        left.set(ylabel="nats", title="InfoNCE = alignment + uniformity")
        accuracy = 100 * np.asarray(drawn["accuracy"])
        right[0].plot(steps, accuracy, linewidth=1.0, marker=marker, color="tab:green")
        right[0].set(xlabel="step", ylabel="%", title="In-batch accuracy", ylim=(0, 100))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    # Beside the curves: inside, whatever corner it took, some run's curve would cross it.
    figure.legend(frameon=False, loc="outside lower left", ncols=4)
    save_figure(figure, workdir / "loss.png", dpi=120)
