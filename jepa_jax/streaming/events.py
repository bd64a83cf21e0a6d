"""What a stream showed: from one change of text to the next."""

import dataclasses
import json
import pathlib

from jepa_jax.streaming.online import Decode


@dataclasses.dataclass(frozen=True)
class Event:
    """A text and from when to when it holds, in seconds.

    Attributes:
      at: the middle of what was decoded; of several decodes that say the same, of the nearest.
      score: cosine of the text's embedding and the video's.
    """

    start: float
    end: float
    at: float
    text: str
    score: float

    def to_json(self) -> str:
        """One line: {"start", "end", "at", "text", "score"}."""
        rounded = {k: v if isinstance(v, str) else round(v, 4) for k, v in dataclasses.asdict(self).items()}
        return json.dumps(rounded, ensure_ascii=False)


class EventLog:
    """Decodes to events in a JSON Lines file, each written when it ends; nothing else is kept.

    Decodes that say the same, one after another, are one event, with the place and the score of the best.

    What an earlier watching left in the file stays until `start`, or the first decode: a source whose name is
    misspelt must not cost it.
    """

    def __init__(self, path: pathlib.Path):
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._started = False
        self._open: Event | None = None
        self.decodes = 0

    def start(self) -> None:
        """There is something to see: the file is of it from now on."""
        if not self._started:
            self._file.truncate(0)
            self._started = True

    def add(self, decode: Decode, text: str, score: float) -> bool:
        """Whether this is a new event."""
        self.start()
        self.decodes += 1
        now = self._open
        if now is not None and now.text == text:
            if score > now.score:
                self._open = dataclasses.replace(now, at=decode.middle, score=score)
            return False
        self.end(decode.start)
        self._open = Event(decode.start, decode.start, decode.middle, text, score)
        return True

    def end(self, seconds: float) -> None:
        """The event that still goes on ends here."""
        if self._open is not None:
            self._file.write(dataclasses.replace(self._open, end=seconds).to_json() + "\n")
            self._open = None

    def close(self) -> None:
        self._file.close()


def read_events(path: pathlib.Path) -> list[Event]:
    """The events of a file; a last line cut short is left out."""
    # Not `splitlines`: a text may hold what Unicode ends lines by, which JSON leaves as it is.
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [Event(**json.loads(line)) for line in whole]
