"""Metrics by hand-worked cases; tasks by subjects whose score is known beforehand."""

import dataclasses
import zlib

import numpy as np
import pytest
from etils import epath
from matplotlib.text import Text

from jepa_jax import evaluate, flags
from jepa_jax.config import DatasetConfig, EvalConfig
from jepa_jax.data.emoji_motion import texts
from jepa_jax.data.emoji_motion.scene import sample_scene
from jepa_jax.data.emoji_motion.splits import unseen_pairs
from jepa_jax.data.records import BadRecordError, Pair
from jepa_jax.evaluation import pairs, pictures
from jepa_jax.evaluation.captioning import caption_metrics
from jepa_jax.evaluation.classification import class_embeddings, top_k_metrics
from jepa_jax.evaluation.clips import Clip, load_clips, shuffle_in_time
from jepa_jax.evaluation.emoji_motion import TASKS, TEXT_TASKS, distinct_captions
from jepa_jax.evaluation.pictures import plot_retrieval
from jepa_jax.evaluation.retrieval import ranks, retrieval_metrics
from tests.records import Records, record
from tests.tiny_config import config as tiny


def test_ranks_by_hand():
    gallery = np.eye(3)
    queries = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.3, 0.4]])
    match = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0]], bool)
    assert ranks(queries, gallery, match).tolist() == [1, 3, 2]


def test_a_model_with_one_answer_for_all_ranks_last():
    same = np.ones((5, 1))
    assert ranks(same, same, np.eye(5, dtype=bool)).tolist() == [5] * 5


def test_retrieval_metrics_by_hand():
    """Text 0 finds video 0 first, text 1 finds it too and its own second."""
    video = np.array([[1.0, 0.0], [0.6, 0.8]])
    text = np.array([[1.0, 0.0], [0.8, 0.6 - 1e-3]])
    metrics = retrieval_metrics(video, text)
    assert metrics["text_to_video_recall_at_1"] == {"value": 1.0, "chance": 0.5, "n": 2}
    text[1] = [0.95, 0.1]
    metrics = retrieval_metrics(video, text)
    assert metrics["text_to_video_recall_at_1"]["value"] == 0.5
    assert metrics["text_to_video_recall_at_5"] == {"value": 1.0, "chance": 1.0, "n": 2}
    assert metrics["text_to_video_median_rank"] == {"value": 1.5, "chance": 1.5, "n": 2}


def test_a_class_is_the_mean_of_its_phrasings():
    vectors = {"a": [1, 0], "b": [0, 1], "c": [-1, 0]}
    classes = class_embeddings(
        lambda names: np.array([vectors[n] for n in names], float), [["a", "b"], ["c"]]
    )
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5], [-1, 0]])


def test_top_k_by_hand():
    predicted = np.array([[1.0, 0.9, 0.0], [1.0, 0.9, 0.0]])
    metrics = top_k_metrics(predicted, np.eye(3), np.array([0, 1]), ks=(1, 2))
    assert [metrics[k]["value"] for k in ("top_1", "top_2")] == [0.5, 1.0]
    assert metrics["top_2"]["chance"] == pytest.approx(2 / 3)


def test_shuffling_keeps_each_clips_frames():
    frames = np.arange(6 * 8).reshape(6, 8, 1, 1, 1).astype(np.uint8)
    shuffled = shuffle_in_time(frames)
    assert (shuffled != frames).any(axis=1).all()
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), frames)
    np.testing.assert_array_equal(shuffle_in_time(frames), shuffled)
    assert (shuffle_in_time(frames, seed=1) != shuffled).any()
    # Not one order for all.
    assert len({tuple(np.argsort(clip.ravel())) for clip in shuffled}) > 1


@pytest.fixture(scope="module")
def clips():
    """Two clips of every unseen pair, without their pixels."""
    found = []
    for i, pair in enumerate(unseen_pairs() * 2):
        rng = np.random.default_rng(i)
        scene = sample_scene(rng, *pair)
        found.append(Clip(scene.thing, scene.motion, scene.second, texts.pairs(scene, rng)))
    return found


class Oracle:
    """Answers every question with the words of the right answer; `wrong` shifts it by one clip."""

    def __init__(self, clips, wrong: bool = False):
        self._clips = clips[1:] + clips[:1] if wrong else clips
        self._kinds = [{q: k for k, q, _ in clip.pairs} for clip in clips]

    @staticmethod
    def embed_text(strings):
        """A bag of words: [B, 64] unit vectors."""
        rows = [
            sum(
                np.random.default_rng(zlib.crc32(word.encode())).normal(size=64)
                for word in string.replace(",", "").split()
            )
            for string in strings
        ]
        return np.stack([row / np.linalg.norm(row) for row in rows])

    def answer(self, queries, index=slice(None)):
        places = np.arange(len(self._clips))[index]
        answers = []
        for query, i in zip(queries, places, strict=True):
            kind = self._kinds[i][query]
            same = [t for k, q, t in self._clips[i].pairs if k == kind and q == query]
            answers.append(same[0] if same else self._clips[i].pair(kind)[1])
        return self.embed_text(answers)


def test_one_who_knows_scores_full_and_one_who_mixes_clips_up_does_not(clips):
    config = EvalConfig()
    right, wrong = Oracle(clips), Oracle(clips, wrong=True)
    for task, measure in TASKS.items():
        for name, metric in measure(right, clips, config).items():
            if "rank" in name:
                assert metric["value"] == 1, (task, name)
            else:
                assert metric["value"] > 0.97, (task, name, metric)
    assert TASKS["retrieval"](wrong, clips, config)["text_to_video_recall_at_1"]["value"] < 0.1
    assert TASKS["what_is_it"](wrong, clips, config)["top_1"]["value"] < 0.1
    assert TASKS["what_does_it_do"](wrong, clips, config)["top_1"]["value"] < 0.3


def test_chance_of_closed_questions_is_the_commonest_answer(clips):
    metrics = TASKS["vqa"](Oracle(clips), clips, EvalConfig())
    alone = np.mean([not clip.second for clip in clips])
    assert metrics["how_many"]["chance"] == pytest.approx(max(alone, 1 - alone))
    assert metrics["is_present"]["chance"] == 0.5
    assert metrics["accuracy"]["n"] == 3 * len(clips)


def test_retrieval_is_over_distinct_captions(clips):
    index = distinct_captions(clips, 1000)
    shown = [(clips[i].thing, clips[i].motion, clips[i].second) for i in index]
    assert len(set(shown)) == len(shown) == len({(c.thing, c.motion, c.second) for c in clips})
    assert len(distinct_captions(clips, 10)) == 10


def test_retrieval_of_any_data_is_over_distinct_answers():
    answers = ["red", "green", "red", "blue"]
    found = [
        Clip("", "", "", [("colour", f"which? {i}", answer), ("x", "?", "y")])
        for i, answer in enumerate(answers)
    ]
    assert pairs.distinct_answers(found, 9) == (
        [0, 1, 3],
        [("which? 0", "red"), ("which? 1", "green"), ("which? 3", "blue")],
    )
    assert pairs.distinct_answers(found, 2)[0] == [0, 1]
    for wrong, value in ((False, 1.0), (True, 0.0)):
        metrics = pairs.retrieval(Oracle(found, wrong=wrong), found, EvalConfig())
        assert metrics["text_to_video_recall_at_1"] == {"value": value, "chance": 1 / 3, "n": 3}


def test_only_the_default_data_s_clips_have_its_tasks(clips):
    assert evaluate.tasks_of(clips) is evaluate.OWN_TASKS
    assert list(evaluate.tasks_of([Clip("", "", "", clips[0].pairs)])) == ["retrieval"]
    # Fields of the same names that mean something else.
    first = clips[0]
    assert evaluate.tasks_of([Clip("gizmo", "", "", first.pairs)]) is pairs.TASKS
    assert evaluate.tasks_of([Clip(first.thing, "", "", [("", "", "a dog")])]) is pairs.TASKS
    assert evaluate.tasks_of([Clip(first.thing, "fast", "", first.pairs)]) is pairs.TASKS


def test_clips_are_spread_and_those_that_cannot_be_read_are_left_out(monkeypatch, caplog):
    dataset = DatasetConfig(path="a", query_templates=("now {query}", "x {query}"), target="longest")
    bad = BadRecordError("media missing", "clip 4")
    texts = Pair(query="what?", targets=("a", "a cat"), kind="k")
    source = Records([bad if i == 4 else record(i, texts) for i in range(9)])
    monkeypatch.setattr("jepa_jax.evaluation.clips.open_source", lambda *_: source)
    config = dataclasses.replace(tiny, eval=EvalConfig(dataset=dataset))
    frames, found = load_clips(config, "held_out", 5)
    assert frames.shape == (4, 4, 32, 32, 3)
    assert frames[:, 0, 0, 0, 0].tolist() == [0, 2, 6, 8]
    assert found == [Clip("", "", "", [("k", "now what?", "a cat")])] * 4
    assert "not evaluated on: clip 4: media missing" in caplog.text
    source = Records([bad])
    with pytest.raises(ValueError, match="no record that can be evaluated on"):
        load_clips(config, "held_out", 5)


def test_clips_without_a_named_motion_are_not_asked_for_one(clips):
    still = [Clip(c.thing, "", c.second, c.pairs) for c in clips[:3]]
    assert TASKS["what_does_it_do"](Oracle(still), still, EvalConfig()) is None


class Writer(Oracle):
    """An oracle that writes each clip's caption in the words of `say`."""

    def __init__(self, clips, say, wrong: bool = False):
        super().__init__(clips, wrong)
        self._say = say
        self._asked = []

    def answer(self, queries, index=slice(None)):
        self._asked = [self._clips[i] for i in np.arange(len(self._clips))[index]]
        return super().answer(queries, index)

    def decode(self, embeddings):
        assert len(embeddings) == len(self._asked)
        return [self._say(clip) for clip in self._asked]


def canonical(clip):
    return texts.caption_phrasings(clip.thing, clip.motion, clip.second)[0]


def test_what_is_written_is_judged_by_thing_and_motion_whatever_the_phrasing(clips):
    pytest.importorskip("pycocoevalcap")
    decode, config = TEXT_TASKS["decode"], EvalConfig()
    metrics = decode(Writer(clips, canonical), clips, config)
    for name in ("named", "named_as_nearest", "named_of_all"):
        assert metrics[name]["value"] == 1
    # What an embedding tells does not depend on what is written.
    alone = [clip for clip in clips if not clip.second]
    assert decode(Writer(alone, lambda _: "a"), alone, config)["nearest_named"]["value"] > 0.9
    assert metrics["named"]["chance"] == pytest.approx(1 / (120 * 9))
    assert metrics["cider"]["value"] > 4 > 2 > metrics["cider"]["chance"]
    mixed = lambda clip: f"here {texts.with_article(clip.thing)} {texts.motion_phrasings(clip.motion)[2]}"
    other = decode(Writer(clips, mixed), clips, config)
    assert other["named"]["value"] == 1
    assert other["cider"]["value"] < metrics["cider"]["value"]
    still = lambda clip: f"{texts.with_article(clip.thing)} stays still"
    motionless = np.mean([clips[i].motion == "stays still" for i in distinct_captions(clips, 256)])
    assert decode(Writer(clips, still), clips, config)["named_of_all"]["value"] == pytest.approx(motionless)


def test_only_clips_that_retrieval_finds_are_asked_to_be_named(clips):
    """Every clip here finds its neighbour's caption, and the caption written is right all the same."""
    pytest.importorskip("pycocoevalcap")
    found = TEXT_TASKS["decode"](Writer(clips, canonical, wrong=True), clips, EvalConfig())
    assert found["named"]["n"] < 0.1 * found["named_of_all"]["n"]
    still = [Clip(c.thing, "", c.second, c.pairs) for c in clips[:3]]
    assert TEXT_TASKS["decode"](Writer(still, canonical), still, EvalConfig()) is None


def test_cider_by_hand():
    """One reference each, equal texts: every n-gram weighs the same on both sides, and CIDEr is 10."""
    pytest.importorskip("pycocoevalcap")
    written = ["a red dog runs home", "two small cats sleep here", "one blue bus stops there"]
    metric = caption_metrics(written, [[text] for text in written])["cider"]
    assert metric["value"] == pytest.approx(10)
    assert metric["chance"] == pytest.approx(0)
    assert metric["n"] == 3


def test_captions_are_drawn_as_they_are(tmp_path):
    """Two dollars are no formula."""
    frames = np.zeros((5, 4, 8, 8, 3), np.uint8)
    file = epath.Path(tmp_path / "retrieval.png")
    plot_retrieval(file, [r"a $\frac$ of it"], np.arange(5)[None], np.array([0]), frames)
    assert len(file.read_bytes()) > 1000


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_a_caption_does_not_run_into_the_verdict(columns, tmp_path, monkeypatch):
    """Few clips make a narrow picture."""
    drawn = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, *_, **__: drawn.append(figure))
    frames = np.zeros((5, 4, 8, 8, 3), np.uint8)
    found = np.arange(columns)[None]
    plot_retrieval(
        tmp_path / "r.png", ["a cat moves down beside a hamburger " * 9], found, [columns - 1], frames
    )
    titles = [text for text in drawn[0].findobj(Text) if text.get_text().startswith(("“", "found at"))]
    drawn[0].draw_without_rendering()
    caption, verdict = (text.get_window_extent() for text in titles)
    assert caption.x1 < verdict.x0 or verdict.x1 < caption.x0


def test_results_that_cannot_be_kept_are_shown(tmp_path, monkeypatch, capsys):
    """As of a run that somebody else may read: its figures take minutes."""
    figures = dict.fromkeys(("value", "chance", "untrained", "shuffled"), 0.25) | {"n": 7}
    monkeypatch.setattr(evaluate, "run_tasks", lambda *_: {"vqa": {"validation/accuracy": figures}})
    (tmp_path / "eval").touch()  # in the way
    with pytest.raises(flags.UsageError, match="eval"):
        evaluate.evaluate(None, epath.Path(tmp_path), ["vqa"])
    assert "25.0%" in capsys.readouterr().out
