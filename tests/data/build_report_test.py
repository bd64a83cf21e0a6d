"""What a build tells of its records: statistics that add up, and their picture."""

import json

import numpy as np
import pytest

from jepa_jax.data.build.report import plot_report
from jepa_jax.data.build.statistics import Histogram
from jepa_jax.data.build.tally import Tally
from jepa_jax.data.records import Media, Pair, Record


def test_statistics_of_parts_are_those_of_all():
    values = np.concatenate([np.random.default_rng(0).lognormal(3, 2, 5003), np.zeros(7)])
    whole, joined = Histogram(), Histogram()
    for value in values:
        whole.add(value)
    for part in np.array_split(values, 11):
        histogram = Histogram()
        for value in part:
            histogram.add(value)
        joined.merge(Histogram.from_json(json.loads(json.dumps(histogram.to_json()))))
    assert joined.to_json() | {"total": 0} == whole.to_json() | {"total": 0}
    assert joined.total == pytest.approx(values.sum())
    for q in (0.01, 0.25, 0.5, 0.95):
        assert joined.quantile(q) == pytest.approx(np.quantile(values, q), rel=0.07)
    assert joined.summary()["zeros"] == 7
    assert Histogram().summary() == {"count": 0}


def test_the_picture_has_a_panel_for_all_that_is_known():
    """No panel of queries where all are empty, and none of durations where there are only images."""
    tallies = {"train": Tally(), "val": Tally()}
    for i in range(1, 60):
        record = Record(
            name="a", media=Media(content=b"x" * i, kind="image"), pairs=(Pair(query="", targets=("a" * i,)),)
        )
        tallies["train"].add(record, i, videos=False)
    clusters = {"train": {"sizes": [5, 40, 3], "sizes_after": [5, 9, 3]}}
    figure = plot_report(tallies, clusters, "cats")
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == ["media, as stored", "target, characters", "records in each cluster, the largest first"]
    # All 59 are in the first panel's bars, of the one split that has any.
    (bars,) = figure.axes[0].patches
    assert bars.get_data().values.sum() == 59


def test_every_split_fits_into_the_picture():
    tallies = {"few": Tally(), "many": Tally()}
    for split, count in (("few", 3), ("many", 500)):
        for i in range(count):
            media = Media(content=b"x" * (1 + i % 5), kind="image")
            tallies[split].add(Record(name="a", media=media, pairs=()), 1, videos=False)
    panel = plot_report(tallies, {}, "cats").axes[0]
    assert panel.get_ylim()[0] == 0
    assert panel.get_ylim()[1] >= max(bars.get_data().values.max() for bars in panel.patches) >= 100


def test_a_picture_of_records_that_are_alike_still_has_a_scale():
    """Between no two round numbers lie spans of 3 s, media of 3 kB and texts of 40 letters."""
    tally = Tally()
    for i in range(20):
        media = Media(content=b"x" * (3000 + i), kind="video", start=0.0, end=3.0)
        tally.add(
            Record(name="a", media=media, pairs=(Pair(query="q" * 40, targets=("a" * 40,)),)), 1, videos=False
        )
    figure = plot_report({"train": tally}, {}, "alike")
    assert len(figure.axes) == 4
    for panel in figure.axes:
        low, high = panel.get_xlim()
        assert len({x for x in panel.get_xticks() if low <= x <= high}) >= 2
