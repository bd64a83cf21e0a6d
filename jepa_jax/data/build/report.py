"""What a build tells of its records: report.json, left_out.jsonl, report.png."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jepa_jax.data import bad_records
from jepa_jax.data.build.layout import REPORT, Split, replacing
from jepa_jax.data.build.shards import line_of
from jepa_jax.data.build.statistics import Histogram
from jepa_jax.data.build.tally import Tally
from jepa_jax.data.records import BadRecordError, Source

LEFT_OUT, PICTURE = "left_out.jsonl", "report.png"
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def tally_of(split: Split, source: Source) -> Tally:
    """Of all shards, and of what the source left out when it was opened."""
    tally = Tally()
    tally.left_out.update(error.cause for error in source.skipped)
    for summary in split.summaries():
        tally.merge(summary)
    return tally


def summary(split: Split, source: Source, tally: Tally) -> dict[str, Any]:
    """What report.json says of a split."""
    return {
        "source": source.identity,
        "source_records": split.records + len(source.skipped),
        **{key: tally.written[key] for key in ("records", "pairs", "targets", "bytes")},
        "shards": split.shards,
        "left_out": dict(tally.left_out.most_common()),
        "removed": {reason: count for reason, count in sorted(tally.removed.items()) if count},
        "spans": dict(sorted(tally.spans.items())),
        **{name: histogram.summary() for name, histogram in tally.histograms.items()},
    }


def write_left_out(splits: Mapping[str, Split], sources: Mapping[str, Source], folder: pathlib.Path) -> None:
    """All that was left out, a line each: name, cause, detail, split."""
    with (
        replacing(folder / LEFT_OUT, folder) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for name, split in splits.items():
            for error in sources[name].skipped:
                file.write(line_of(error, name))
            for shard in range(split.shards):
                file.write(split.state(shard, LEFT_OUT).read_text(encoding="utf-8"))


def by_cause(file: pathlib.Path, split: str) -> str:
    """What a split left out, as `bad_records.by_cause` says it."""
    with file.open(encoding="utf-8") as lines:
        found = (line for line in map(json.loads, lines) if line["split"] == split)
        return bad_records.by_cause(BadRecordError(line["cause"], line["name"]) for line in found)


def _seconds(x: float, _place) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x:.3g} s"


def _bytes(x: float, _place) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if x < 1000 or unit == "GB":
            return f"{x:.3g} {unit}"
        x /= 1000
    return ""


def _number(x: float, _place) -> str:
    return f"{x:,.3g}" if x < 1000 else f"{x:,.0f}"


# What is drawn: a title, and how a value is written. Ticks stand where people count.
_PANELS = {
    "duration_seconds": ("duration of videos and spans", _seconds),
    "media_bytes": ("media, as stored", _bytes),
    "query_characters": ("query, characters", _number),
    "target_characters": ("target, characters", _number),
}
_SECONDS = (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 36000)
_ONE_TWO_FIVE = tuple(digit * 10**power for power in range(13) for digit in (1, 2, 5))
_TICKS = 7


def plot_report(tallies: Mapping[str, Tally], clusters: Mapping[str, dict], title: str) -> Figure:
    """A panel for each of durations, sizes, lengths and clusters; a colour for each split."""
    drawn = [name for name in _PANELS if any(t.histograms[name].most > 0 for t in tallies.values())]
    count = len(drawn) + bool(clusters)
    columns = min(count, 2) or 1
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(5.4 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, color="0.6")
        panel.yaxis.set_major_formatter(FuncFormatter(_number))
    for panel, name in zip(axes, drawn, strict=False):
        label, write = _PANELS[name]
        for colour, (split, tally) in zip(_COLOURS, tallies.items(), strict=False):
            _draw(panel, tally.histograms[name], split, colour, write, alone=len(tallies) == 1)
        panel.set_ylim(bottom=0)  # when all are drawn: it ends the fitting of the axis
        panel.set_xscale("log")
        low, high = panel.get_xlim()
        candidates = _SECONDS if name == "duration_seconds" else _ONE_TWO_FIVE
        ticks = [tick for tick in candidates if low <= tick <= high]
        if len(ticks) < 2:  # all nearly alike: one round number, or none, tells no scale
            ticks = np.linspace(low, high, 5)[1:-1]
            ticks = list(np.unique(np.round(ticks)) if name.endswith("_characters") else ticks)
        panel.set_xticks(ticks[:: -(-len(ticks) // _TICKS)])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(write))
        panel.set_title(label, loc="left", fontsize=10)
        panel.set_ylabel("records" if name in ("duration_seconds", "media_bytes") else "texts", fontsize=8)
    if clusters:
        _draw_clusters(axes[len(drawn)], clusters)
    for panel in axes[count:]:
        panel.remove()
    if len(tallies) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _draw(panel, histogram: Histogram, split: str, colour: str, write, *, alone: bool) -> None:
    if not histogram.count:
        return
    edges, counts = histogram.bins()
    if len(counts):
        panel.stairs(counts, edges, color=colour, fill=alone, alpha=0.75 if alone else 1, label=split)
    if alone:
        median = histogram.quantile(0.5)
        words = [f"median {write(median, None)}"] if median > 0 else []
        if empty := histogram.count - int(counts.sum()):
            words.append(f"{empty:,} of {histogram.count:,} empty")
        if median > 0:
            panel.axvline(median, color="0.25", linewidth=1)
        panel.annotate(
            "\n".join(words), (0.99, 0.97), xycoords="axes fraction", fontsize=8, ha="right", va="top"
        )


def _draw_clusters(panel, clusters: Mapping[str, dict]) -> None:
    for colour, (split, found) in zip(_COLOURS, clusters.items(), strict=False):
        before, after = (np.sort(found[key])[::-1] for key in ("sizes", "sizes_after"))
        places = np.arange(1, len(before) + 1)
        panel.plot(places, before, color=colour, linestyle=":", label=f"{split}, before")
        panel.plot(places, after, color=colour, label=f"{split}, after")
    panel.set_yscale("symlog", linthresh=1)
    panel.yaxis.set_major_formatter(FuncFormatter(_number))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_title("records in each cluster, the largest first", loc="left", fontsize=10)
    panel.set_ylabel("records", fontsize=8)
    panel.legend(frameon=False, fontsize=8)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The report of a complete dataset."""
    return json.loads((folder / REPORT).read_text(encoding="utf-8"))
