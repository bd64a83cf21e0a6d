"""Windows: which frames, at what time, and that batching changes nothing."""

import numpy as np
import pytest

from jepa_jax.streaming.frames import NoVideoError, from_arrays
from jepa_jax.streaming.windows import embed, look, slide
from tests.fake_model import ColourModel

RATE = 4.0


def numbered(count: int):
    return from_arrays((np.full((3, 5, 3), i, np.uint8) for i in range(count)), RATE)


@pytest.mark.parametrize(("size", "step"), [(4, 2), (4, 4), (3, 5), (2, 1)])
def test_windows_hold_the_frames_of_their_time(size, step):
    windows = list(slide(numbered(17), size, step, RATE))
    assert len(windows) == (17 - size) // step + 1
    for i, window in enumerate(windows):
        assert window.frames.shape == (size, 3, 5, 3)
        np.testing.assert_array_equal(window.frames[:, 0, 0, 0], i * step + np.arange(size))
        assert (window.start, window.end) == (i * step / RATE, (i * step + size) / RATE)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_frames_are_refused_in_a_sentence(count):
    with pytest.raises(NoVideoError, match=f"too short: it gives {count} frame.* a window takes 4"):
        list(slide(numbered(count), 4, 2, RATE))


class Counts:
    def embed_video(self, frames, query):
        self.largest = max(getattr(self, "largest", 0), len(frames))
        return frames.mean(axis=(1, 2, 3, 4))[:, None] * [1.0, len(query)]


def test_batches_change_neither_order_nor_embeddings():
    one, many = Counts(), Counts()
    first = list(embed(slide(numbered(23), 4, 2, RATE), one, "ask", batch=1))
    second = list(embed(slide(numbered(23), 4, 2, RATE), many, "ask", batch=7))
    assert (one.largest, many.largest) == (1, 7)
    assert [(w.start, w.end) for w in first] == [(w.start, w.end) for w in second]
    np.testing.assert_array_equal([w.embedding for w in first], [w.embedding for w in second])
    assert first[1].embedding.tolist() == [3.5, 10.5]


def test_one_window_at_a_time_waits_for_no_later_frame():
    taken = []

    def watched():
        for frame in numbered(100):
            taken.append(frame)
            yield frame

    next(embed(slide(watched(), 4, 2, RATE), Counts(), "", batch=1))
    assert len(taken) == 4


@pytest.mark.parametrize(
    ("settings", "starts", "renewal"),
    [
        ({}, [0, 0.5, 1, 1.5], 2),
        ({"step": 0.25}, np.arange(0, 1.51, 0.25), 4),
        ({"step": 0.35}, np.arange(0, 1.51, 0.25), 4),
        ({"step": 1.0}, [0, 1], 2),
        ({"step": 3.0}, [0], 2),
    ],
)
def test_frames_of_any_size_and_rate_are_looked_at(settings, starts, renewal):
    """2.4 seconds at 30 a second; windows of 4 frames in one second."""
    frames = from_arrays((np.full((41, 57, 3), (200, 20, 30), np.uint8) for _ in range(72)), 30)
    windows, after = look(ColourModel(), frames, "", window=1.0, **settings)
    windows = list(windows)
    assert after == renewal
    np.testing.assert_allclose([w.start for w in windows], starts)
    np.testing.assert_allclose([w.end - w.start for w in windows], 1)
