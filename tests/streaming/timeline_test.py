"""The picture of a stream, and that what it is drawn from does not grow."""

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from jepa_jax.streaming import timeline as timelines
from jepa_jax.streaming.events import Event
from jepa_jax.streaming.frames import Frame
from jepa_jax.streaming.timeline import Thinned, Timeline


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000, 12345])
def test_what_is_kept_is_bounded_and_even(count):
    kept = Thinned(8)
    for i in range(count):
        kept.add(i)
    assert 0 < len(kept.items) <= 8
    assert kept.items[0] == 0
    steps = np.diff(kept.items)
    assert len(set(steps.tolist())) <= 1
    if count > 8:
        assert count - kept.items[-1] <= steps[0]


def test_a_peak_is_never_lost():
    for peak in range(100):
        kept = Thinned(5, join=max)
        for i in range(100):
            kept.add(9 if i == peak else 1)
        assert kept.items.count(9) == 1


def test_wanted_items_are_those_that_stay():
    kept, wanted = Thinned(4), []
    for i in range(50):
        if kept.wants_next():
            wanted.append(i)
        kept.add(i)
    assert set(kept.items) <= set(wanted)


@pytest.mark.parametrize("count", [1, 3, 230])
def test_the_picture_is_drawn_for_few_events_and_for_many(tmp_path, count):
    timeline = Timeline()
    frames = (Frame(i, np.full((9, 17, 3), i % 255, np.uint8)) for i in range(2 * count))
    assert len(list(timeline.pass_on(frames))) == 2 * count
    for i in range(2 * count):
        timeline.add_novelty(i, float(i % 2))
    events = [Event(2 * i, 2 * i + 2, 2 * i + 1, rf"$\frac$ {i}" * (i % 20), 0.5) for i in range(count)]
    for event in events:
        timeline.add_decode(event.at)
    timeline.draw(tmp_path / "timeline.png", events, "a title", 0.3)
    with Image.open(tmp_path / "timeline.png") as picture:
        assert min(picture.size) > 300
        assert len(np.unique(np.asarray(picture))) > 50


def test_a_picture_s_numbers_are_of_all_and_its_title_is_no_wider(tmp_path, monkeypatch):
    """Of very many events and decodes some are drawn."""
    drawn, save = [], timelines.save_figure
    monkeypatch.setattr(
        timelines,
        "save_figure",
        lambda figure, path, **how: drawn.append(figure) or save(figure, path, **how),
    )
    timeline, count = Timeline(), 5000
    list(timeline.pass_on([Frame(0.0, np.zeros((9, 17, 3), np.uint8))]))
    timeline.add_novelty(0.0, 0.1)
    for i in range(count):
        timeline.add_decode(float(i))
    events = [Event(i, i + 1, i + 0.5, "some text", 0.5) for i in range(count)]
    timeline.draw(tmp_path / "timeline.png", events, "a_long_name_" * 20, None)
    texts = [text.get_text() for text in drawn[0].findobj(Text)]
    assert "decodes (5000)" in texts
    assert f"and {count - texts.count('some text')} more in events.jsonl" in texts
    with Image.open(tmp_path / "timeline.png") as picture:
        assert picture.width < 15 * 110
