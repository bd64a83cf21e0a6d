"""Training on data that is not the demo's: its bad records, its evaluation. In this process, on sources
in memory."""

import dataclasses
import json
import signal

import pytest

from jepa_jax import distributed, flags, train
from jepa_jax.config import CheckpointConfig, DatasetConfig, EvalConfig
from jepa_jax.data import pipeline
from jepa_jax.data.records import BadRecordError, Pair, Record
from jepa_jax.evaluation import clips
from tests.records import Records, example, record
from tests.tiny_config import config as tiny

CONFIG = dataclasses.replace(
    tiny,
    data=dataclasses.replace(
        tiny.data,
        mixture=(DatasetConfig(path="a", weight=2.0), DatasetConfig(path="b", split="all")),
        length_buckets=((16, 16),),  # one shape, one program to compile
        max_bad_fraction=0.5,
    ),
    checkpoint=CheckpointConfig(every=2, best_metric="recall_at_1"),
    eval=EvalConfig(
        validation_split="held_out", splits=("held_out",), clips=9, retrieval_clips=9, batch_size=8
    ),
    steps=4,
    fsdp=1,
)


def missing(number: int) -> BadRecordError:
    return BadRecordError("media missing", f"clip {number}")


def too_long(number: int) -> Record:
    query = "tell the thing in the clip " * 5
    return record(number, Pair(kind="q", query=query, targets=(f"a cat {number}",)))


@pytest.fixture
def sources(monkeypatch):
    """What is opened, by path and split; and this process's own handlers of signals."""
    found = {
        ("a", "train"): Records(
            [example(i, long=i % 3 == 0) for i in range(40)], (BadRecordError("line not readable", "line 7"),)
        ),
        ("b", "all"): Records([missing(i) if i % 4 == 0 else example(i) for i in range(40, 80)]),
        # Of one, the query is longer than any bucket: it is cut in evaluation as in training.
        ("a", "held_out"): Records([too_long(80), *(example(i) for i in range(81, 100))]),
    }

    def open_source(dataset, _):
        if (dataset.path, dataset.split) not in found:
            raise ValueError(f"{dataset.label}: no such split")
        return found[dataset.path, dataset.split]

    monkeypatch.setattr(pipeline, "open_source", open_source)
    monkeypatch.setattr(clips, "open_source", open_source)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return found


def run(config, workdir, tmp_path) -> int:
    file = tmp_path / "config.json"
    file.write_text(flags.config_to_json(config))
    read = flags.config_from_json(file.read_text(), str(file))
    assert read == config
    with distributed.ending_together(workdir):
        return train.train(read, workdir)


def test_a_mixture_with_bad_records_trains_and_is_evaluated(sources, tmp_path, capsys, caplog):
    workdir = tmp_path / "run"
    assert run(CONFIG, workdir, tmp_path) == 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    counted = [row["bad_records"] for row in rows if "loss" in row]
    assert counted == sorted(counted)
    assert counted[0] >= 1  # the line, at least
    assert [row["step"] for row in rows if "recall_at_1" in row] == [2, 4]
    found = json.loads((workdir / "bad_records.json").read_text())
    assert found["causes"]["line not readable"] == {"records": 1, "names": {"line 7": ""}}
    assert set(found["causes"]["media missing"]["names"]) <= {f"clip {i}" for i in range(40, 80, 4)}
    assert "left out: line 7: line not readable" in caplog.text
    output = capsys.readouterr()
    assert "1 line not readable" in output.err
    # No labels, no tasks but retrieval.
    assert [file.name for file in (workdir / "eval").iterdir()] == ["retrieval.json"]
    assert "held_out/text_to_video_recall_at_1" in output.out
    assert (workdir / "retrieval.png").stat().st_size > 1000
    # The position is the next step, counted from 0.
    position = workdir / "checkpoints" / "4" / "data" / "metadata"
    known = json.loads(position.read_text())
    assert known["step"] == 4
    assert "query" not in known  # there are several
    # Where it goes on with other records, it says so. These have one query, which is kept.
    captions = Records([record(i, Pair(query="", targets=(f"a cat {i}",))) for i in range(40)])
    sources["a", "train"] = sources["b", "all"] = captions
    caplog.clear()
    longer = dataclasses.replace(CONFIG, eval=EvalConfig(validation_split="held_out"), steps=5)
    assert run(longer, workdir, tmp_path) == 0
    assert "the data has changed since step 4" in caplog.text
    assert json.loads((workdir / "checkpoints/5/data/metadata").read_text())["query"] == ""


def test_too_many_bad_records_end_the_run_with_status_1_and_a_sentence(
    sources, tmp_path, capsys, monkeypatch
):
    strict = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_bad_fraction=0.0))
    sources["a", "train"] = Records([missing(i) if i % 2 else example(i) for i in range(40)])
    monkeypatch.setattr(flags, "load_config", lambda _: strict)
    assert train.main([f"--workdir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "cannot be used, more than data.max_bad_fraction=0 allows: media missing (" in error
    assert "first clip " in error
    assert "Traceback" not in error
    assert (tmp_path / "run" / "bad_records.json").exists()


def test_without_a_split_to_validate_on_it_is_said_before_anything_is_written(sources, tmp_path, monkeypatch):
    del sources["a", "held_out"]
    monkeypatch.setattr(flags, "load_config", lambda _: CONFIG)
    with pytest.raises(flags.UsageError, match="a, split 'held_out': no such split"):
        train.main([f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run" / "config.json").exists()
