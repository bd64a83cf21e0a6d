"""Selective decoding's metric, on videos small enough to match by eye."""

import numpy as np
import pytest

from jepa_jax.evaluation.captioning import cider
from jepa_jax.evaluation.selective import (
    Point,
    TimedText,
    Watched,
    cost_of,
    curve,
    measure,
    nearest_in_time,
    saving,
    uniform_times,
)

COOK = [TimedText(2, "she peels an onion"), TimedText(9, "she fries the onion"), TimedText(15, "he eats")]
BOAT = [TimedText(1, "a boat leaves the pier"), TimedText(6, "waves hit the boat")]


def test_the_nearest_decode_in_time():
    assert nearest_in_time([10, 0, 4], [3, 7.1, 99, -5]).tolist() == [2, 0, 0, 1]
    # Of two as near, the first.
    assert nearest_in_time([0, 4], [2]).tolist() == [0]


def test_the_nearest_in_time_is_that_of_all_distances_without_making_them():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        times, asked = rng.integers(0, 30, count) / 2, rng.integers(-4, 70, 50) / 4
        expected = np.abs(asked[:, None] - times).argmin(axis=1)
        assert nearest_in_time(times, asked).tolist() == expected.tolist()
    assert nearest_in_time([1.0], []).tolist() == []
    many = np.arange(200_000.0)  # their distances would take 320 GB
    assert (nearest_in_time(many[::-1], many) == many[::-1]).all()


def test_each_annotation_is_scored_against_its_nearest_decode():
    decodes = [TimedText(8, "she fries the onion"), TimedText(1, "she peels an onion")]
    videos = [
        Watched(seconds=20, decodes=decodes, annotations=COOK),
        Watched(seconds=10, decodes=[TimedText(5, "waves hit the boat")], annotations=BOAT),
    ]
    point = measure(videos)
    said = [decodes[1], decodes[0], decodes[0]]
    expected = cider(
        [decode.text for decode in said] + ["waves hit the boat"] * 2,
        [[annotation.text] for annotation in [*COOK, *BOAT]],
    )
    assert point.cider == pytest.approx(expected.mean())
    assert point.decodes_per_second == pytest.approx(3 / 30)


def test_decoding_the_annotations_themselves_is_best_and_late_ones_are_worse():
    right = measure([Watched(seconds=20, decodes=COOK, annotations=COOK)])
    late = [TimedText(text.time + 6.5, text.text) for text in COOK]
    assert measure([Watched(seconds=20, decodes=late, annotations=COOK)]).cider < right.cider


def test_a_video_without_a_decode_scores_nothing_and_costs_nothing():
    watched = Watched(seconds=20, decodes=COOK, annotations=COOK)
    silent = Watched(seconds=20, decodes=[], annotations=BOAT)
    point = measure([watched, silent])
    assert point.decodes_per_second == pytest.approx(3 / 40)
    both = cider([t.text for t in COOK] + ["", ""], [[t.text] for t in [*COOK, *BOAT]])
    assert point.cider == pytest.approx(both.mean())


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no annotations"):
        measure([Watched(seconds=3, decodes=COOK, annotations=[])])
    with pytest.raises(ValueError, match="0 seconds"):
        measure([Watched(seconds=0, decodes=COOK, annotations=COOK)])


def test_uniform_decoding_is_at_the_middle_of_its_intervals():
    np.testing.assert_allclose(uniform_times(6, 0.5), [1, 3, 5])
    np.testing.assert_allclose(uniform_times(7, 0.01), [3.5])


def test_a_curve_goes_from_cheap_to_dear():
    often = [Watched(seconds=20, decodes=COOK, annotations=COOK)]
    seldom = [Watched(seconds=20, decodes=COOK[:1], annotations=COOK)]
    assert curve([often, seldom]) == [measure(seldom), measure(often)]


def test_what_a_quality_costs_is_read_off_the_curve():
    points = [Point(1.0, 0.8), Point(0.1, 0.2), Point(0.4, 0.5)]
    assert cost_of(points, 0.5) == pytest.approx(0.4)
    assert cost_of(points, 0.35) == pytest.approx(0.25)
    assert cost_of(points, 0.1) == 0.1
    assert cost_of(points, 0.9) is None


def test_the_saving_is_the_papers_ratio():
    assert saving([Point(0.2, 0.3), Point(0.35, 0.6)], Point(1.0, 0.6)) == pytest.approx(1 / 0.35)
    assert saving([Point(0.2, 0.3)], Point(1.0, 0.6)) is None
