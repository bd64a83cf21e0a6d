"""VQA, hard negatives and WorldPrediction from files of the official form."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from jepa_jax.evaluation import benchmark
from jepa_jax.evaluation.benchmark import Item
from jepa_jax.evaluation.benchmarks import hard_negatives
from jepa_jax.evaluation.benchmarks.tallyqa import NUMBERS
from jepa_jax.evaluation.vqa import score_yes_no, yes_no_metrics
from jepa_jax.flags import UsageError
from tests.evaluation.fake import FIXTURES, FRAMES, World, ask, embed_text, fill, key, read, watching


def test_gqa_by_hand(tmp_path):
    found = read("gqa", "gqa")
    assert [texts for (texts,) in found.classes] == ["parrot", "red", "yes"]
    metrics = ask(found, ["red", "yes", "parrot", "red", "yes"], tmp_path).metrics
    assert metrics == {"accuracy": {"value": 0.8, "chance": 0.6, "n": 5}}


def test_an_image_is_loaded_once_for_all_its_questions(tmp_path):
    found = read("gqa", "gqa")
    loaded = []

    class Once:
        embed_text = staticmethod(embed_text)

        def encode_video(self, frames):
            return frames[:, :, 0, 0]

        def predict(self, visual, queries):
            assert len(visual) == len(queries) <= 2
            return embed_text(queries)

    def load(media, start, end):
        loaded.append(media.stem)
        return np.zeros((1, 2, 3, 3), np.uint8)

    benchmark.run(found, Once(), watching(fill(tmp_path, found.items), load))
    assert loaded == ["n31", "n37", "n41"]


def test_tallyqa_by_hand(tmp_path):
    found = read("tallyqa", "tallyqa")
    # In words or in digits; the complex one wrong.
    outcome = ask(found, ["three", "1", "12", "4"], tmp_path)
    assert outcome.metrics == {
        "simple": {"value": pytest.approx(2 / 3), "chance": pytest.approx(2 / 3), "n": 3},
        "complex": {"value": 0.0, "chance": 1.0, "n": 1},
        "accuracy": {"value": 0.5, "chance": 0.5, "n": 4},
    }
    assert outcome.missing == {"row 4, question 5": "the answer, 16, is not among 0 to 15"}
    assert NUMBERS[15] == ("15", "fifteen")
    assert len(NUMBERS) == 16


def test_accuracy_is_the_mean_of_the_two_kinds_by_their_number(tmp_path):
    metrics = ask(read("tallyqa", "tallyqa"), ["3", "0", "7", "7"], tmp_path).metrics
    parts = [(metrics[kind]["value"], metrics[kind]["n"]) for kind in ("simple", "complex")]
    assert metrics["accuracy"]["value"] == pytest.approx(sum(v * n for v, n in parts) / 4)


def test_yes_no_is_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    said, truth = rng.random(83) < 0.4, rng.random(83) < 0.6
    metrics = yes_no_metrics(said, truth)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average="binary")
    expected = {
        "accuracy": accuracy_score(truth, said),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    assert {name: metric["value"] for name, metric in metrics.items()} == pytest.approx(expected)


def test_one_who_never_says_yes_has_no_precision():
    metrics = yes_no_metrics(np.zeros(4, bool), np.array([True, False, False, False]))
    assert [metrics[name]["value"] for name in ("accuracy", "precision", "recall", "f1")] == [0.75, 0, 0, 0]


def test_pope_has_three_settings_and_their_mean(tmp_path):
    found = read("pope", "pope")
    # One wrong "yes" in the second setting, and one missed in the third.
    said = ["yes", "no", "yes", "yes", "yes", "yes", "yes", "no", "no"]
    metrics = ask(found, said, tmp_path).metrics
    assert metrics["random/f1"]["value"] == 1
    assert metrics["popular/precision"]["value"] == pytest.approx(2 / 3)
    assert metrics["popular/recall"]["value"] == 1
    assert metrics["adversarial/recall"]["value"] == 0.5
    assert metrics["accuracy"] == {"value": pytest.approx(7 / 9), "chance": 0.5, "n": 9}


def test_popev2_reads_pairs_of_images_from_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [
        {
            "example_id": f"e{number}",
            "image_id": number,
            "target_object": "canoe",
            "question": "Is there a canoe in the image?",
            "normal_image": {"bytes": f"with {number}".encode(), "path": None},
            "counterfactual_image": {"bytes": f"without {number}".encode(), "path": None},
            "normal_label": "Yes",
            "counterfactual_label": "no",
        }
        for number in range(2)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    found = read("popev2", tmp_path)
    metrics = ask(found, ["yes", "no", "yes", "yes"], tmp_path).metrics
    assert metrics["accuracy"] == {"value": 0.75, "chance": 0.5, "n": 4}
    assert metrics["recall"]["value"] == 1
    # The images are in the file: no folder is needed.
    model = World({key(item): "yes" for item in found.items})
    outcome = benchmark.run(found, model, watching(None, model.load_frames))
    assert outcome.metrics["accuracy"]["value"] == 0.5


def test_a_triplet_is_right_when_the_positives_are_nearest_to_one_another():
    def at(degrees):
        return np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]])

    cases = {(0, 20, 50): True, (0, 20, 39): False, (0, 20, -19): False, (0, 20, 10): False}
    for angles, right in cases.items():
        assert hard_negatives.is_right(*map(at, angles)).tolist() == [right], angles
    # As near is not nearer, and what rounding makes nearer neither.
    assert not hard_negatives.is_right(at(0), at(0), at(0))[0]
    assert not hard_negatives.is_right(at(0), at(0), at(0) * (1 - 1e-7))[0]


def test_yes_and_no_as_near_but_for_rounding():
    one = embed_text(["any"])[0]

    class Collapsed:
        @staticmethod
        def embed_text(texts):
            return np.stack([one + 1e-8 * place for place, _ in enumerate(texts)])

    items = [Item(name=str(i), answer=("", i % 2 == 0)) for i in range(4)]
    predicted = np.stack([one, one, -one, -one])
    assert score_yes_no(items, predicted, Collapsed())["accuracy"]["value"] == 0


class TextOnly:
    """Knows texts with the same words as one; nothing else."""

    @staticmethod
    def embed_text(texts):
        return embed_text([" ".join(sorted(text.lower().replace(".", "").split())) for text in texts])


def test_sugarcrepe_has_five_parts():
    found = read("sugarcrepe_pp", "sugarcrepe")
    outcome = benchmark.run(found, TextOnly())
    parts = ["swap_obj", "swap_att", "replace_obj", "replace_att", "replace_rel"]
    assert list(outcome.metrics) == [*parts, "accuracy"]
    assert outcome.metrics["accuracy"]["n"] == 9
    # A bag of words takes a swap for the same: always wrong where only the order differs.
    assert outcome.metrics["swap_obj"]["value"] == 0
    assert outcome.metrics["accuracy"]["chance"] == pytest.approx(1 / 3)


def test_visla_takes_the_near_sentence_for_the_negative():
    found = read("visla", "visla")
    assert [item.answer[1] for item in found.items] == [
        (
            'A sign that says "Inn" hangs low.',
            'Low hangs a sign with the word "Inn".',
            'A sign that says "Inn" lies low.',
        ),
        ("The drum holds the hen.", "The hen is in the drum.", "The hen is beside the drum."),
        ("The fan is above the crib.", "The crib is below the fan.", "The fan is below the crib."),
    ]
    metrics = benchmark.run(found, TextOnly()).metrics
    assert metrics["VSR_spatial"]["n"] == 2


class States:
    """Sees a clip by the colours of its first and last frames."""

    def __init__(self):
        self.clips = []

    @staticmethod
    def load_frames(media, start, end):
        sample, what = media.stem.split("_")
        colour = {"first": 10, "last": 50, "a": 30, "b": 31, "c": 32, "d": 33}[what]
        length = 1 if media.suffix == ".png" else FRAMES
        frames = np.full((length, 2, 2, 3), colour + 100 * (sample == "w2"), np.uint8)
        # The right action leads from the first state to the last.
        if (sample, what) in {("w1", "c"), ("w2", "b")}:
            frames[: length // 2], frames[length // 2 :] = 10, 50
            frames += 100 * (sample == "w2")
        return frames

    def encode_video(self, frames):
        self.clips += list(frames[:, :, 0, 0, 0])
        return frames[:, :, 0, 0, :1]

    def predict(self, visual, queries):
        return embed_text([f"{int(v[0, 0])} to {int(v[-1, 0])}" for v in visual])


def test_world_prediction_joins_the_states_and_takes_the_nearest_action(tmp_path):
    found = read("world_prediction_wm", "world")
    model = States()
    outcome = benchmark.run(found, model, watching(fill(tmp_path, found.items), model.load_frames))
    # The second sample's answer is another than the clip that leads there.
    assert outcome.metrics == {"accuracy": {"value": 0.5, "chance": 0.25, "n": 2}}
    assert outcome.missing == {"w3": "its answer, 4, is none of 2 candidates"}
    assert [10, 10, 10, 50, 50, 50] in [clip.tolist() for clip in model.clips]


def test_a_candidate_as_near_as_the_right_one_counts_wherever_it_stands():
    """In a product of matrices of the paper's width, cosines of equal vectors differ by their row."""
    vectors = np.random.default_rng(0).normal(size=(10, 1536)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = read("world_prediction_wm", "world").score
    for count in (3, 7, 11):
        candidates = [Item(name=f"candidate {i}", answer=None) for i in range(count)]
        items = [item for n in range(count) for item in (Item(name=f"states {n}", answer=n), *candidates)]
        for one in vectors:
            assert score(items, np.tile(one, (len(items), 1)), None)["accuracy"]["value"] == 0


def test_a_sample_with_a_clip_missing_is_left_out_whole(tmp_path):
    found = read("world_prediction_wm", "world")
    media = fill(tmp_path, [item for item in found.items if item.name != "w2, candidate 3"])
    model = States()
    outcome = benchmark.run(found, model, watching(media, model.load_frames))
    assert outcome.metrics["accuracy"]["n"] == 1
    assert outcome.missing["w2, candidate 3"] == "no such media file"
    assert outcome.missing["w2"] == "another part of sample w2 is missing"
    # Nor is anything of it decoded.
    assert len(model.clips) == 5


def test_labels_that_are_neither_yes_nor_no_are_refused(tmp_path):
    for setting in ("random", "popular", "adversarial"):
        text = (FIXTURES / "pope" / f"coco_pope_{setting}.json").read_text()
        (tmp_path / f"coco_pope_{setting}.json").write_text(text.replace('"no"', '"maybe"'))
    with pytest.raises(UsageError, match=r"coco_pope_random.json is not of the form .* at 1.label"):
        read("pope", tmp_path)
