"""Records that cannot be used: counted by cause, named, and too many of them stop the run."""

import collections
import json
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from jepa_jax.data.records import BadRecordError
from jepa_jax.errors import first_line, printable
from jepa_jax.places import write_whole

logger = logging.getLogger(__name__)

# Nothing is wrong with such a record; the run does not want it.
UNWANTED = "no pair to draw"
# A share says little before so many.
_MINIMUM = 20
# Of each cause: names kept, and names logged one by one; after those, every doubling of their number.
_KEPT, _LOGGED = 10_000, 10


@dataclass
class _Known:
    """What the file says of a cause."""

    names: dict[str, str]
    records: int


class TooManyBadRecordsError(RuntimeError):
    """More records cannot be used than `data.max_bad_fraction` allows."""


def by_cause(bad: Iterable[BadRecordError]) -> str:
    """ "12 media missing (first a.mp4), 1 text empty (first b.mp4)", the commonest cause first."""
    first: dict[str, str] = {}
    causes: collections.Counter[str] = collections.Counter()
    for error in bad:
        first.setdefault(error.cause, printable(error.name))
        causes[error.cause] += 1
    return ", ".join(f"{n} {cause} (first {first[cause]})" for cause, n in causes.most_common())


class BadRecords:
    """The tally of a run, of which each host names the records that it reads itself: every one once in the
    log, the first of a cause one by one, and in `file`, which the next run in the same work directory goes
    on with.

    Args:
      limit: `data.max_bad_fraction`.
      file: a JSON file, written by `save` where there is something to say.
      alone: whether no other host reads records of this run; else who reads passes what `take` gives, summed
        over all hosts, to `count`. By its own share a host of many would soon find the limit exceeded.
    """

    def __init__(self, limit: float, file: epath.Path | None = None, *, alone: bool = True):
        self._limit = limit
        self._file = file
        self._alone = alone
        self._read = self._bad = self._left_out = 0
        self._new = np.zeros(3, np.int32)
        self._names: dict[str, dict[str, str]] = {}
        self._records: collections.Counter[str] = collections.Counter()
        if file is not None and file.exists():
            try:
                known = TypeAdapter(dict[str, _Known]).validate_python(json.loads(file.read_text())["causes"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                logger.warning("%s is damaged, and the count begins anew: %s", file, first_line(error))
                known = {}
            for cause, found in known.items():
                self._names[cause], self._records[cause] = found.names, found.records

    @property
    def total(self) -> int:
        """Times that a record was left out in this run, on any host."""
        return self._left_out

    def opened(self, label: str, records: int, bad: Sequence[BadRecordError]) -> None:
        """A dataset of so many records was opened; `bad` are those that were found unusable in it.

        Raises:
          TooManyBadRecordsError: they are a larger share than the limit.
        """
        wrong = self._note(bad)
        self._left_out += len(bad)  # every host opens all
        self._check(records, wrong, f"records of {label}")

    def read(self, records: int, bad: Sequence[BadRecordError]) -> None:
        """So many records were read; `bad` are those of them that another replaced.

        Raises:
          TooManyBadRecordsError: of all records read, a larger share than the limit was unusable.
        """
        self._new += [records, self._note(bad), len(bad)]
        if self._alone:
            self.count(*self.take())

    def take(self) -> np.ndarray:
        """What this host read since the last time: records, those that count against the limit, all left
        out; [3] int32."""
        new, self._new = self._new, np.zeros_like(self._new)
        return new

    def count(self, records: int, wrong: int, left_out: int) -> None:
        """Add what all hosts read, as `take` gives it.

        Raises:
          TooManyBadRecordsError: of all records read, a larger share than the limit was unusable.
        """
        self._read += int(records)
        self._bad += int(wrong)
        self._left_out += int(left_out)
        if wrong:
            self._check(self._read, self._bad, "records read")

    def _note(self, bad: Sequence[BadRecordError]) -> int:
        """Log them; how many count against the limit."""
        for error in bad:
            names = self._names.setdefault(error.cause, {})
            # Beyond the names that are kept, a record that comes again counts again.
            if error.name in names:
                continue
            if len(names) < _KEPT:
                names[error.name] = error.detail
            self._records[error.cause] += 1
            number = self._records[error.cause]
            if number <= _LOGGED:
                logger.warning("left out: %s", error)
            elif number & (number - 1) == 0:
                logger.warning("left out: %d records so far: %s; the last: %s", number, error.cause, error)
        return sum(error.cause != UNWANTED for error in bad)

    def _check(self, records: int, bad: int, what: str) -> None:
        minimum = _MINIMUM if self._limit else 1
        if bad < minimum or bad <= self._limit * records:
            return
        self.save()
        causes = [cause for cause in self._records if cause != UNWANTED]
        named = ", ".join(
            f"{cause} ({self._records[cause]}, first {printable(next(iter(self._names[cause])))})"
            for cause in causes
        )
        raise TooManyBadRecordsError(
            f"{bad} of {records} {what} cannot be used, more than data.max_bad_fraction={self._limit:g} "
            f"allows: {named or 'other hosts name them'}"
        )

    def summary(self) -> str:
        """One line for the end of a run, "" where nothing was left out."""
        causes = ", ".join(f"{n} {cause}" for cause, n in self._records.most_common())
        where = f"; see {self._file}" if self._file else ""
        return f"left out: {causes}{where}" if causes else ""

    def save(self) -> None:
        """Write the file, whole or not at all; a full disk is logged."""
        if self._file is None or not self._records:
            return
        causes = {
            cause: {"records": n, "names": self._names[cause]} for cause, n in self._records.most_common()
        }
        found = {"records_read": self._read, "times_left_out": self.total, "causes": causes}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(found, indent=2) + "\n")
        except Exception as error:  # each store has errors of its own
            logger.error("%s could not be written: %s", self._file, error)
