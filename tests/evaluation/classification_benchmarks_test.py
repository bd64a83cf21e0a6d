"""Action and step recognition, and anticipation, from files of the official form."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from jepa_jax.evaluation.benchmarks import coin, crosstask, epic_kitchens, ssv2
from jepa_jax.evaluation.classification import class_embeddings, class_mean_recall, top_k_metrics
from jepa_jax.flags import UsageError
from tests.evaluation.fake import FIXTURES, ask, embed_text, read

# task, fixture, the texts of the right classes in the order of the items, those left out.
CASES = [
    (
        "ssv2",
        "ssv2",
        [
            "lifting something off a table",
            "rolling something down a slope",
            "bending something until it snaps",
            "lifting something off a table",
        ],
        ["904"],
    ),
    (
        "kinetics_400",
        "kinetics",
        ["polishing boots", "whistling", "walking a goat, slowly", "whistling"],
        [],
    ),
    (
        "egoexo4d",
        "egoexo4d",
        ["Knead the dough", "Grease a tin", "Pump the tube"],
        ["uid-c, segment 0"],
    ),
    ("coin_sr", "coin", ["clean the base", "melt the wax", "scrape the ski", "fill in the soil"], []),
    ("coin_tr", "coin", ["wax skis at home", "repot cactus"], []),
    ("coin_next_step", "coin", ["melt the wax", "scrape the ski"], []),
    (
        "crosstask_sr",
        "crosstask",
        ["cut strip", "glue ends", "tie knot", "cut strip"],
        ["71002_ctVideo_002, line 2", "71002_ctVideo_003", "79999_ctVideo_004"],
    ),
    (
        "crosstask_tr",
        "crosstask",
        ["make a Paper Crown", "mend a Net", "mend a Net"],
        ["79999_ctVideo_004"],
    ),
]


@pytest.mark.parametrize(("task", "fixture", "right", "left_out"), CASES, ids=[case[0] for case in CASES])
def test_one_who_knows_is_right_and_what_is_undefined_is_listed(task, fixture, right, left_out, tmp_path):
    outcome = ask(read(task, fixture), right, tmp_path)
    assert outcome.metrics["top_1"]["value"] == 1
    assert outcome.metrics["top_1"]["n"] == len(right)
    assert sorted(outcome.missing) == sorted(left_out)


@pytest.mark.parametrize(("task", "fixture", "right", "_"), CASES, ids=[case[0] for case in CASES])
def test_top_1_is_that_of_scikit_learn(task, fixture, right, _, tmp_path):
    """Answers that are another item's: some right by luck."""
    found = read(task, fixture)
    said = right[1:] + right[:1]
    classes = class_embeddings(embed_text, found.classes)
    chosen = (embed_text(said) @ classes.T).argmax(axis=1)
    expected = accuracy_score([item.answer for item in found.items], chosen)
    assert ask(found, said, tmp_path).metrics["top_1"]["value"] == pytest.approx(expected)


def test_chance_is_one_of_all_classes(tmp_path):
    metrics = ask(read("coin_sr", "coin"), CASES[3][2], tmp_path).metrics
    # Steps of the training videos are candidates too.
    assert metrics["top_1"]["chance"] == pytest.approx(1 / 5)
    assert metrics["top_5"] == {"value": 1.0, "chance": 1.0, "n": 4}


def test_top_k_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    predicted, classes = rng.normal(size=(61, 17)), rng.normal(size=(13, 17))
    labels = np.concatenate([np.arange(13), rng.integers(13, size=48)])
    metrics = top_k_metrics(predicted, classes, labels, ks=(1, 5))
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, predicted @ classes.T, k=k)
        assert metrics[f"top_{k}"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5])
def test_class_mean_recall_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(1)
    predicted, classes = rng.normal(size=(97, 11)), rng.normal(size=(19, 11))
    # Few of some, none of others.
    labels = rng.choice(19, size=97, p=np.arange(19) / np.arange(19).sum())
    nearest = np.argsort(-(predicted @ classes.T), axis=1)[:, :k]
    hit = (nearest == labels[:, None]).any(axis=1)
    wrong = np.where(labels == labels[0], labels[1], labels[0])
    expected = balanced_accuracy_score(labels, np.where(hit, labels, wrong))
    assert class_mean_recall(predicted, classes, labels, k)["value"] == pytest.approx(expected)


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    classes = np.eye(3)
    metric = class_mean_recall(classes[[0, 0, 0, 1]], classes, np.array([0, 0, 0, 2]), k=1)
    assert metric == {"value": 0.5, "chance": pytest.approx(1 / 3), "n": 4}


EPIC = ["take kettle", "turn on kettle", "take chopping board", "slice leek"]


def test_epic_kitchens_names_actions_verbs_and_nouns(tmp_path):
    outcome = ask(read("epic_kitchens_100", "epic"), EPIC, tmp_path)
    assert outcome.metrics["action_top_1"]["value"] == 1
    # Five pairs occur in training and validation: the sixth, with an unknown verb, is none.
    assert outcome.metrics["action_top_1"]["chance"] == pytest.approx(1 / 5)
    assert outcome.metrics["verb_top_1"]["chance"] == pytest.approx(1 / 3)
    assert list(outcome.missing) == ["P02_07_4"]
    nouns = ["kettle", "kettle", "chopping board", "leek"]
    metrics = ask(read("epic_kitchens_100", "epic"), nouns, tmp_path).metrics
    assert metrics["noun_top_1"]["value"] == 1


def test_a_file_of_ones_own_may_hold_what_is_no_action(tmp_path):
    for file in (FIXTURES / "epic").iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    own = (tmp_path / "EPIC_100_validation.csv").read_text().replace("slice,2,leek,2", "slice,2,kettle,0")
    (tmp_path / "own.csv").write_text(own)
    found = read("epic_kitchens_100", tmp_path / "own.csv")
    assert found.unknown["P02_07_3"] == "verb 2 with noun 0 is no action"
    assert ask(found, EPIC[:3], tmp_path / "media").metrics["action_top_1"]["value"] == 1


def test_anticipation_sees_nothing_of_the_last_second(tmp_path):
    found = read("epic_kitchens_100_anticipation", "epic")
    spans = [(item.start, item.end) for item in found.items]
    assert spans == [(4.25, 8.25), (57.5, 61.5), (65.0, 69.0)]
    # The first action starts before a second has passed.
    assert list(found.unknown) == ["P02_07_0", "P02_07_4"]
    metrics = ask(found, EPIC[1:], tmp_path).metrics
    assert {name: metric["value"] for name, metric in metrics.items()} == {
        "action_recall_at_5": 1,
        "verb_recall_at_5": 1,
        "noun_recall_at_5": 1,
    }


def test_spans_are_those_of_the_annotations():
    spans = [(item.media, item.start, item.end) for item in read("egoexo4d", "egoexo4d").items]
    assert spans == [
        (("fair_oven_01_2/aria03_214-1",), 1.5, 7.25),
        (("fair_oven_01_2/aria03_214-1",), 7.25, 9.0),
        (("fair_bike_05_1/aria03_214-1",), 3.0, 4.0),
    ]
    spans = [(item.media, item.start, item.end) for item in read("epic_kitchens_100", "epic").items]
    assert spans[2] == (("P02_07",), 62.5, 65.0)
    assert read("kinetics_400", "kinetics").items[1].media == ("-bBbBbBbBb__000040_000050",)


def test_steps_that_procedures_share_are_one_candidate(tmp_path):
    """Two candidates with one text would be as near as each other, and neither the nearest."""
    for file in (FIXTURES / "egoexo4d").rglob("*.json"):
        copy = tmp_path / file.relative_to(FIXTURES / "egoexo4d")
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(file.read_text().replace("Boil the water", "Pump the tube"))
    found = read("egoexo4d", tmp_path)
    assert found.classes == [["Grease a tin"], ["Knead the dough"], ["Pump the tube"]]
    outcome = ask(found, ["Knead the dough", "Grease a tin", "Pump the tube"], tmp_path / "media")
    assert outcome.metrics["top_1"]["value"] == 1


def test_the_next_step_is_asked_about_the_one_before():
    found = read("coin_next_step", "coin")
    assert [(item.start, item.end) for item in found.items] == [(2.0, 9.0), (11.0, 20.5)]


def test_names_become_words():
    assert coin.words("ReplaceSIMCard") == "replace sim card"
    assert coin.words("MakeRJ45Cable") == "make rj45 cable"
    assert epic_kitchens.words("board:chopping") == "chopping board"
    assert epic_kitchens.words("turn-on") == "turn on"
    assert ssv2.phrase("Moving [something] and [something] closer") == "moving something and something closer"


def test_a_block_of_another_form_is_refused(tmp_path):
    lines = (FIXTURES / "crosstask" / "tasks_primary.txt").read_text().replace("3\ncut", "4\ncut")
    (tmp_path / "tasks_primary.txt").write_text(lines)
    with pytest.raises(UsageError, match=r"not of the form expected: five lines a task .* block of '71001'"):
        crosstask.read_tasks_file(tmp_path / "tasks_primary.txt")
