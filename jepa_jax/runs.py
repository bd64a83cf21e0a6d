"""What a run left in its work directory: its configuration and its checkpoints."""

import contextlib
import logging
from typing import Any

from etils import epath
from flax import nnx

from jepa_jax import flags
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError
from jepa_jax.config import Config

logger = logging.getLogger(__name__)


def find_run(path: epath.Path) -> tuple[epath.Path, int | None]:
    """The work directory and, where `path` is WORKDIR/checkpoints/STEP, the step.

    Raises:
      UsageError: it is neither, or the run has no checkpoint, or not of that step.
    """
    if path.name.isdigit() and path.parent.name == "checkpoints":
        workdir, step = path.parent.parent, int(path.name)
    else:
        workdir, step = path, None
    if not (workdir / "config.json").is_file() or not (workdir / "checkpoints").is_dir():
        raise flags.UsageError(
            f"{path} is neither a work directory of a run (it has no checkpoints) nor converted weights"
        )
    saved = saved_steps(workdir)
    if not saved:
        raise flags.UsageError(f"{workdir} has no checkpoint yet")
    if step is not None and step not in saved:
        raise flags.UsageError(
            f"{workdir} has no checkpoint of step {step}: there are {', '.join(map(str, saved))}"
        )
    return workdir, step


def saved_steps(workdir: epath.Path) -> list[int]:
    """Steps of a run's checkpoints, ascending."""
    return sorted(int(x.name) for x in (workdir / "checkpoints").iterdir() if x.name.isdigit())


def run_config(workdir: epath.Path) -> Config:
    """The configuration of a run."""
    file = workdir / "config.json"
    return flags.config_from_json(file.read_bytes(), str(file))


def restore_run(
    workdir: epath.Path, step: int | None, config: Config, template: nnx.State
) -> tuple[int, nnx.State, dict[str, Any]]:
    """The step and the parameters of a run's last whole checkpoint, or of that of one step, and what it knows
    of its data.

    Args:
      template: shapes of all parameters, with their places.

    Raises:
      UsageError: there is no checkpoint, or none is whole.
    """
    checkpointer = Checkpointer(workdir / "checkpoints", config.checkpoint, read_only=True)
    with contextlib.closing(checkpointer), flags.as_usage_errors(DamagedCheckpointError):
        if step is not None:
            items, data = checkpointer.restore({"params": template}, step)
        elif (found := checkpointer.restore_latest({"params": template})) is not None:
            step, items, data = found
        else:
            raise flags.UsageError(f"{workdir} has no checkpoint yet")
        return step, items["params"], data


def compare_tokenizers(learned_with: str | None, now: str, home: epath.PathLike) -> None:
    """Warn where a run's texts were split by other tokenizers than now; both are `identity_of` theirs, None
    where nobody knows."""
    if learned_with not in (None, now):
        logger.warning("a tokenizer or its library is not the one that %s has learned with", home)
