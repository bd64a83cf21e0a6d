"""What a benchmark is, and how a model is asked all of it: media -> S_V -> S^_Y -> score."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from jepa_jax.evaluation.media import MediaFolder, MissingMediaError
from jepa_jax.flags import UsageError

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


def _clips(
    items: Sequence[Item], media: MediaFolder, missing: dict[str, str]
) -> dict[tuple, tuple[list[pathlib.Path | bytes], list[int]]]:
    """The distinct clips: for each its files and the places of the items about it."""
    clips: dict[tuple, tuple[list[pathlib.Path | bytes], list[int]]] = {}
    for place, item in enumerate(items):
        try:
            files = [name if isinstance(name, bytes) else media.find(name) for name in item.media]
        except MissingMediaError as error:
            missing[item.name] = str(error)
            continue
        key = (item.media, item.start, item.end)
        clips.setdefault(key, (files, []))[1].append(place)
    return clips


def predictions(
    items: Sequence[Item],
    model: Answers,
    media: MediaFolder,
    load_frames: LoadFrames,
    *,
    frames: int,
    batch_size: int,
) -> tuple[np.ndarray | None, dict[str, str]]:
    """S^_Y of every item. A clip is decoded and encoded once, however much is asked about it.

    Args:
      frames: T of a clip joined of several pieces.
      batch_size: clips in memory at a time.

    Returns:
      [B, E] with zeros for items that are missing, None if all are; and {name: cause} of these.
    """
    missing: dict[str, str] = {}
    clips = _clips(items, media, missing)
    kept = set(_complete(items, missing))
    waiting = [(key, files, [p for p in places if p in kept]) for key, (files, places) in clips.items()]
    waiting = [clip for clip in waiting if clip[2]]
    predicted = None
    for first in tqdm(range(0, len(waiting), batch_size), desc="clips", unit="batch", disable=None):
        # Clips of one shape go through the model together: images and videos may be mixed.
        by_shape: dict[tuple, list[tuple[np.ndarray, list[int]]]] = collections.defaultdict(list)
        for (_, start, end), files, places in waiting[first : first + batch_size]:
            try:
                clip = joined([load_frames(file, start, end) for file in files], frames)
            except (ValueError, OSError) as error:
                missing.update(dict.fromkeys((items[p].name for p in places), _first_line(error)))
                continue
            by_shape[clip.shape].append((clip, places))
        for batch in by_shape.values():
            visual = model.encode_video(np.stack([clip for clip, _ in batch]))
            asked = [(row, place) for row, (_, places) in enumerate(batch) for place in places]
            for begin in range(0, len(asked), batch_size):
                rows, at = zip(*asked[begin : begin + batch_size], strict=True)
                answers = model.predict(visual[list(rows)], [items[p].query for p in at])
                if predicted is None:
                    predicted = np.zeros((len(items), answers.shape[-1]), np.float32)
                predicted[list(at)] = answers
    return predicted, missing


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def run(
    benchmark: Benchmark,
    model: Answers,
    media: MediaFolder | None,
    load_frames: LoadFrames,
    *,
    frames: int,
    batch_size: int,
) -> Outcome:
    """Ask a model all of a benchmark. What is missing is left out and listed.

    Raises:
      UsageError: nothing is left to score, media are needed and no folder is given, or texts are and
        the model has no decoder.
    """
    items = benchmark.items
    if not items:
        raise UsageError("the annotation files hold nothing to ask about" + _examples(benchmark.unknown))
    if benchmark.needs_decoder:
        decoder_of(model)
    predicted, missing = None, {}
    if any(item.media for item in items):
        if media is None:
            raise UsageError("this task needs --media=FOLDER with the videos or images")
        predicted, missing = predictions(
            items, model, media, load_frames, frames=frames, batch_size=batch_size
        )
    kept = _complete(items, missing)
    missing = {**benchmark.unknown, **missing}
    if not kept:
        raise UsageError(f"nothing of {len(items)} items could be used" + _examples(missing))
    chosen = None if predicted is None else predicted[kept]
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
