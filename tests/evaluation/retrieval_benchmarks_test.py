"""Retrieval and captioning from files of the official form."""

import tracemalloc

import numpy as np
import pytest

from jepa_jax.evaluation import retrieval
from jepa_jax.evaluation.benchmarks import BENCHMARKS
from jepa_jax.evaluation.captioning import cider
from jepa_jax.evaluation.classification import top_k_metrics
from jepa_jax.evaluation.retrieval import ranks_of_scores, retrieval_metrics
from jepa_jax.flags import UsageError
from tests.evaluation.fake import FIXTURES, DecodingWorld, ask, read

# task, fixture, captions of the items.
CASES = [
    (
        "msr_vtt",
        "msr_vtt",
        [["a heron waits in the reeds"], ["two cooks argue, then laugh"], ["a tram climbs a hill"]],
    ),
    (
        "activitynet",
        "activitynet",
        [["A woman saddles a mule. She leads it up a path."], ["Children build a raft."]],
    ),
    ("didemo", "didemo", [["the kite dips the string snaps"], ["a seal dives"]]),
    (
        "msvd",
        "msvd",
        [
            ["a bear scratches its back", "a bear rubs against a tree", "the animal has an itch"],
            ["someone tunes a lute"],
            ["a ferry docks", "a boat arrives at the pier"],
        ],
    ),
    ("youcook2", "youcook2", [["whisk the eggs with milk"], ["fry both sides in butter"]]),
    (
        "pvd_bench",
        "pvd/test.jsonl",
        [["A potter centres clay on a wheel."], ["A diver steps off a pier at dusk."]],
    ),
    (
        "dream_1k",
        "dream",
        [["A fox crosses a frozen pond."], ["A clerk stamps a letter and sighs."]],
    ),
    (
        "vdc_1k",
        "vdc",
        [["Rain runs down a shop window at night."], ["Bees crowd the entrance of a wooden hive."]],
    ),
]


@pytest.mark.parametrize(("task", "fixture", "captions"), CASES, ids=[case[0] for case in CASES])
def test_captions_are_read_and_found(task, fixture, captions, tmp_path):
    found = read(task, fixture)
    assert [item.answer for item in found.items] == captions
    # Each video answers with its last caption.
    metrics = ask(found, [texts[-1] for texts in captions], tmp_path).metrics
    assert metrics["video_to_text_recall_at_1"]["value"] == 1
    assert metrics["text_to_video_recall_at_1"]["n"] == sum(map(len, captions))
    if max(map(len, captions)) == 1:
        assert metrics["text_to_video_recall_at_1"]["value"] == 1


def test_spans_and_names_of_media():
    assert [(item.media, item.start, item.end) for item in read("youcook2", "youcook2").items] == [
        (("ycVideo_001",), 10, 25),
        (("ycVideo_001",), 40, 61),
    ]
    assert read("dream_1k", "dream").items[0].media == ("1.mp4",)
    assert set(read("activitynet", "activitynet").unknown) == {"v_silent00003"}
    assert set(read("msvd", "msvd").unknown) == {"msvdClip004_1_2"}


@pytest.mark.parametrize(
    ("task", "file", "head", "row"),
    [
        ("msr_vtt", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\n", "{},{}\n"),
        ("pvd_bench", "test.jsonl", "", '{{"clip_id": "{}", "human_caption": "{}"}}\n'),
    ],
)
def test_rows_of_one_video_are_one_entry_with_several_captions(task, file, head, row, tmp_path):
    rows = [("v1", "a"), ("v2", "c"), ("v1", "b"), ("v2", "c")]
    (tmp_path / file).write_text(head + "".join(row.format(*pair) for pair in rows))
    found = BENCHMARKS[task].read(tmp_path, BENCHMARKS[task].splits[0])
    metrics = ask(found, ["b", "c", "b", "c"], tmp_path).metrics
    assert metrics["video_to_text_recall_at_1"] == {"value": 1.0, "chance": 0.5, "n": 2}
    assert metrics["text_to_video_recall_at_5"] == {"value": 1.0, "chance": 1.0, "n": 4}
    assert metrics["text_to_video_recall_at_1"]["value"] >= 0.75  # "a" is far from both


def test_several_captions_by_hand():
    """Video 0 has captions 0 and 1, video 1 caption 2."""
    video = np.array([[1.0, 0.0], [0.0, 1.0]])
    text = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.6]])
    metrics = retrieval_metrics(video, text, np.array([0, 0, 1]))
    # Caption 1 is nearer to the other video; captions 0 and 2 are not.
    assert metrics["text_to_video_recall_at_1"] == {"value": pytest.approx(2 / 3), "chance": 0.5, "n": 3}
    assert metrics["text_to_video_median_rank"]["value"] == 1
    # Video 0's nearest caption is its own; video 1's is caption 1, of video 0.
    assert metrics["video_to_text_recall_at_1"] == {"value": 0.5, "chance": 0.5, "n": 2}


def test_groups_of_captions_are_ranked_as_the_plain_loop_does():
    rng = np.random.default_rng(2)
    owner = np.sort(np.concatenate([np.arange(7), rng.integers(7, size=16)]))
    video, text = rng.normal(size=(7, 5)), rng.normal(size=(23, 5))
    metrics = retrieval_metrics(video, text, owner)
    found = []
    for place, vector in enumerate(video):
        best = [
            max(vector @ caption for caption, of in zip(text, owner) if of == other) for other in range(7)
        ]
        found.append(sorted(best, reverse=True).index(best[place]) + 1)
    assert metrics["video_to_text_median_rank"]["value"] == np.median(found)
    assert metrics["video_to_text_recall_at_5"]["value"] == np.mean(np.array(found) <= 5)


def test_few_scores_are_in_memory_at_a_time_and_how_many_changes_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    owner = np.sort(np.concatenate([np.arange(31), rng.integers(31, size=22)]))
    video, text = rng.normal(size=(31, 5)), rng.normal(size=(53, 5))
    whole, sizes = retrieval_metrics(video, text, owner), []
    of_scores = lambda scores, own: sizes.append(scores.size) or ranks_of_scores(scores, own)
    monkeypatch.setattr(retrieval, "ranks_of_scores", of_scores)
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", 200)
    assert retrieval_metrics(video, text, owner) == whole
    assert max(sizes) <= 200


def test_memory_is_of_a_block_of_scores_and_not_of_all(monkeypatch):
    """Nor is a whole matrix made that says which are right."""
    monkeypatch.setattr(retrieval, "_SCORES_AT_ONCE", 2**16)
    clips = np.random.default_rng(6).normal(size=(3000, 4)).astype(np.float32)
    tracemalloc.start()
    try:
        retrieval_metrics(clips, clips)
        top_k_metrics(clips, clips, np.arange(3000), ks=(1,))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3000**2 / 4


@pytest.mark.parametrize(("clips", "size"), [(5, 64), (9, 128), (9, 1536), (11, 128), (64, 300)])
def test_one_embedding_for_everything_ranks_last(clips, size):
    """A matrix product gives equal rows scores that differ in the last bit."""
    row = np.random.default_rng(clips).standard_normal(size).astype(np.float32)
    same = np.tile(row / np.linalg.norm(row), (clips, 1))
    metrics = retrieval_metrics(same, same)
    assert metrics["text_to_video_median_rank"]["value"] == clips
    assert metrics["text_to_video_recall_at_1"]["value"] == 0


def test_embeddings_that_are_not_numbers_are_not_ranked_first():
    with pytest.raises(ValueError, match="not numbers"):
        ranks_of_scores(np.array([[np.nan, 0.1]]), np.array([[True, False]]))


def test_a_bank_of_one_says_so(tmp_path):
    found = read("msr_vtt", "msr_vtt")
    single = type(found)(items=found.items[:1], score=found.score)
    with pytest.raises(UsageError, match="retrieval among 1 clip says nothing"):
        ask(single, ["a heron waits in the reeds"], tmp_path)


CAPTIONING = [
    ("msvd_captions", "msvd", ["a bear scratches its back", "someone plays", "a ferry docks"]),
    ("msr_vtt_captions", "msr_vtt", ["a heron waits in the reeds", "two cooks argue"]),
    ("youcook2_captions", "youcook2", ["whisk the eggs", "fry both sides in butter"]),
]


@pytest.mark.parametrize(("task", "fixture", "said"), CAPTIONING, ids=[case[0] for case in CAPTIONING])
def test_decoded_texts_are_scored_against_all_references(task, fixture, said, tmp_path):
    found = read(task, fixture)
    metric = ask(found, said, tmp_path, world=DecodingWorld).metrics["cider"]
    references = [item.answer for item in found.items]
    assert metric["value"] == pytest.approx(cider(said, references).mean())
    assert metric["chance"] == pytest.approx(cider(said[1:] + said[:1], references).mean())
    assert metric["value"] > metric["chance"]


def test_a_checkpoint_without_a_decoder_is_told_before_anything_is_watched(tmp_path):
    found = read("msvd_captions", "msvd")
    with pytest.raises(UsageError, match="has no Y-Decoder"):
        ask(found, ["a", "b", "c"], tmp_path / "no_media_needed")


def test_captions_of_unlisted_videos_are_left_out():
    assert set(read("msr_vtt_captions", "msr_vtt").unknown) == {"video9999"}


def test_captions_of_training_and_validation_are_in_one_file(tmp_path):
    found = (FIXTURES / "msr_vtt" / "test_videodatainfo.json").read_text()
    (tmp_path / "test_videodatainfo.json").write_text(found)
    (tmp_path / "train_val_videodatainfo.json").write_text(found)
    captions = BENCHMARKS["msr_vtt_captions"]
    assert captions.splits == ("test", "validate", "train")
    assert [item.name for item in captions.read(tmp_path, "train").items] == ["video9003"]
    assert not captions.read(tmp_path, "validate").items
