"""Every field of the data, checkpoint, eval and run sections changes something. The model's and the
loss's fields are in `models/config_fields_test.py`, the optimizer's in `optim_test.py`."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax import evaluate, sharding
from jepa_jax.data import pipeline
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.loader import Loader
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.evaluation import clips
from tests.processes import environment
from tests.records import Records
from tests.tiny_config import config as tiny
from tests.train_test import CONFIG, ROOT

# Fields that show in the first batch, and what they are changed to.
BATCH = {
    "split": "validation",
    "frames": 2,
    "resize": 40,
    "length_buckets": ((12, 12),),
    "query_tokenizer": "words",
    "target_tokenizer": "words",
    "target_prefix": "look: ",
    "pair_weights": (("how_many", 1.0),),
    "pairs_per_clip": 2,
    "max_shift": 3,
}
# Changed all at once in one run of four steps, in processes of its own.
RUN = {
    "name": "renamed",
    "steps": 4,
    "log_every": 3,
    "checkpoint.every": 1,
    "checkpoint.keep": 4,
    "checkpoint.best_metric": "recall_at_1",
    "eval.splits": "('unseen_art',)",
    "eval.clips": 30,
    "eval.retrieval_clips": 20,
}
ELSEWHERE = {
    "data.dataset": "test_the_dataset_is_the_one_named",
    "data.data_dir": "the run below finds its data there",
    "data.path": "test_a_source_is_opened_as_told",
    "data.fields": "test_a_source_is_opened_as_told",
    "data.max_pixels": "test_a_source_is_opened_as_told",
    "data.max_media_bytes": "test_a_source_is_opened_as_told",
    "data.max_text_characters": "test_a_source_is_opened_as_told",
    "data.mixture": "data/pipeline_test.py",
    "data.features": "data/pipeline_test.py",
    "data.max_bad_fraction": "data/bad_records_test.py, train_test.py",
    "data.workers": "test_workers_are_as_many",
    "data.threads": "test_reading_ahead_is_as_wide_and_as_long_as_told",
    "data.prefetch": "test_reading_ahead_is_as_wide_and_as_long_as_told",
    "eval.validation_split": "test_the_validation_split_is_the_one_named",
    "eval.dataset": "test_what_is_evaluated_on_is_what_is_named",
    "eval.batch_size": "test_a_model_computes_in_batches_of_the_size_told",
    "batch_size": "test_the_batch_depends_on",
    "seed": "test_the_batch_depends_on",
    "micro_batches": "step_test.py",
    "keep_visual_tokens": "step_test.py",
    "fsdp": "test_fsdp_shapes_the_mesh",
    "init.x_encoder": "initial_test.py",
    "init.predictor": "initial_test.py",
    "init.y_encoder": "initial_test.py",
    "init.model": "initial_test.py",
}

# Fields of one dataset of a mixture.
DATASET = {
    **dict.fromkeys(("dataset", "path", "split", "data_dir", "fields"), "test_a_source_is_opened_as_told"),
    **dict.fromkeys(("weight", "frames", "span", "query_templates", "target"), "data/pipeline_test.py"),
    "pair_weights": "data/pipeline_test.py",
}


def test_no_field_is_forgotten():
    assert DATASET.keys() == {f.name for f in dataclasses.fields(c.DatasetConfig)}
    sections = {
        "data": c.DataConfig,
        "checkpoint": c.CheckpointConfig,
        "eval": c.EvalConfig,
        "init": c.InitConfig,
    }
    fields = {f"{s}.{f.name}" for s, kind in sections.items() for f in dataclasses.fields(kind)}
    others = {"model", "loss", "optim"}
    fields |= {f.name for f in dataclasses.fields(c.Config)} - sections.keys() - others
    assert {f"data.{name}" for name in BATCH} | RUN.keys() | ELSEWHERE.keys() == fields


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of another vocabulary, in a folder."""
    import tokenizers
    import transformers

    model = tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "the": 2}, unk_token="[UNK]")
    whole = tokenizers.Tokenizer(model)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("words")
    transformers.PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


def with_data(**fields) -> c.Config:
    data = dataclasses.replace(tiny.data, length_buckets=((16, 16),), **{"threads": 1, **fields})
    model = tiny.model
    if data.frames % model.x_encoder.tubelet_size:
        x_encoder = dataclasses.replace(model.x_encoder, tubelet_size=data.frames)
        model = dataclasses.replace(model, x_encoder=x_encoder)
    return dataclasses.replace(tiny, data=data, model=model)


def first_batch(config: c.Config) -> dict[str, np.ndarray]:
    sources = pipeline.open_sources(config.data, BadRecords(0.0))
    return pipeline.batches(config, sources, load_tokenizers(config))[0].arrays


def differs(one, other) -> bool:
    return any(not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("name", "value"), BATCH.items(), ids=BATCH)
def test_every_field_of_the_batch(name, value, data_dir, words):
    plain = with_data(data_dir=data_dir)
    if name == "length_buckets":
        changed = dataclasses.replace(plain, data=dataclasses.replace(plain.data, length_buckets=value))
    else:
        changed = with_data(data_dir=data_dir, **{name: words if value == "words" else value})
    reference = first_batch(plain)
    assert not differs(reference, first_batch(plain))
    assert differs(reference, first_batch(changed))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 6), ("seed", 3)])
def test_the_batch_depends_on(name, value, data_dir):
    plain = with_data(data_dir=data_dir)
    assert differs(first_batch(plain), first_batch(dataclasses.replace(plain, **{name: value})))


def test_the_dataset_is_the_one_named(data_dir):
    data = dataclasses.replace(tiny.data, dataset="no_such_thing", data_dir=data_dir)
    with pytest.raises(ValueError, match=r"data.dataset='no_such_thing': no such dataset"):
        pipeline.open_sources(data, BadRecords(0.0))


def test_reading_ahead_is_as_wide_and_as_long_as_told(monkeypatch):
    import grain

    told = {}
    monkeypatch.setattr(grain, "ReadOptions", lambda **fields: told.update(fields))
    dataset = grain.MapDataset.range(3)
    Loader(dataset, dataclasses.replace(tiny.data, threads=5, prefetch=11), BadRecords(0.0))
    assert told == {"num_threads": 5, "prefetch_buffer_size": 11}


def test_workers_are_as_many_as_told_and_share_what_is_read_ahead(monkeypatch):
    import grain

    told = {}
    read, several = grain.ReadOptions, grain.MultiprocessingOptions
    monkeypatch.setattr(grain, "ReadOptions", lambda **f: told.update(f) or read(**f))
    monkeypatch.setattr(grain, "MultiprocessingOptions", lambda **f: told.update(f) or several(**f))
    data = dataclasses.replace(tiny.data, workers=3, threads=5, prefetch=11)
    Loader(grain.MapDataset.range(3), data, BadRecords(0.0)).close()
    assert told["num_workers"] == 3
    assert told["per_worker_buffer_size"] == 4
    assert told["num_threads"] == 5


NO_FIELDS = dataclasses.asdict(c.FieldMap())
WHOLE = c.DatasetConfig(
    path="a", split="odd", data_dir="d", fields=c.FieldMap(media="clip"), pair_weights=(("x", 2.0),)
)


@pytest.mark.parametrize(
    ("data", "datasets", "limits"),
    [
        ({"path": "there"}, [{"path": "there", "split": "train"}], {}),
        ({"path": "there", "split": "b"}, [{"path": "there", "split": "b"}], {}),
        ({"dataset": "x/y", "data_dir": "z"}, [{"dataset": "x/y", "data_dir": "z"}], {}),
        ({"path": "a", "fields": c.FieldMap(media="m")}, [{"fields": {**NO_FIELDS, "media": "m"}}], {}),
        ({"max_pixels": 5}, [{}], {"max_pixels": 5}),
        ({"max_media_bytes": 6}, [{}], {"max_media_bytes": 6}),
        ({"max_text_characters": 7}, [{}], {"max_text_characters": 7}),
        ({"mixture": (WHOLE,)}, [dataclasses.asdict(dataclasses.replace(WHOLE, frames=4))], {}),
        (
            {"mixture": (WHOLE, c.DatasetConfig(dataset="e")), "data_dir": "z"},
            [{"data_dir": "d", "path": "a"}, {"data_dir": "z", "dataset": "e", "path": None}],
            {},
        ),
    ],
)
def test_a_source_is_opened_as_told(data, datasets, limits, monkeypatch):
    asked = []
    monkeypatch.setattr(pipeline, "open_source", lambda *given: asked.append(given) or Records([]))
    pipeline.open_sources(dataclasses.replace(tiny.data, **data), BadRecords(0.0))
    assert len(asked) == len(datasets)
    for (dataset, given), expected in zip(asked, datasets, strict=True):
        assert dataclasses.asdict(dataset) == dataclasses.asdict(dataset) | expected
        assert dataclasses.asdict(given) == dataclasses.asdict(given) | limits


@pytest.mark.parametrize(
    ("data", "named", "expected"),
    [
        ({"path": "a"}, None, "a"),
        ({"mixture": (c.DatasetConfig(path="b"), c.DatasetConfig(path="c"))}, None, "b"),
        ({"path": "a"}, c.DatasetConfig(path="d", split="x"), "d"),
    ],
)
def test_what_is_evaluated_on_is_what_is_named(data, named, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(clips, "open_source", lambda dataset, _: asked.append(dataset))
    config = dataclasses.replace(
        tiny, data=dataclasses.replace(tiny.data, **data), eval=c.EvalConfig(dataset=named)
    )
    clips.open_split(config, "held_out")
    assert [(dataset.path, dataset.split) for dataset in asked] == [(expected, "held_out")]


@pytest.mark.parametrize("split", ["validation", "unseen_art"])
def test_the_validation_split_is_the_one_named(split, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "load_clips", lambda _, *rest: asked.append(rest) or (None, None))
    settings = c.EvalConfig(validation_split=split, retrieval_clips=9)
    evaluate.Validation(dataclasses.replace(tiny, eval=settings), None)
    assert asked == [(split, 9)]


@pytest.mark.parametrize("size", [2, 5])
def test_a_model_computes_in_batches_of_the_size_told(size, monkeypatch):
    from flax import nnx

    from jepa_jax import inference
    from jepa_jax.models.vl_jepa import VLJEPA

    shapes = []

    def encode(_, frames, graphdef):
        shapes.append(frames.shape[0])
        return jax.numpy.asarray(frames)

    monkeypatch.setattr(inference, "_encode", encode)
    config = dataclasses.replace(tiny, eval=c.EvalConfig(batch_size=size))
    model = inference.Model(VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0)), config, (None, None))
    model.encode_video(np.zeros((7, 4, 32, 32, 3), np.uint8))
    # The last batch is no longer than a power of two.
    assert shapes == {2: [2, 2, 2, 1], 5: [5, 2]}[size]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_fsdp_shapes_the_mesh(fsdp):
    assert sharding.make_mesh(fsdp).shape["fsdp"] == fsdp


def test_every_field_of_a_run(tmp_path):
    """Without --workdir, so that the name tells where it is written."""
    arguments = [f"--config.{name}={value}" for name, value in RUN.items()]
    environ = environment(2) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jepa_jax.train", f"--config={CONFIG}"]
    # One shape, one program to compile.
    command += [f"--config.data.data_dir={tmp_path / 'data'}", "--config.data.length_buckets=((16,16),)"]
    command += arguments
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "emoji_motion" / "tiny").is_dir()
    workdir = tmp_path / "runs" / "renamed"

    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [3, 4]
    assert [row["step"] for row in rows if "recall_at_1" in row] == [1, 2, 3, 4]
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {1, 2, 3, 4}
    scores = {file.stem: json.loads(file.read_text()) for file in (workdir / "eval").iterdir()}
    assert {name.split("/")[0] for task in scores.values() for name in task} == {"unseen_art"}
    assert scores["what_is_it"]["unseen_art/top_1"]["n"] == 30
    assert {metric["n"] for metric in scores["retrieval"].values()} == {20}
    assert re.search(r"renamed: +100%", done.stderr)
