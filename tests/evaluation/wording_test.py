"""Robustness to wording: hand-worked spreads, and benchmarks asked in several wordings."""

import json

import numpy as np
import pytest

from jepa_jax.config import EvalConfig
from jepa_jax.data.emoji_motion import texts
from jepa_jax.data.emoji_motion.scene import MOTIONS
from jepa_jax.data.emoji_motion.things import THINGS
from jepa_jax.evaluation import benchmark
from jepa_jax.evaluation.benchmark import with_query
from jepa_jax.evaluation.clips import Clip
from jepa_jax.evaluation.emoji_motion import ON_REQUEST
from jepa_jax.evaluation.vqa import accuracy_metric
from jepa_jax.evaluation.wording import mean_pairwise_cosine, read_wordings, reworded, spread_metrics
from jepa_jax.flags import UsageError
from tests.evaluation.fake import World, ask, embed_text, fill, key, read, watching


def test_cosine_is_the_mean_over_all_pairs():
    rng = np.random.default_rng(4)
    answers = rng.normal(size=(5, 7, 11))
    answers /= np.linalg.norm(answers, axis=-1, keepdims=True)
    pairs = [answers[a, b] @ answers[c, b] for b in range(7) for a in range(5) for c in range(a)]
    assert mean_pairwise_cosine(answers) == pytest.approx(np.mean(pairs))
    assert mean_pairwise_cosine(answers[:1].repeat(3, axis=0)) == pytest.approx(1)


def test_spread_by_hand():
    """Two wordings, three clips: the second changes the answer to the last clip, from right to wrong."""
    east, north = np.eye(2)
    answers = np.array([[east, north, east], [east, north, north]])
    metrics = spread_metrics(answers, np.eye(2), np.array([0, 0, 0]))
    values = {name: metric["value"] for name, metric in metrics.items()}
    assert values == pytest.approx(
        {"cosine": 2 / 3, "same_top_1": 2 / 3, "worst_wording": 1 / 3, "best_wording": 2 / 3}
    )
    assert metrics["same_top_1"]["chance"] == 0.5
    assert metrics["best_wording"]["chance"] == 0.5


def test_chance_of_questions_is_the_commonest_answer_as_without_wordings():
    answers, labels = np.eye(3)[None, [0, 0, 0, 1]].repeat(2, axis=0), np.array([0, 0, 0, 1])
    metrics = spread_metrics(answers, np.eye(3), labels, is_vqa=True)
    of_the_task = accuracy_metric(np.ones(4, bool), labels)
    assert metrics["worst_wording"] == metrics["best_wording"] == of_the_task
    assert metrics["same_top_1"]["chance"] == pytest.approx(1 / 3)


def test_one_embedding_for_everything_has_no_nearest_class():
    everything = np.ones((3, 4, 1))
    metrics = spread_metrics(everything, np.ones((5, 1)), np.zeros(4, int))
    assert [metrics[name]["value"] for name in ("same_top_1", "worst_wording", "best_wording")] == [0] * 3


def test_equal_embeddings_have_no_nearest_wherever_they_stand():
    """In a product of matrices of the paper's width, cosines of equal vectors differ by their column."""
    vectors = np.random.default_rng(0).normal(size=(40, 1536)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for one in vectors:
        for classes in (5, 9):
            same = np.tile(one, (classes, 1))
            metrics = spread_metrics(np.tile(one, (4, 37, 1)), same, np.arange(37) % classes)
            assert metrics["same_top_1"]["value"] == metrics["best_wording"]["value"] == 0


def test_a_benchmark_is_asked_in_every_wording(tmp_path):
    found = reworded(read("coin_tr", "coin"), ["What is this?", "Which task is it?", "Name the task."])
    assert [item.query for item in found.items[:3]] == [
        "What is this?",
        "Which task is it?",
        "Name the task.",
    ]
    right = ["wax skis at home"] * 3 + ["repot cactus"] * 3
    right[4] = "wax skis at home"
    metrics = ask(found, right, tmp_path).metrics
    values = {name: metric["value"] for name, metric in metrics.items()}
    assert values["same_top_1"] == 0.5
    assert values["worst_wording"] == 0.5
    assert values["best_wording"] == 1
    assert metrics["cosine"]["n"] == 2


def test_a_clip_that_is_missing_is_left_out_in_all_wordings(tmp_path):
    found = read("coin_tr", "coin")
    asked = reworded(found, ["What is this?", "Name the task."])
    model = World({key(item): "wax skis at home" for item in asked.items})
    media = fill(tmp_path, found.items[:1])
    outcome = benchmark.run(asked, model, watching(media, model.load_frames))
    assert outcome.metrics["best_wording"]["n"] == 1
    assert outcome.missing == {"coinVideo_2": "no such media file"}


def test_questions_that_items_bring_have_wordings_of_their_own(tmp_path):
    wordings = {
        "Is the sky clear?": ["Is the sky clear?", "No clouds in the sky?"],
        "Is there fog?": ["Is there fog?", "Is it foggy?"],
    }
    found = reworded(read("gqa", "gqa"), wordings)
    outcome = ask(found, ["yes"] * 4, tmp_path)
    assert outcome.metrics["worst_wording"] == {"value": 1.0, "chance": 1.0, "n": 2}  # both are "yes"
    assert outcome.missing == dict.fromkeys(("201", "203", "204"), "no wordings of its query")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["one"], "at least two"),
        (["same", "same"], "at least two"),
        ([], "at least two"),
        ({}, "at least two"),
        ({"a": ["b", "c"], "d": ["e", "f", "g"]}, "as many"),
        ("text", "not of the form expected"),
        ([1, 2], "not of the form expected"),
    ],
)
def test_other_wordings_are_refused(content, message, tmp_path):
    file = tmp_path / "wordings.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        read_wordings(file)


def test_wordings_are_read(tmp_path):
    for content in (["a", "b"], {"q": ["q", "r"], "s": ["s", "t"]}):
        (tmp_path / "w.json").write_text(json.dumps(content))
        assert read_wordings(tmp_path / "w.json") == content
    with pytest.raises(UsageError, match="no such file"):
        read_wordings(tmp_path / "none.json")


def test_what_has_no_classes_or_another_form_of_query_is_told():
    with pytest.raises(UsageError, match="compares classes"):
        reworded(read("msr_vtt", "msr_vtt"), ["a", "b"])
    with pytest.raises(UsageError, match="bring their own queries"):
        reworded(read("gqa", "gqa"), ["a", "b"])


def test_another_query_replaces_the_benchmarks_own():
    assert {item.query for item in with_query(read("ssv2", "ssv2"), "").items} == {""}
    for task, fixture in (("gqa", "gqa"), ("visla", "visla")):
        with pytest.raises(UsageError, match="questions of its own, or none"):
            with_query(read(task, fixture), "")


class Forgetful:
    """Knows every clip, but the last wording of "what is it?" makes it name the next clip's thing."""

    embed_text = staticmethod(embed_text)

    def __init__(self, clips):
        self._clips = clips
        self._kinds = {query: kind for kind, queries in texts.QUERIES.items() for query in queries}

    def answer(self, queries):
        answers = []
        for place, query in enumerate(queries):
            clip, kind = self._clips[place], self._kinds[query]
            if query == texts.QUERIES["what_is_it"][-1]:
                clip = self._clips[(place + 1) % len(self._clips)]
            known = {
                "describe": f"{clip.thing} {clip.motion}",
                "what_is_it": texts.name_phrasings(clip.thing)[0],
                "what_does_it_do": clip.motion,
                "how_many": texts.count_phrasings(2 if clip.second else 1)[0],
            }
            answers.append(known[kind])
        return embed_text(answers)


def test_the_default_data_is_asked_in_its_own_phrasings():
    names = [thing.name for thing in THINGS[:4]]
    clips = [Clip(name, motion, second, []) for name, motion, second in zip(names, MOTIONS, ["", "x"] * 2)]
    metrics = ON_REQUEST["wording"](Forgetful(clips), clips, EvalConfig())
    values = {name: metric["value"] for name, metric in metrics.items()}
    for kind in ("how_many", "what_does_it_do"):
        assert values[f"{kind}_cosine"] == pytest.approx(1)
        assert values[f"{kind}_same_top_1"] == values[f"{kind}_worst_wording"] == 1
    assert values["describe_cosine"] == pytest.approx(1)
    assert values["what_is_it_best_wording"] == 1
    assert values["what_is_it_worst_wording"] == values["what_is_it_same_top_1"] == 0
    assert values["what_is_it_cosine"] < 0.8
    # Clips without a named motion are not asked for one.
    still = [Clip(clip.thing, "", clip.second, []) for clip in clips]
    assert not [name for name in ON_REQUEST["wording"](Forgetful(still), still, None) if "does" in name]
