"""Joined streams, and that selective decoding is measured on them as it should be."""

import numpy as np
import pytest

from jepa_jax.evaluation import joined, selective_streams
from jepa_jax.evaluation.clips import Clip
from jepa_jax.evaluation.selective import Point
from jepa_jax.flags import UsageError
from jepa_jax.streaming.texts import NearestText

CLIPS, FRAMES = 60, 4


def numbered_clips() -> tuple[np.ndarray, list[Clip]]:
    """Clip i shows number i in each of its frames, and the frame's own in the corner."""
    frames = np.zeros((CLIPS, FRAMES, 5, 7, 3), np.uint8)
    frames[:] = np.arange(CLIPS)[:, None, None, None, None]
    frames[:, :, 0, 0] = np.arange(FRAMES)[None, :, None]
    words = ["one", "two", "three", "five", "seven", "eleven"]
    names = [f"{words[i % 6]} {words[i // 6 % 6]} {words[i // 36]} again" for i in range(CLIPS)]
    return frames, [Clip("", "", "", [("describe", "ask", name)]) for name in names]


def test_each_clip_plays_once_from_its_first_frame_for_as_long_as_it_is_annotated():
    frames, clips = numbered_clips()
    streams = joined.join(frames, clips, period=2, longest=3, per_stream=17, seed=0)
    seen, counts = [], []
    for stream in streams:
        assert stream.annotations[0].start == 0
        assert stream.annotations[-1].end == stream.seconds
        for annotation in stream.annotations:
            first, end = round(annotation.start * FRAMES), round(annotation.end * FRAMES)
            shown = stream.frames[first:end]
            (number,) = np.unique(shown[:, 1, 1])
            assert clips[number].pair("describe")[1] == annotation.text
            np.testing.assert_array_equal(shown[:, 0, 0, 0], np.arange(end - first) % FRAMES)
            seen.append(int(number))
            counts.append(end - first)
        ends = [a.end for a in stream.annotations[:-1]]
        assert ends == [a.start for a in stream.annotations[1:]]
    assert sorted(seen) == list(range(CLIPS))
    assert set(counts) == {4, 6, 8, 10, 12}


class Sees:
    """Knows which number is shown; of a window over two clips it sees some of both."""

    class config:
        class data:
            frames = FRAMES

        class eval:
            clips = CLIPS

        class model:
            class x_encoder:
                tubelet_size = 2

        seed = 0

    places = np.random.default_rng(0).standard_normal((CLIPS, 31))

    def embed_video(self, frames, query):
        means = self.places[frames[:, :, 1, 1, 0]].mean(axis=1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def embed_text(self, texts):
        names = [clip.pair("describe")[1] for clip in numbered_clips()[1]]
        rows = self.places[[names.index(text) for text in texts]]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selective_streams, "load_clips", lambda *_: numbered_clips())
        return selective_streams.evaluate(Sees(), NearestText)


def test_clips_without_captions_are_refused_in_one_sentence(monkeypatch):
    frames, clips = numbered_clips()
    others = [Clip("", "", "", [("", "", clip.pair("describe")[1])]) for clip in clips]
    monkeypatch.setattr(selective_streams, "load_clips", lambda *_: (frames, others))
    with pytest.raises(UsageError, match="those of 'mine' have no pair of kind \"describe\""):
        selective_streams.evaluate(Sees(), NearestText, ("mine", "mine"))


def test_a_model_that_sees_all_saves_nearly_all_decodes(results):
    metrics, curves, places = results
    n = metrics["unseen_pairs/uniform_cider"]["n"]
    assert n == CLIPS
    for name in ("online", "offline"):
        assert places[name] is not None
        assert metrics[f"unseen_pairs/{name}_times_fewer_decodes"]["value"] > 2.85
        cider = metrics[f"unseen_pairs/{name}_cider"]
        assert cider["value"] >= metrics["unseen_pairs/uniform_cider"]["value"]
        assert cider["chance"] < cider["value"] / 2
    # Decoding every window cannot be beaten by much.
    assert max(p.cider for p in curves["online"]) <= 1.01 * curves["uniform"][-1].cider


def test_the_texts_of_one_stream_alone_are_nobody_else_s(monkeypatch):
    frames, clips = numbered_clips()
    monkeypatch.setattr(selective_streams, "load_clips", lambda *_: (frames[:9], clips[:9]))
    metrics, _, _ = selective_streams.evaluate(Sees(), NearestText)
    assert metrics["unseen_pairs/uniform_cider"]["value"] > 0
    assert metrics["unseen_pairs/uniform_cider"]["chance"] is None


def test_uniform_decoding_costs_its_rate(results):
    for rate, point in zip(selective_streams.UNIFORM_RATES, results[1]["uniform"], strict=True):
        assert point.decodes_per_second == pytest.approx(rate, rel=0.1)


def test_the_picture_is_drawn(results, tmp_path):
    selective_streams.plot(tmp_path / "selective.png", *results[1:])
    assert (tmp_path / "selective.png").stat().st_size > 10_000


def test_the_cheapest_setting_that_reaches_the_goal():
    curve = [Point(0.5, 3.0), Point(0.1, 1.0), Point(0.3, 2.0), Point(0.2, 2.5)]
    assert selective_streams.cheapest(curve, 2.0) == 3
    assert selective_streams.cheapest(curve, 2.9) == 0
    assert selective_streams.cheapest(curve, 3.1) is None
