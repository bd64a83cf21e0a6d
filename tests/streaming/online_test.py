"""Selective decoding as it comes, on embeddings whose changes are known."""

import pickle

import numpy as np
import pytest

from jepa_jax.streaming.online import OnlineConfig, OnlineDecoder, unit, variance
from jepa_jax.streaming.windows import Embedded

E, SIZE, STEP = 11, 4, 2


def windows_of(
    lengths: list[int], seed: int = 0, noise: float = 0.0, size: int = SIZE, step: int = STEP
) -> tuple[list[Embedded], np.ndarray]:
    """Windows of 4 frames every 2 over scenes of so many frames; a window's embedding is the mean of its
    frames', each its scene's random unit vector. And the scenes' vectors."""
    rng = np.random.default_rng(seed)
    scenes = unit(rng.standard_normal((len(lengths), E)))
    frames = np.repeat(scenes, lengths, axis=0)
    found = []
    for start in range(0, len(frames) - size + 1, step):
        mean = frames[start : start + size].mean(axis=0) + noise * rng.standard_normal(E) / np.sqrt(E)
        found.append(Embedded(start, start + size, unit(mean), 0.0))
    return found, scenes


def run(windows: list[Embedded], **settings):
    decoder = OnlineDecoder(OnlineConfig(**settings), renewal=SIZE // STEP)
    decodes = [decoder(window) for window in windows] + [decoder.finish()]
    return [decode for decode in decodes if decode is not None]


def test_variance_by_hand():
    assert variance(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(0.5)
    assert variance(np.array([[0.6, 0.8]] * 3)) == pytest.approx(0)


@pytest.mark.parametrize("variance_windows", [2, 3])
def test_one_decode_a_scene_of_that_scene_alone(variance_windows):
    lengths = [20, 4, 12, 8, 30] if variance_windows == 2 else [20, 14, 12, 18, 30]
    windows, scenes = windows_of(lengths)
    decodes = run(windows, variance_windows=variance_windows)
    np.testing.assert_allclose([d.embedding for d in decodes], scenes, atol=1e-6)
    starts = np.cumsum([0, *lengths[:-1]])
    assert np.abs(np.array([d.start for d in decodes]) - starts).max() <= STEP
    ends = np.cumsum(lengths)
    assert all(s <= d.middle <= e for s, d, e in zip(starts, decodes, ends, strict=True))


@pytest.mark.parametrize(("size", "step"), [(16, 16), (16, 8), (16, 5), (16, 1), (4, 4), (4, 1), (4, 7)])
def test_a_cut_anywhere_in_a_step_gives_one_decode_of_the_new_scene(size, step):
    renewal = max(-(-size // step), 2)
    for offset in range(step):
        lengths = [8 * max(size, step) + offset] + [8 * max(size, step)] * 3
        windows, scenes = windows_of(lengths, offset, size=size, step=step)
        decoder = OnlineDecoder(OnlineConfig(threshold=0.03), renewal)
        found = [decode for window in windows if (decode := decoder(window)) is not None]
        assert len(found) == len(scenes)
        assert all(d.embedding @ scene > 0.9 for d, scene in zip(found, scenes, strict=True))


def test_a_scene_that_stays_is_decoded_once():
    assert len(run(windows_of([400])[0])) == 1


def test_a_higher_threshold_decodes_less():
    windows, _ = windows_of([10] * 40, noise=0.3)
    counts = [len(run(windows, threshold=t)) for t in (0.01, 0.05, 0.2, 0.6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_noise_about_the_threshold_is_one_change():
    """The variance of pairs swings between 0.8 and 1.2 of the threshold after the one true change."""
    angles = np.concatenate([np.zeros(9), 1.5 + np.cumsum([0.0, *[0.4, 0.49] * 30])])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    windows = [Embedded(i, i + 2, row, 0.0) for i, row in enumerate(rows)]
    threshold = (variance(rows[10:12]) + variance(rows[11:13])) / 2
    assert len(run(windows, threshold=threshold, release=0.5)) == 2
    assert len(run(windows, threshold=threshold, release=1.0)) > 20


def test_smoothing_decodes_the_mean_of_windows():
    windows, _ = windows_of([40], noise=0.5)
    (decode,) = run(windows, smoothing=3, threshold=0.9)
    expected = unit(np.mean([w.embedding for w in windows[:3]], axis=0))
    np.testing.assert_allclose(decode.embedding, expected, atol=1e-12)
    assert (decode.start, decode.middle) == (0, (windows[0].start + windows[2].end) / 2)


def test_a_change_at_the_very_end_is_not_lost():
    windows, _ = windows_of([20, 2])
    assert len(run(windows)) == 2


def test_the_state_does_not_grow():
    windows, _ = windows_of([10, 26] * 30, noise=0.1)
    decoder = OnlineDecoder(OnlineConfig(variance_windows=5, smoothing=3), renewal=2)
    sizes = []
    for _ in range(9):
        for window in windows:
            decoder(window)
        sizes.append(len(pickle.dumps(decoder)))
    assert max(sizes[1:]) - min(sizes[1:]) <= 32  # numbers are not all of one length in a pickle


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0 must lie between 0 and 1"),
        ({"release": 0.0}, "release=0.0 must be above 0"),
        ({"variance_windows": 1}, "takes at least 2"),
        ({"smoothing": 0}, "smoothing=0 must be at least 1"),
        ({"smoothing": 1.5}, "smoothing=1.5 must be a whole number"),
        ({"variance_windows": 2.5}, "variance_windows=2.5 must be a whole number"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OnlineConfig(**settings)
