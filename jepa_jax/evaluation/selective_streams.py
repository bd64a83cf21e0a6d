"""Selective against uniform decoding on joined clips: CIDEr over decodes per second.

Settings are chosen on one split and reported on another.
"""

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from jepa_jax import flags
from jepa_jax.evaluation import joined
from jepa_jax.evaluation.clips import load_clips
from jepa_jax.evaluation.selective import Point, TimedText, Watched, measure, saving, uniform_times
from jepa_jax.figures import save_figure
from jepa_jax.inference import Model
from jepa_jax.streaming import offline
from jepa_jax.streaming.frames import from_arrays
from jepa_jax.streaming.online import Decode, OnlineConfig, OnlineDecoder
from jepa_jax.streaming.texts import Speaks
from jepa_jax.streaming.windows import Embedded, embed, slide

QUERY = "describe the clip"
# Uniform decoding at this rate is what has to be reached (paper: 1 a second).
REFERENCE = 1.0
UNIFORM_RATES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
SEGMENT_RATES = (0.1, 0.15, 0.2, 0.225, 0.25, 0.275, 0.3, 0.325, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
THRESHOLDS = (0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.075, 0.05, 0.035, 0.02, 0.01, 0.005)

Method = Callable[[list[Embedded], float], list[Decode]]
# From a model and the captions of a split.
MakeSpeaker = Callable[[Model, list[str]], Speaks]


def uniform(windows: list[Embedded], rate: float) -> list[Decode]:
    """The windows nearest to evenly spaced times, `rate` a second."""
    middles = np.array([w.middle for w in windows])
    times = uniform_times(windows[-1].end, rate)
    return [
        Decode(windows[i].start, windows[i].middle, windows[i].embedding)
        for i in np.abs(middles[None] - times[:, None]).argmin(axis=1)
    ]


def segments(windows: list[Embedded], rate: float) -> list[Decode]:
    """The middles of as many segments as the rate gives."""
    return offline.decodes(windows, max(1, round(windows[-1].end * rate)))


def online(windows: list[Embedded], threshold: float) -> list[Decode]:
    """What decoding as it comes decodes. Windows follow one another at half their length."""
    decoder = OnlineDecoder(OnlineConfig(threshold=threshold), renewal=2)
    found = [decoder(window) for window in windows]
    return [decode for decode in [*found, decoder.finish()] if decode is not None]


METHODS: dict[str, tuple[Method, Sequence[float]]] = {
    "uniform": (uniform, UNIFORM_RATES),
    "offline": (segments, SEGMENT_RATES),
    "online": (online, THRESHOLDS),
}


class Split:
    """The joined clips of a split, watched once."""

    def __init__(self, model: Model, name: str, speak: MakeSpeaker):
        config = model.config
        size, period = config.data.frames, config.model.x_encoder.tubelet_size
        if size % (2 * period):
            raise flags.UsageError(f"windows of {size} frames have no half that tubelets of {period} fill")
        frames, clips = load_clips(config, name, config.eval.clips)
        if not all(any(kind == "describe" for kind, _, _ in clip.pairs) for clip in clips):
            raise flags.UsageError(
                f"streams are joined of clips with captions, as the default data's: those of {name!r} have "
                'no pair of kind "describe"'
            )
        self.streams = joined.join(frames, clips, period=period, longest=6, per_stream=24, seed=config.seed)
        captions = [a.text for stream in self.streams for a in stream.annotations]
        self._speak = speak(model, captions)
        self._windows = [
            list(embed(slide(from_arrays(s.frames, s.rate), size, size // 2, s.rate), model, QUERY, batch=64))
            for s in self.streams
        ]

    def _texts(self, decodes: list[list[Decode]]) -> list[list[TimedText]]:
        """All of a method's decodes at once, which are many small batches else."""
        texts = iter(self._speak(np.stack([d.embedding for stream in decodes for d in stream])))
        return [[TimedText(d.middle, next(texts)[0]) for d in stream] for stream in decodes]

    def point(self, method: Method, setting: float, turn: int = 0) -> Point:
        """A method at a setting; with `turn` 1 each stream is given the next one's texts."""
        texts = self._texts([method(windows, setting) for windows in self._windows])
        texts = texts[turn:] + texts[:turn]
        watched = [
            Watched(
                seconds=stream.seconds,
                decodes=said,
                annotations=[TimedText(a.middle, a.text) for a in stream.annotations],
            )
            for stream, said in zip(self.streams, texts, strict=True)
        ]
        return measure(watched)

    def chance(self, method: Method, setting: float) -> float | None:
        """CIDEr where each stream is given the texts of another; None where there is one stream alone."""
        return self.point(method, setting, turn=1).cider if len(self.streams) > 1 else None

    def curves(self) -> dict[str, list[Point]]:
        """A point for each setting of each method."""
        return {name: [self.point(m, s) for s in settings] for name, (m, settings) in METHODS.items()}


def cheapest(curve: list[Point], cider: float) -> int | None:
    """Place of the point of fewest decodes that reaches a CIDEr."""
    reached = [i for i, point in enumerate(curve) if point.cider >= cider]
    return min(reached, key=lambda i: curve[i].decodes_per_second) if reached else None


def evaluate(
    model: Model, speak: Callable[[Model, list[str]], Speaks], splits=("validation", "unseen_pairs")
):
    """The figures of the last of two splits with settings chosen on the first.

    Returns:
      Metrics {"SPLIT/NAME": {"value", "chance", "n"}}, the curves of the last split, and the place on them
      of each chosen setting.
    """
    chosen_on, reported = (Split(model, name, speak) for name in splits)
    curves = chosen_on.curves()
    goal = chosen_on.point(uniform, REFERENCE)
    places = {name: cheapest(curves[name], goal.cider) for name in ("online", "offline")}
    curves = reported.curves()
    n = sum(len(stream.annotations) for stream in reported.streams)
    reference = reported.point(uniform, REFERENCE)
    chance = reported.chance(uniform, REFERENCE)
    metrics = {"uniform_cider": {"value": reference.cider, "chance": chance, "n": n}}
    for name, place in places.items():
        curve_saving = saving(curves[name], reference)
        metrics[f"{name}_times_fewer_on_the_curve"] = {"value": curve_saving, "chance": 1.0, "n": n}
        if place is not None:
            method, settings = METHODS[name]
            point, setting = curves[name][place], settings[place]
            other = reported.chance(method, setting)
            metrics[f"{name}_cider"] = {"value": point.cider, "chance": other, "n": n, "setting": setting}
            fewer = reference.decodes_per_second / point.decodes_per_second
            metrics[f"{name}_times_fewer_decodes"] = {"value": fewer, "chance": 1.0, "n": n}
    return {f"{splits[-1]}/{name}": metric for name, metric in metrics.items()}, curves, places


def plot(path: epath.Path, curves: dict[str, list[Point]], places: dict[str, int | None]) -> None:
    """CIDEr over decodes per second for each method; the settings that validation chose are ringed."""
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    labels = {
        "uniform": ("uniform decoding", "0.45"),
        "offline": ("selective, whole video (Ward segments)", "tab:blue"),
        "online": ("selective, as it comes (variance)", "tab:red"),
    }
    for name, (label, colour) in labels.items():
        points = sorted(curves[name])
        rates, ciders = [p.decodes_per_second for p in points], [p.cider for p in points]
        axes.plot(rates, ciders, "o-", color=colour, markersize=4, linewidth=1.4, label=label)
        if places.get(name) is not None:
            point = curves[name][places[name]]
            ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.6}
            axes.plot(point.decodes_per_second, point.cider, "o", color=colour, **ring)
    reference = min(curves["uniform"], key=lambda point: abs(point.decodes_per_second - REFERENCE))
    axes.axhline(reference.cider, color="0.45", linewidth=0.8, linestyle=":")
    axes.annotate(
        f"uniform at {REFERENCE:g} a second",
        (reference.decodes_per_second, reference.cider),
        xytext=(6, -16),
        textcoords="offset points",
        fontsize=9,
        color="0.35",
    )
    axes.set(xlabel="decodes per second", ylabel="CIDEr of each caption's nearest decode", xlim=(0, None))
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, path, dpi=120)
