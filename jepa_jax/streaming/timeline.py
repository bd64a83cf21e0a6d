"""`timeline.png`: a stream's frames, how much its embeddings varied, where it was decoded, and the texts."""

import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from jepa_jax.figures import columns_of, save_figure, shortened
from jepa_jax.streaming.events import Event
from jepa_jax.streaming.frames import Frame

_THUMBNAIL_HEIGHT = 120
_INCHES = 15.0
_LANES = 8
# Of the letters of a title, at this size of figure: a file's name may be longer.
_TITLE_COLUMNS = 130
# More could not be told apart.
_DRAWN_EVENTS = 200


class Thinned:
    """Items of an endless series, evenly over all of it, never more than `capacity`.

    Args:
      join: two neighbours to the one that stays; the first of them where nothing is said.

    Attributes:
      items: those kept.
      count: of all that were added.
    """

    def __init__(self, capacity: int, join: Callable = lambda first, second: first):
        self._capacity = capacity
        self._join = join
        self._stride = 1
        self.count = 0
        self.items: list = []

    def wants_next(self) -> bool:
        """Whether the next item starts one of its own, so that the rest need not be made."""
        return self.count % self._stride == 0

    def add(self, item) -> None:
        if self.wants_next():
            self.items.append(item)
        else:
            self.items[-1] = self._join(self.items[-1], item)
        self.count += 1
        if len(self.items) > self._capacity:
            pairs = [self.items[i : i + 2] for i in range(0, len(self.items), 2)]
            self.items = [pair[0] if len(pair) == 1 else self._join(*pair) for pair in pairs]
            self._stride *= 2


class Timeline:
    """What the picture needs of a stream of any length."""

    def __init__(self):
        self._pictures = Thinned(48)
        self._novelty = Thinned(4096, join=lambda a, b: max(a, b, key=lambda point: point[1]))
        self._decodes = Thinned(4096)

    def pass_on(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The same frames, of which it keeps small pictures of some."""
        for frame in frames:
            self._pictures.add((frame.seconds, _small(frame.pixels)) if self._pictures.wants_next() else None)
            yield frame

    def add_novelty(self, seconds: float, novelty: float) -> None:
        self._novelty.add((seconds, novelty))

    def add_decode(self, seconds: float) -> None:
        self._decodes.add(seconds)

    def draw(self, path: pathlib.Path, events: list[Event], title: str, threshold: float | None) -> None:
        """Write the picture of at least one event; `threshold` of the novelty is drawn where there is one."""
        end, count = events[-1].end, len(events)
        events = events[:: -(-len(events) // _DRAWN_EVENTS)]
        figure = Figure(figsize=(_INCHES, 6.2))
        grid = {"height_ratios": (1.15, 1.25, 1.9), "hspace": 0.12}
        strip, curve, texts = figure.subplots(3, 1, gridspec_kw=grid, sharex=True)
        colours = [f"C{i % 10}" for i in range(len(events))]
        _draw_pictures(strip, self._pictures.items, end)
        strip.set_title(shortened(title, _TITLE_COLUMNS), loc="left", fontsize=11, parse_math=False)
        self._draw_curve(curve, threshold)
        for event, colour in zip(events, colours, strict=True):
            curve.axvspan(event.start, event.end, color=colour, alpha=0.12, linewidth=0)
        _draw_texts(texts, events, count, colours, end)
        texts.set(xlim=(0, end), xlabel="seconds")
        save_figure(figure, path, dpi=110, bbox_inches="tight")

    def _draw_curve(self, axes, threshold: float | None) -> None:
        seconds, novelty = np.array(self._novelty.items).T
        axes.fill_between(seconds, novelty, color="0.55", alpha=0.35, linewidth=0)
        axes.plot(seconds, novelty, color="0.25", linewidth=1, label="variance of the embeddings")
        if threshold is not None:
            axes.axhline(threshold, color="tab:red", linewidth=0.9, linestyle="--", label="threshold")
        decodes = self._decodes.items
        heights = np.interp(decodes, seconds, novelty)
        axes.vlines(decodes, 0, heights, color="black", linewidth=0.7)
        label = f"decodes ({self._decodes.count})"
        axes.plot(decodes, heights, "v", color="black", markersize=6, label=label)
        # The legend's row stands above the highest peak.
        axes.set(ylabel="novelty", ylim=(0, 1.3 * max(novelty.max(), threshold or 0, 1e-6)))
        axes.legend(frameon=False, loc="upper right", ncols=3, fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


def _small(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = (max(1, round(width * _THUMBNAIL_HEIGHT / height)), _THUMBNAIL_HEIGHT)
    resample = Image.BILINEAR if height > _THUMBNAIL_HEIGHT else Image.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, resample))


def _draw_pictures(axes, pictures: list[tuple[float, np.ndarray]], end: float) -> None:
    """As many as fit side by side, each the nearest to the middle of its place."""
    axes.set(yticks=[], ylim=(0, 1), xlim=(0, end))
    axes.tick_params(bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    box = axes.get_position()
    inches = box.height * axes.figure.get_figheight(), box.width * axes.figure.get_figwidth()
    height, width = pictures[0][1].shape[:2]
    share = inches[0] * width / height / inches[1]  # of the strip's width, at its full height
    count = max(1, min(len(pictures), int(1 / share)))
    times = np.array([seconds for seconds, _ in pictures])
    for i in range(count):
        middle = (i + 0.5) * end / count
        _, pixels = pictures[np.abs(times - middle).argmin()]
        half = 0.49 * min(share, 1 / count) * end
        axes.imshow(pixels, extent=(middle - half, middle + half, 0, 1), aspect="auto")
    axes.set(xlim=(0, end), ylim=(0, 1))


def _draw_texts(axes, events: list[Event], count: int, colours: list[str], end: float) -> None:
    """Each text under its event, on the first of several lines where there is room; `count` is of all
    events, those that are not even drawn included."""
    width_of_letter = 0.0062 * end  # at this size of figure and font
    free = np.zeros(_LANES)
    used, left_out = 1, count - len(events)
    for event, colour in zip(events, colours, strict=True):
        axes.plot([event.start, event.end], [0.12, 0.12], color=colour, linewidth=7, solid_capstyle="butt")
        text = shortened(event.text, 60)
        width = columns_of(text) * width_of_letter + 0.008 * end
        # A text near the right edge ends there.
        begin = max(0.0, min(event.start, end - width))
        lanes = np.flatnonzero(free <= begin)
        if not len(lanes):
            left_out += 1
            continue
        lane = lanes[0]
        free[lane] = begin + width
        used = max(used, lane + 1)
        axes.plot([event.start] * 2, [0, -lane - 0.85], color=colour, linewidth=1.2, zorder=1)
        # Two dollars in a text are no formula.
        look = {"fontsize": 9, "va": "center", "zorder": 2, "parse_math": False}
        label = axes.text(begin + 0.004 * end, -lane - 0.5, text, **look)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8})
    if left_out:
        note = f"and {left_out} more in events.jsonl"
        axes.text(end, -used - 0.4, note, ha="right", va="center", fontsize=9, color="0.4")
        used += 1
    axes.set(yticks=[], ylim=(-max(used, 3) - 0.2, 0.35))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
