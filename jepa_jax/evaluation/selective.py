"""Selective decoding: how good the texts along a video are for how few were decoded.

Each annotation is scored by CIDEr against the decode nearest to it in time (paper, section on selective
decoding); the cost is decodes per second.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jepa_jax.evaluation.captioning import cider


@dataclasses.dataclass(frozen=True)
class TimedText:
    """A text and when it holds, in seconds: an annotation, or what was decoded at that time."""

    time: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """A video of `seconds`, what was decoded along it and what annotators wrote."""

    seconds: float
    decodes: Sequence[TimedText]
    annotations: Sequence[TimedText]


@dataclasses.dataclass(frozen=True, order=True)
class Point:
    """A point of the curve: cost first, so that points sort along it."""

    decodes_per_second: float
    cider: float


def uniform_times(seconds: float, rate: float) -> np.ndarray:
    """When uniform decoding at `rate` per second decodes: the middle of each interval; at least once."""
    count = max(1, round(seconds * rate))
    return (np.arange(count) + 0.5) * seconds / count


def nearest_in_time(times: Sequence[float], asked: Sequence[float]) -> np.ndarray:
    """Place in `times` (any order, not empty) nearest to each of `asked`; of two as near, the first."""
    asked = np.asarray(asked, float)
    found, places = np.unique(np.asarray(times, float), return_index=True)
    # Only the last one before and the first one after: all distances of a day's stream are tens of GB.
    after = np.searchsorted(found, asked)
    before, after = np.maximum(after - 1, 0), np.minimum(after, len(found) - 1)
    gap = np.abs(asked - found[before]) - np.abs(asked - found[after])
    first = np.minimum(places[before], places[after])
    return np.select([gap < 0, gap > 0], [places[before], places[after]], first)


def measure(videos: Iterable[Watched]) -> Point:
    """CIDEr over all annotations of all videos, and decodes per second of video.

    The annotations of a video without a decode are scored against an empty text.

    Raises:
      ValueError: there are no annotations, or a video has no length.
    """
    said, written, seconds, decodes = [], [], 0.0, 0
    for video in videos:
        if not video.seconds > 0:
            raise ValueError(f"a video of {video.seconds} seconds has no decodes per second")
        seconds += video.seconds
        decodes += len(video.decodes)
        written += [[annotation.text] for annotation in video.annotations]
        if video.decodes:
            asked = [annotation.time for annotation in video.annotations]
            places = nearest_in_time([decode.time for decode in video.decodes], asked)
            said += [video.decodes[place].text for place in places]
        else:
            said += [""] * len(video.annotations)
    if not written:
        raise ValueError("no annotations to score decodes against")
    return Point(decodes / seconds, float(cider(said, written).mean()))


def curve(settings: Iterable[Iterable[Watched]]) -> list[Point]:
    """The points of several settings (rates, thresholds, numbers of segments), each of which watched all
    videos, by what they cost."""
    return sorted(measure(videos) for videos in settings)


def cost_of(points: Sequence[Point], quality: float) -> float | None:
    """Decodes per second at which a curve first reaches a CIDEr, between its points linearly; None if
    it never does."""
    points = sorted(points)
    for before, after in zip([None, *points], points, strict=False):
        if after.cider >= quality:
            if before is None:
                return after.decodes_per_second
            share = (quality - before.cider) / (after.cider - before.cider)
            width = after.decodes_per_second - before.decodes_per_second
            return before.decodes_per_second + share * width
    return None


def saving(selective: Sequence[Point], uniform: Point) -> float | None:
    """How many times fewer decodes reach the CIDEr of a uniform rate (paper: 2.85 at 1 a second); None
    if none do."""
    cost = cost_of(selective, uniform.cider)
    return None if cost is None else uniform.decodes_per_second / cost
