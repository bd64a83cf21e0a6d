"""Which frames of a clip are taken: uniformly in time, over all of it, a span, or a random part."""

import numpy as np

from jepa_jax.data.records import BadRecordError

# A random part is at least so much of what it is taken from: less, and a caption of the whole need not
# hold for it.
SHORTEST_PART = 0.5
# A frame first shown so many seconds before a span still counts as its first: containers round times to half
# of their unit, others than a cut of them, and people to milliseconds. Never by much of a frame.
_ROUNDED = 0.0005, 0.001


def sample_times(
    times: np.ndarray,
    stop: float,
    count: int,
    *,
    unit: float,
    name: str,
    stop_is_known: bool = False,
    start: float | None = None,
    end: float | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The places of `count` frames, each the one on show in the middle of its equal share of the time.

    Where the rate is constant that is `preprocess.sample_frames`' rule on the frames, to the frame. Times
    on a straight line to within one unit count as such: containers round them to units, and many only guess
    how long the last frame of a video is shown.

    With `rng` the shares are of a part of the time: its length is drawn uniformly between half and all
    of it, then its place.

    Args:
      times: [N] when each frame is first shown, ascending, N at least 1.
      stop: when the last one is no longer shown.
      unit: of these, in seconds.
      name: of the record, for the error.
      stop_is_known: as well as the times are, as of an animation, whose frames have durations.
      start, end: of the span, in seconds from the first frame on; None for the clip's own. The frames
        of a span are those that are first shown in it; if it falls between two frames, the one on show.
        What of it lies outside the clip is cut off.

    Returns:
      [count] int, ascending.

    Raises:
      BadRecordError: nothing of the clip is inside the span.
    """
    times = times.astype(float)
    times, stop = times - times[0], max(stop - times[0], times[-1] - times[0])
    start, end = -np.inf if start is None else start, np.inf if end is None else end
    if not (start < end and end > 0 and (start <= 0 or start < stop * unit)):
        found = f"{start:g} to {end:g} s, of a clip of {stop * unit:g} s"
        raise BadRecordError("span outside the media", name, found)
    first, last = np.searchsorted(times, (np.array([start, end]) - np.clip(unit / 2, *_ROUNDED)) / unit)
    if first == last:
        first = max(np.searchsorted(times, start / unit, "right") - 1, 0)
        last = first + 1
    edges = np.append(times[first:last], times[last] if last < len(times) else stop)
    # A frame that is followed by another is shown until then.
    known = edges if stop_is_known or last < len(times) else edges[:-1]
    if np.abs(known - np.linspace(known[0], known[-1], len(known))).max() <= 1:
        edges = np.arange(last - first + 1)
    begin, length = edges[0], edges[-1] - edges[0]
    if rng is not None:
        part = length * rng.uniform(SHORTEST_PART, 1)
        begin, length = begin + rng.random() * (length - part), part
    middles = begin + (np.arange(count) + 0.5) * length / count
    return first + np.searchsorted(edges[:-1], middles, "right") - 1
