"""The command line of benchmarks, with a model that needs no compiling."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from jepa_jax import evaluate, flags
from jepa_jax.evaluation import frames
from tests import tiny
from tests.evaluation.fake import FIXTURES, World, fill, key, read

RIGHT = [
    "lifting something off a table",
    "rolling something down a slope",
    "bending something until it snaps",
    "lifting something off a table",
]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command on the checkpoint `tmp_path`, a World that is right; gives the exit status."""
    found = read("ssv2", "ssv2")
    model = World({key(item): text for item, text in zip(found.items, RIGHT, strict=True)})
    model.config = tiny.run_config()
    monkeypatch.setattr(evaluate.inference, "load", lambda *_, **how: model)
    monkeypatch.setattr(evaluate.parts, "is_part", lambda _: True)
    monkeypatch.setattr(evaluate.frames, "loader", lambda _: model.load_frames)
    fill(tmp_path / "media", found.items)

    def run(*more: str) -> int:
        return flags.run(evaluate.main, [f"--checkpoint={tmp_path}", *more])

    run.model = model
    return run


SSV2 = ("--task=ssv2", f"--annotations={FIXTURES / 'ssv2'}")


def test_a_benchmark_is_printed_and_written_beside_the_paper(command, tmp_path, capsys):
    assert command(*SSV2, f"--media={tmp_path / 'media'}") == 0
    metrics = json.loads((tmp_path / "eval" / "ssv2.json").read_text())
    assert metrics["top_1"] == {
        "value": 1.0,
        "chance": pytest.approx(1 / 3),
        "n": 4,
        "paper_base": 0.193,
        "paper_sft": 0.732,
    }
    missing = json.loads((tmp_path / "eval" / "ssv2.missing.json").read_text())
    assert list(missing) == ["904"]
    printed = capsys.readouterr().out
    assert "19.3%" in printed
    assert "1 left out, the score is of the rest: 904 (template" in printed


def test_figures_of_one_checkpoint_are_not_those_of_its_run(command, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.parts, "is_part", lambda _: False)
    monkeypatch.setattr(evaluate, "find_run", lambda path: (path, 60))
    assert command(*SSV2, f"--media={tmp_path / 'media'}") == 0
    assert (tmp_path / "evaluated" / "60" / "eval" / "ssv2.json").exists()
    assert not (tmp_path / "eval").exists()


def test_what_is_no_longer_missing_is_no_longer_listed(command, tmp_path):
    (tmp_path / "media" / "901.mp4").rename(tmp_path / "901.mp4")
    command(*SSV2, f"--media={tmp_path / 'media'}")
    listed = json.loads((tmp_path / "eval" / "ssv2.missing.json").read_text())
    assert listed == {"904": listed["904"], "901": "no such media file"}
    (tmp_path / "901.mp4").rename(tmp_path / "media" / "901.mp4")
    command(*SSV2, f"--media={tmp_path / 'media'}")
    assert list(json.loads((tmp_path / "eval" / "ssv2.missing.json").read_text())) == ["904"]


def test_the_query_is_the_one_given(command, tmp_path, monkeypatch):
    asked = []
    predict = command.model.predict
    monkeypatch.setattr(
        command.model, "predict", lambda v, q: asked.extend(q) or predict(v, [evaluate_query] * len(q))
    )
    evaluate_query = read("ssv2", "ssv2").items[0].query
    assert command(*SSV2, f"--media={tmp_path / 'media'}", "--query=") == 0
    assert asked == [""] * 4


def test_wordings_are_written_apart(command, tmp_path, monkeypatch):
    wordings = ["What is it?", "Name the action."]
    (tmp_path / "w.json").write_text(json.dumps(wordings))
    query = read("ssv2", "ssv2").items[0].query
    predict = command.model.predict
    monkeypatch.setattr(command.model, "predict", lambda v, q: predict(v, [query] * len(q)))
    assert command(*SSV2, f"--media={tmp_path / 'media'}", f"--wordings={tmp_path / 'w.json'}") == 0
    metrics = json.loads((tmp_path / "eval" / "ssv2_wording.json").read_text())
    assert metrics["cosine"]["value"] == pytest.approx(1)
    assert metrics["worst_wording"]["value"] == 1
    assert not (tmp_path / "eval" / "ssv2.json").exists()


def test_a_text_encoder_alone_can_be_asked_about_texts(tmp_path, monkeypatch, capsys):
    alone = types.SimpleNamespace(embed_text=World.embed_text)
    monkeypatch.setattr(evaluate.inference, "load", lambda *_, **how: alone)
    monkeypatch.setattr(evaluate.parts, "is_part", lambda _: True)
    arguments = [f"--checkpoint={tmp_path}", "--task=visla", f"--annotations={FIXTURES / 'visla'}"]
    assert flags.run(evaluate.main, arguments) == 0
    assert json.loads((tmp_path / "eval" / "visla.json").read_text())["accuracy"]["paper_base"] == 0.429
    assert flags.run(evaluate.main, [arguments[0], *SSV2, f"--media={tmp_path}"]) == 2
    assert "holds one part of a model, and ssv2 needs another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=ssv3"], "no task 'ssv3': there are retrieval, what_is_it"),
        (["--task=ssv2"], "needs --annotations=PATH: see docs/evaluation.md"),
        (["--task=ssv2", "--annotations=nowhere"], "--annotations=nowhere: no such file or folder"),
        ([*SSV2, "--split=best"], "ssv2 has no split 'best': there are validation, train"),
        ([*SSV2], "needs --media=FOLDER"),
        ([*SSV2, "--media=nowhere"], "--media=nowhere: no such folder"),
        (["--task=vqa", "--media=x"], "--media is for benchmarks: name one with --task"),
        (["--task=vqa", "--decoder=x"], "--decoder is for what writes text, and --task=vqa does not"),
        ([*SSV2, "--decoder=x"], "--decoder is for what writes text, and --task=ssv2 does not"),
        (["--query=what?"], "--query is for benchmarks"),
        ([*SSV2, "--query=what?", "--wordings=w.json"], "--query and --wordings: give one"),
        (["--task=ssv2", "--config.seed=1"], "no --config flags here"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, message, command, capsys):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pictures_and_animations_are_loaded_by_time(tmp_path):
    config = tiny.run_config()
    size = config.model.x_encoder.image_size
    shades = [Image.new("RGB", (41, 29), (value, value, value)) for value in (0, 50, 100, 150, 200, 250)]
    options = {"save_all": True, "append_images": shades[1:], "duration": 500, "lossless": True}
    shades[0].save(tmp_path / "clip.webp", **options)
    shades[3].save(tmp_path / "still.png")
    load = frames.loader(config)
    still = load((tmp_path / "still.png").read_bytes(), None, None)
    assert still.shape == (1, size, size, 3)
    assert (still == 150).all()
    clip = load(tmp_path / "clip.webp", 1.0, 2.0)
    assert set(np.unique(clip)) == {100, 150}
    assert clip.shape == (config.data.frames, size, size, 3)
    with pytest.raises(ValueError, match="span outside the media"):
        load(tmp_path / "clip.webp", 3.5, 4)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(ValueError, match="media not decodable"):
        load(tmp_path / "broken.png", None, None)
