"""What a benchmark is, and how a model is asked all of it: media -> S_V -> S^_Y -> score."""

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from jepa_jax.errors import first_line
from jepa_jax.evaluation.media import MediaFolder, MissingMediaError
from jepa_jax.flags import UsageError
from jepa_jax.part_models import checked_numbers

# (file or its bytes, start, end) -> [T, H, W, C] uint8; raises ValueError or OSError where it cannot.
LoadFrames = Callable[[pathlib.Path | bytes, float | None, float | None], np.ndarray]
Metrics = dict[str, dict[str, float]]


class Answers(Protocol):
    """What benchmarks need of a model; `inference.Model` is one.

    One that writes texts has `has_decoder`, true, and `decode`: S^_Y [B, E] -> B texts.
    """

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """[B, T, H, W, C] uint8 -> visual tokens S_V [B, N, D]."""

    def predict(self, visual: np.ndarray, queries: list[str]) -> np.ndarray:
        """[B, N, D], B texts -> S^_Y, [B, E] unit vectors."""

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """B texts -> S_Y, [B, E] unit vectors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one clip.

    Attributes:
      name: what its annotation file calls it; for reports.
      answer: what the benchmark's score compares with, of the benchmark's own type.
      query: what is asked.
      media: names of its files (see `MediaFolder.find`) or encoded files; several are shown one after
        another as a single clip.
      start, end: of the span, in seconds; None for the media's ends.
      group: items of one group count only together; "" for none.
    """

    name: str
    answer: Any
    query: str = ""
    media: tuple[str | bytes, ...] = ()
    start: float | None = None
    end: float | None = None
    group: str = ""


Score = Callable[[Sequence[Item], np.ndarray | None, Answers], Metrics]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark's questions and how the answers are scored.

    Attributes:
      items: what is asked.
      score: (items, S^_Y of each [B, E], model) -> {"METRIC": {"value", "chance", "n"}}; without media
        there are no S^_Y.
      unknown: {name: cause} of what the annotation files leave undefined, not among the items.
      classes: the texts of each class, where an item's `answer` is the index of one.
      asks_its_own: whether each item brings its own question, so that no other can replace it.
      needs_decoder: whether it scores texts.
    """

    items: Sequence[Item]
    score: Score
    unknown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    classes: Sequence[Sequence[str]] = ()
    asks_its_own: bool = False
    needs_decoder: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watching:
    """How media get to the model.

    Attributes:
      media: the folder; None if the annotation files hold the media themselves.
      load_frames: decodes one file.
      frames: T of a clip joined of several files.
      batch_size: clips that the model sees at a time; as many wait decoded.
      threads: that decode.
      check_query: raises ValueError on a query that the model does not take.
    """

    media: MediaFolder | None
    load_frames: LoadFrames
    frames: int
    batch_size: int
    threads: int = 1
    check_query: Callable[[str], None] = lambda query: None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Metrics, and {name: cause} of what they leave out."""

    metrics: Metrics
    missing: dict[str, str]


def with_query(benchmark: Benchmark, query: str) -> Benchmark:
    """The benchmark under another query.

    Raises:
      UsageError: its items bring their own questions.
    """
    if benchmark.asks_its_own or not any(item.media for item in benchmark.items):
        raise UsageError("--query: this task has questions of its own, or none")
    items = [dataclasses.replace(item, query=query) for item in benchmark.items]
    return dataclasses.replace(benchmark, items=items)


def decoder_of(model: Answers) -> Callable[[np.ndarray], list[str]]:
    """The model's `decode`, [B, E] -> B texts.

    Raises:
      UsageError: it has no Y-Decoder.
    """
    if not getattr(model, "has_decoder", False):
        raise UsageError("this task scores texts, but the checkpoint has no Y-Decoder: train one first")
    return model.decode


def joined(pieces: list[np.ndarray], frames: int) -> np.ndarray:
    """One clip of several pieces, each with its share of the frames: [T, H, W, C] each -> [T, H, W, C].

    A piece with fewer frames than its share, an image, is repeated.

    Raises:
      ValueError: there are fewer frames than pieces.
    """
    if len(pieces) == 1:
        return pieces[0]
    if frames < len(pieces):
        raise ValueError(f"{len(pieces)} pieces of media do not fit in a clip of {frames} frames")
    shares = np.array_split(np.arange(frames), len(pieces))
    return np.concatenate(
        [
            piece[((np.arange(len(share)) + 0.5) * len(piece) / len(share)).astype(int)]
            for piece, share in zip(pieces, shares, strict=True)
        ]
    )


def _complete(items: Sequence[Item], missing: dict[str, str]) -> list[int]:
    """Places of the items that are not missing, nor another of their group."""
    broken = {item.group for item in items if item.name in missing and item.group}
    for item in items:
        if item.group in broken:
            missing.setdefault(item.name, f"another part of {item.group} is missing")
    return [place for place, item in enumerate(items) if item.name not in missing]


def _refused(items: Sequence[Item], check_query: Callable[[str], None]) -> dict[str, str]:
    """{name: cause} of the items whose query the model does not take."""
    causes: dict[str, str] = {}
    for query in dict.fromkeys(item.query for item in items):
        try:
            check_query(query)
        except ValueError as error:
            causes[query] = first_line(error)
    return {item.name: causes[item.query] for item in items if item.query in causes}


@dataclasses.dataclass
class _Clip:
    """Files shown as one clip, a span of them, and the places of the items about it."""

    files: list[pathlib.Path | bytes]
    start: float | None
    end: float | None
    places: list[int]


def _clips(items: Sequence[Item], media: MediaFolder | None, missing: dict[str, str]) -> list[_Clip]:
    """The distinct clips, in the order of the items; those without a file are put into `missing`."""
    clips: dict[tuple, _Clip] = {}
    for place, item in enumerate(items):
        try:
            files = [name if isinstance(name, bytes) else media.find(name) for name in item.media]
        except MissingMediaError as error:
            missing[item.name] = str(error)
            continue
        key = (item.media, item.start, item.end)
        clips.setdefault(key, _Clip(files, item.start, item.end, [])).places.append(place)
    kept = set(_complete(items, missing))
    for clip in clips.values():
        clip.places = [place for place in clip.places if place in kept]
    return [clip for clip in clips.values() if clip.places]


def _ahead(
    load: Callable[[_Clip], np.ndarray], clips: Sequence[_Clip], threads: int, most: int
) -> Iterator[tuple[_Clip, futures.Future]]:
    """Clips in order, each with its frames to come, decoded while the model is busy; `most` wait."""
    with futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for clip in clips:
            waiting.append((clip, pool.submit(load, clip)))
            if len(waiting) > most:
                yield waiting.popleft()
        yield from waiting


def predictions(
    items: Sequence[Item], model: Answers, watching: Watching
) -> tuple[np.ndarray | None, dict[str, str]]:
    """S^_Y of every item. A clip is decoded and encoded once, however much is asked about it.

    Returns:
      [B, E] with zeros for items that are missing, None if all are; and {name: cause} of these.
    """
    missing = _refused(items, watching.check_query)
    clips = _clips(items, watching.media, missing)
    batch_size = watching.batch_size

    def load(clip: _Clip) -> np.ndarray:
        pieces = [watching.load_frames(file, clip.start, clip.end) for file in clip.files]
        return joined(pieces, watching.frames)

    predicted = None
    ahead = _ahead(load, clips, watching.threads, batch_size)
    for _ in tqdm(range(0, len(clips), batch_size), desc="clips", unit="batch", disable=None):
        # Clips of one shape go through the model together: images and videos may be mixed.
        by_shape: dict[tuple, list[tuple[np.ndarray, list[int]]]] = collections.defaultdict(list)
        for clip, future in itertools.islice(ahead, batch_size):
            try:
                found = future.result()
            except (ValueError, OSError) as error:
                missing.update(dict.fromkeys((items[p].name for p in clip.places), first_line(error)))
                continue
            by_shape[found.shape].append((found, clip.places))
        for batch in by_shape.values():
            visual = model.encode_video(np.stack([found for found, _ in batch]))
            asked = [(row, place) for row, (_, places) in enumerate(batch) for place in places]
            for begin in range(0, len(asked), batch_size):
                rows, at = zip(*asked[begin : begin + batch_size], strict=True)
                answers = model.predict(visual[list(rows)], [items[p].query for p in at])
                if predicted is None:
                    predicted = np.zeros((len(items), answers.shape[-1]), np.float32)
                predicted[list(at)] = answers
    return predicted, missing


def run(benchmark: Benchmark, model: Answers, watching: Watching | None = None) -> Outcome:
    """Ask a model all of a benchmark. What is missing is left out and listed.

    Args:
      watching: None for benchmarks without media.

    Raises:
      UsageError: nothing is left to score, media are needed and no folder is given, texts are and the
        model has no decoder, or its answers are not numbers.
    """
    items = benchmark.items
    if not items:
        raise UsageError("the annotation files hold nothing to ask about" + _examples(benchmark.unknown))
    if benchmark.needs_decoder:
        decoder_of(model)
    predicted, missing = None, {}
    if any(item.media for item in items):
        named = any(isinstance(name, str) for item in items for name in item.media)
        if watching is None or (named and watching.media is None):
            raise UsageError("this task needs --media=FOLDER with the videos or images")
        predicted, missing = predictions(items, model, watching)
    kept = _complete(items, missing)
    missing = {**benchmark.unknown, **missing}
    if not kept:
        raise UsageError(f"nothing of {len(items)} items could be used" + _examples(missing))
    chosen = None if predicted is None else checked_numbers(predicted[kept])
    return Outcome(benchmark.score([items[place] for place in kept], chosen, model), missing)


def _examples(missing: Mapping[str, str]) -> str:
    shown = [f"{name} ({cause})" for name, cause in list(missing.items())[:3]]
    return f": {', '.join(shown)}" if shown else ""


def missing_sentence(outcome: Outcome, file: str) -> str:
    """What was left out, in a sentence for the user; "" if nothing was."""
    if not outcome.missing:
        return ""
    more = ", .." if len(outcome.missing) > 3 else ""
    return (
        f"{len(outcome.missing)} left out, the score is of the rest{_examples(outcome.missing)}{more}; "
        f"all are in {file}"
    )
