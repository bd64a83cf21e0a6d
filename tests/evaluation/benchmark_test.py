"""Asking a model all of a benchmark: what is missing is left out, counted and named."""

import dataclasses

import numpy as np
import pytest

from jepa_jax.evaluation import benchmark, paper
from jepa_jax.evaluation.benchmark import Benchmark, Item, joined
from jepa_jax.evaluation.benchmarks import BENCHMARKS
from jepa_jax.evaluation.media import MediaFolder, MissingMediaError
from jepa_jax.evaluation.report import format_table
from jepa_jax.flags import UsageError
from tests.evaluation.fake import FRAMES, World, ask, fill, key, read, watching

RIGHT = ["Knead the dough", "Grease a tin", "Pump the tube"]


def run(found, model, media, load=None):
    return benchmark.run(found, model, watching(media, load or model.load_frames))


@pytest.fixture
def found():
    return read("egoexo4d", "egoexo4d")


@pytest.fixture
def model(found):
    return World({key(item): text for item, text in zip(found.items, RIGHT, strict=True)})


def test_missing_media_are_left_out_and_named(found, model, tmp_path):
    outcome = run(found, model, fill(tmp_path, found.items[:2]))
    assert outcome.metrics["top_1"] == {"value": 1.0, "chance": 0.25, "n": 2}
    assert outcome.missing["uid-b, segment 0"] == "no such media file"
    sentence = benchmark.missing_sentence(outcome, "eval/x.json")
    assert sentence.startswith("2 left out, the score is of the rest: uid-c, segment 0 (its take")
    assert sentence.endswith("all are in eval/x.json")


@pytest.mark.parametrize("error", [ValueError("media not decodable\nat all"), OSError("unplugged")])
def test_media_that_cannot_be_decoded_are_left_out_and_named(found, model, tmp_path, error):
    def load(media, start, end):
        if start == 7.25:
            raise error
        return model.load_frames(media, start, end)

    outcome = run(found, model, fill(tmp_path, found.items), load)
    assert outcome.metrics["top_1"]["n"] == 2
    assert outcome.missing["uid-a, segment 1"] == str(error).splitlines()[0]


def test_nothing_left_is_one_sentence(found, model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nothing of 3 items could be used: uid-c, segment 0 \(its take"):
        run(found, model, MediaFolder(tmp_path / "empty"))
    with pytest.raises(UsageError, match="needs --media=FOLDER"):
        run(found, model, None)
    with pytest.raises(UsageError, match=r"nothing to ask about: a \(b\)"):
        run(Benchmark(items=[], score=found.score, unknown={"a": "b"}), model, None)


def test_questions_the_model_does_not_take_are_left_out_and_named(found, model, tmp_path):
    """Before a clip is decoded for them."""
    items = [dataclasses.replace(found.items[0], query="so long a question"), *found.items[1:]]

    def check_query(query):
        if query.startswith("so long"):
            raise ValueError("shorten it")

    media = watching(fill(tmp_path, items), model.load_frames)
    asked = dataclasses.replace(media, check_query=check_query)
    outcome = benchmark.run(dataclasses.replace(found, items=items), model, asked)
    assert outcome.metrics["top_1"]["n"] == 2
    assert outcome.missing[items[0].name] == "shorten it"
    assert len(model.loaded) == 2
    with pytest.raises(UsageError, match=r"nothing of 1 items could be used: .*\(shorten it\)"):
        benchmark.run(dataclasses.replace(found, items=items[:1], unknown={}), model, asked)


def test_each_span_is_decoded_once_and_batches_change_nothing(found, tmp_path):
    asked = [*found.items, *found.items]
    twice = Benchmark(items=asked, score=found.score)
    for batch_size in (1, 2, 7):
        outcome = ask(twice, [*RIGHT, *RIGHT], tmp_path, batch_size=batch_size)
        assert outcome.metrics["top_1"] == {"value": 1.0, "chance": 0.25, "n": 6}
    model = World({key(item): text for item, text in zip(found.items, RIGHT, strict=True)})
    run(twice, model, fill(tmp_path, found.items))
    assert model.loaded == [
        ("aria03_214-1", 1.5, 7.25),
        ("aria03_214-1", 7.25, 9.0),
        ("aria03_214-1", 3.0, 4.0),
    ]


def test_threads_decode_ahead_but_not_far_and_keep_the_order(tmp_path):
    items = [Item(name=f"{n}", media=(f"{n}",), answer=n, query="which?") for n in range(23)]
    loaded, ahead = [], []

    class Slow(World):
        def encode_video(self, frames):
            ahead.append(len(loaded) - len(frames))
            return frames[:, :1, 0, 0, :1]

        def predict(self, visual, queries):
            return visual[:, 0].astype(np.float32)

    def load(media, start, end):
        loaded.append(media.stem)
        if media.stem == "5":
            raise ValueError("damaged")
        return np.full((FRAMES, 2, 3, 3), int(media.stem), np.uint8)

    def score(kept, predicted, _):
        assert predicted[:, 0].tolist() == [item.answer for item in kept]
        return {"seen": {"value": 1.0, "chance": 0.0, "n": len(kept)}}

    seen = dataclasses.replace(watching(fill(tmp_path, items), load, batch_size=3), threads=5)
    outcome = benchmark.run(Benchmark(items=items, score=score), Slow({}), seen)
    assert outcome.metrics["seen"]["n"] == 22
    assert outcome.missing == {"5": "damaged"}
    assert sorted(loaded, key=int) == [item.name for item in items]
    # Of 23 clips, never more are decoded than the model has seen, its batch and as many waiting.
    assert all(count <= 3 * batch + 3 + 1 for batch, count in enumerate(ahead))


def test_answers_that_are_not_numbers_are_told(found, tmp_path):
    model = World({})
    model.predict = lambda visual, queries: np.full((len(queries), 3), np.nan)
    with pytest.raises(UsageError, match="weights are broken"):
        run(found, model, fill(tmp_path, found.items))


@pytest.mark.parametrize(
    ("task", "fixture"), [("ssv2", "ssv2"), ("pope", "pope"), ("msvd", "msvd"), ("visla", "visla")]
)
def test_texts_whose_embeddings_are_not_numbers_are_told(task, fixture, tmp_path):
    found = read(task, fixture)
    model = World({})
    model.predict = lambda visual, queries: np.eye(3)[[0] * len(queries)]
    model.embed_text = lambda texts: np.full((len(texts), 3), np.nan)
    with pytest.raises(UsageError, match="weights are broken"):
        run(found, model, fill(tmp_path, found.items))


@pytest.mark.parametrize(
    ("task", "fixture", "metric"),
    [
        ("ssv2", "ssv2", "top_1"),
        ("gqa", "gqa", "accuracy"),
        ("pope", "pope", "accuracy"),
        ("msvd", "msvd", "video_to_text_recall_at_1"),
        ("visla", "visla", "accuracy"),
        ("world_prediction_wm", "world", "accuracy"),
    ],
)
def test_one_embedding_for_everything_is_never_right(task, fixture, metric, tmp_path):
    found = read(task, fixture)
    model = World({})
    model.predict = lambda visual, queries: np.eye(3)[[0] * len(queries)]
    model.embed_text = lambda texts: np.eye(3)[[0] * len(texts)]
    assert run(found, model, fill(tmp_path, found.items)).metrics[metric]["value"] == 0


def test_images_and_videos_may_be_mixed(tmp_path):
    lengths = {"a": 1, "b": 4, "c": 1, "d": 4}
    items = [Item(name=n, media=(n,), answer=length, query="how long?") for n, length in lengths.items()]
    shapes = []

    class Counting(World):
        def encode_video(self, frames):
            shapes.append(frames.shape)
            return frames

        def predict(self, visual, queries):
            return np.full((len(queries), 1), visual.shape[1], np.float32)

    def score(kept, predicted, _):
        assert predicted[:, 0].tolist() == [item.answer for item in kept]
        return {}

    load = lambda media, start, end: np.zeros((lengths[media.stem], 2, 3, 3), np.uint8)
    seen = watching(fill(tmp_path, items), load, batch_size=4)
    benchmark.run(Benchmark(items=items, score=score), Counting({}), seen)
    assert sorted(shape[:2] for shape in shapes) == [(2, 1), (2, 4)]


def test_a_clip_of_several_pieces_gives_each_its_share():
    first, last = np.full((1, 2, 2, 3), 7, np.uint8), np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    clip = joined([first, np.broadcast_to(last, (4, 2, 2, 3))], 4)
    assert clip[:, 0, 0, 0].tolist() == [7, 7, 1, 3]
    assert len(joined([first, first], 5)) == 5
    with pytest.raises(ValueError, match="2 pieces of media do not fit in a clip of 1 frames"):
        joined([first, first], 1)


def test_media_are_found_in_any_layout(tmp_path):
    files = ("x/y/take1/cam.mp4", "x/y/take2/deep/cam.MKV", "plain.webm", "notes.json", "10@N00.mov")
    for name in (*files, "11@N00.mov.mp4", "11@N00.mov.mp4.jpg", "plain.webm.jpg", "12@N00.3gp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    media = MediaFolder(tmp_path)
    assert media.find("take1/cam").parts[-2] == "take1"
    assert media.find("take2/cam.avi").name == "cam.MKV"
    assert media.find("plain").name == "plain.webm"
    assert media.find("10@N00").name == "10@N00.mov"
    # As DiDeMo's downloader calls what its annotations call "11@N00.mov" and "12@N00.3gp".
    assert media.find("11@N00.mov").name == "11@N00.mov.mp4"
    assert media.find("12@N00.3gp").name == "12@N00.3gp"
    with pytest.raises(MissingMediaError, match=r"2 media files of that name: x/y/take1/cam.mp4, "):
        media.find("cam")
    # Another take's camera is another camera, even where only one has a file.
    for name in (
        "elsewhere/plain",
        "take2/take1/cam",
        "notes",
        "take3/cam",
        "",
        "..",
        "../plain.webm/..",
        "/etc/passwd",
    ):
        with pytest.raises(MissingMediaError, match="no such media file"):
            media.find(name)


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "media" / "own.mp4").touch()
    (tmp_path / "media" / "alias.mp4").symlink_to(tmp_path / "media" / "own.mp4")
    media = MediaFolder(tmp_path / "media")
    assert media.find("alias").name == "alias.mp4"
    with pytest.raises(MissingMediaError, match="outside its folder"):
        media.find("link")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.mp4").touch()
    (tmp_path / "media" / "val").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MissingMediaError, match="no such media file, and val is a link, not gone into"):
        MediaFolder(tmp_path / "media").find("far")
    with pytest.raises(UsageError, match="no such folder"):
        MediaFolder(tmp_path / "none")


def test_plain_files_are_not_resolved(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "own.mp4").touch()
    media = MediaFolder(tmp_path)
    monkeypatch.setattr(type(tmp_path), "resolve", None)
    assert media.find("own").name == "own.mp4"


def test_the_papers_figures_are_of_metrics_that_exist(tmp_path):
    assert set(paper.FIGURES) <= set(BENCHMARKS)
    means = {"top_1": (52.5, 75.4), "text_to_video_recall_at_1": (63.7, 63.8)}
    for metric, mean in means.items():
        rows = [
            figures[name] for figures in paper.FIGURES.values() for name in figures if name.endswith(metric)
        ]
        assert len(rows) == 8
        # The paper's own means; its figures are rounded.
        assert np.mean(rows, axis=0) == pytest.approx(mean, abs=0.06)
    metrics = paper.beside_paper("gqa", {"accuracy": {"value": 0.5}, "other": {"value": 0.1}})
    assert metrics["accuracy"] == {"value": 0.5, "paper_base": None, "paper_sft": pytest.approx(0.615)}
    assert metrics["other"]["paper_sft"] is None
    assert paper.beside_paper("msvd_captions", {"cider": {}})["cider"] == {
        "paper_base": None,
        "paper_sft": None,
    }


def test_the_table_has_the_papers_columns_where_there_are_some():
    metrics = paper.beside_paper("gqa", {"accuracy": {"value": 0.5, "chance": 0.25, "n": 9}})
    head, _, row = format_table({"gqa": metrics}).splitlines()
    assert head.split() == ["task", "metric", "model", "paper", "BASE", "paper", "SFT", "chance", "n"]
    assert row.split() == ["gqa", "accuracy", "50.0%", "-", "61.5%", "25.0%", "9"]
    row = format_table({"x": {"cider": {"value": 0.148, "n": 2}, "a_cosine": {"value": 0.5, "n": 2}}})
    assert [line.split()[2] for line in row.splitlines()[2:]] == ["14.8", "0.500"]
    row = format_table({"x": {f"{split}/top_1": {"value": 0.5, "n": 2} for split in ("sometimes", "frank")}})
    assert [line.split()[2] for line in row.splitlines()[2:]] == ["50.0%", "50.0%"]  # a split's name is none
