"""When to write data anew, or to read it with more processes: one line, by a rule."""

import logging
from collections.abc import Sequence

from etils import epath

from jepa_jax.config import DataConfig, DatasetConfig
from jepa_jax.data.records import BadRecordError, Source

logger = logging.getLogger(__name__)

CONVERT = "python -m jepa_jax.data.build"
# Records looked at; steps before the share of waiting says something, and the share that is too much.
_LOOKED_AT, _STEPS, _WAITING = 16, 20, 0.25


def why_convert(source: Source) -> str | None:
    """What about a source's media makes every pass over it slow, told from a few records; None where
    nothing does."""
    for number in range(min(len(source), _LOOKED_AT)):
        try:
            media = source[number * len(source) // min(len(source), _LOOKED_AT)].media
        except BadRecordError:
            continue
        if isinstance(media.content, epath.Path) and "://" in str(media.content):
            return "every clip is a file of its own on a remote store"
        if media.start is not None or media.end is not None:
            return "clips are spans of longer videos, which are opened anew for each"
    return None


class Advisor:
    """Says at the start that a dataset had better be converted, or, as soon as training waits for data,
    that it does. Each at most once.

    Args:
      tell: of several hosts one does.
    """

    def __init__(self, data: DataConfig, sources: Sequence[Source], *, tell: bool = True):
        self._steps = 0
        self._tell = tell
        if not tell:
            return
        for dataset, source in zip(data.datasets, sources, strict=True):
            self._look(dataset, source)

    def _look(self, dataset: DatasetConfig, source: Source) -> None:
        # What `python -m jepa_jax.data.build` wrote, like any TFDS dataset, holds its media itself.
        reason = why_convert(source) if dataset.path is not None else None
        if reason:
            logger.warning("%s: %s; converting it once pays: %s", dataset.label, reason, CONVERT)

    def after(self, scalars: dict[str, float]) -> None:
        """Look at a step's scalars, `data_wait` among them where the log was written."""
        self._steps += 1
        if not self._tell or self._steps < _STEPS or scalars.get("data_wait", 0.0) < _WAITING:
            return
        self._tell = False
        logger.warning(
            "%.0f%% of the time goes into waiting for data: raise data.workers (or data.threads), or "
            "keep media no larger than they are trained on",
            100 * scalars["data_wait"],
        )
