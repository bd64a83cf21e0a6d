"""A decoder's training as a whole: it learns, stops, goes on, and is found again."""

import dataclasses
import itertools
import json
import os
import pathlib
import pickle
import shutil
import signal
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jepa_jax
from jepa_jax import config as c
from jepa_jax import decoder as decoders
from jepa_jax import evaluate, flags, inference, latency, loop, part_models, parts, stream, train_decoder
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.tokenizer import load_decoder_tokenizer
from jepa_jax.inference import CANDIDATES, LIKELIHOOD_WEIGHT
from jepa_jax.models.y_decoder import YDecoder
from jepa_jax.state import to_items
from tests import tiny
from tests.parts_test import weights, write
from tests.tiny_config import config as run_config
from tests.tiny_decoder import config as tiny_decoder

CONFIG = pathlib.Path(__file__).parent / "tiny_decoder.py"
RUN_STEP = 5


def write_run(workdir, config, state):
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(flags.config_to_json(config))
    checkpointer = Checkpointer(workdir / "checkpoints", config.checkpoint)
    # As training leaves it where its data have captions alone.
    checkpointer.save(RUN_STEP, to_items(state), {"query": ""}, {"loss": 0.0})
    checkpointer.close()
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A work directory of a model that has not learned anything."""
    data = dataclasses.replace(
        run_config.data, data_dir=str(tmp_path_factory.mktemp("data")), pairs_per_clip=2
    )
    config = dataclasses.replace(run_config, data=data)
    return write_run(tmp_path_factory.mktemp("run"), config, tiny.state(config)[1])


def train(run, *arguments) -> int:
    return flags.run(train_decoder.main, [f"--checkpoint={run}", f"--config={CONFIG}", *arguments])


def losses(workdir) -> list[tuple]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


@pytest.fixture(scope="module")
def trained(run):
    """The run with a decoder that nobody disturbed."""
    assert train(run) == 0
    return run


def test_it_learns_and_is_found_beside_its_run(trained):
    loss = [row[1] for row in losses(trained / "decoder")]
    assert len(loss) == tiny_decoder.steps
    assert np.mean(loss[-5:]) < np.mean(loss[:5]) - 0.5
    model = jepa_jax.load(trained)
    assert model.default_query() == ""
    assert model.has_decoder
    assert model.decoder.config == dataclasses.replace(tiny_decoder, run_step=RUN_STEP)
    embeddings = model.embed_text(["a dog spins", "two", "yes"])
    texts = model.decode(embeddings)
    assert len(texts) == 3
    assert all(isinstance(text, str) for text in texts)
    # The weights are the trained ones, not drawn anew.
    again = jepa_jax.load(trained / "checkpoints" / str(RUN_STEP), decoder=trained / "decoder")
    assert again.decode(embeddings) == texts
    assert again.with_weights(again.module).decode(embeddings) == texts


def test_on_several_devices_each_takes_its_rows_and_the_answers_are_those_of_one(trained, monkeypatch):
    here = jax.local_devices()
    one, three = jepa_jax.load(trained), jepa_jax.load(trained, devices=here[1:4])
    side = run_config.model.x_encoder.image_size
    video = np.random.default_rng(0).integers(0, 256, (7, run_config.data.frames, side, side, 3), np.uint8)
    held, to_host = [], part_models.to_host
    rows = lambda x: {shard.device: shard.data.shape[0] for shard in x.addressable_shards}
    monkeypatch.setattr(part_models, "to_host", lambda x: held.append(rows(x)) or to_host(x))
    predicted = three.predict(video, "what is it?")
    assert held == [dict.fromkeys(here[1:4], 4)] * len(held)  # 7 rows, filled up to a power of two for each
    np.testing.assert_allclose(predicted, one.predict(video, "what is it?"), atol=1e-5)
    texts = ["a dog spins", "two", "yes", "no"]
    np.testing.assert_allclose(three.embed_text(texts), one.embed_text(texts), atol=1e-5)
    del held[:]
    written = three.decoder(predicted)
    assert held == [dict.fromkeys(here[1:4], 4)]
    assert written == one.decoder(predicted)
    assert three.decoder.candidates(predicted, 2) == [
        [(text, pytest.approx(score, abs=1e-4)) for text, score in row]
        for row in one.decoder.candidates(predicted, 2)
    ]
    drawn = three.decoder(predicted, temperature=1.0, seed=3)
    assert drawn == one.decoder(predicted, temperature=1.0, seed=3)
    assert three.with_weights(three.module).decode(predicted) == one.decode(predicted)
    copied = pickle.loads(pickle.dumps(three))
    np.testing.assert_allclose(copied.predict(video, "what is it?"), predicted, atol=1e-5)
    assert copied.decoder(predicted) == written
    del held[:]
    fewer = jepa_jax.load(trained, batch_size=3).predict(video, "what is it?")
    assert held == 2 * [{here[0]: 3}, {here[0]: 3}, {here[0]: 1}]  # encoded, then asked
    np.testing.assert_allclose(fewer, predicted, atol=1e-5)
    for wrong in ({"devices": []}, {"batch_size": 0}):
        with pytest.raises(flags.UsageError, match=next(iter(wrong))):
            jepa_jax.load(trained, **wrong)


def test_of_the_model_the_y_encoder_alone_stays_in_memory(trained, tmp_path, monkeypatch):
    load, loaded, kept = inference.load, [], []
    monkeypatch.setattr(inference, "load", lambda of: loaded.append(weakref.ref(model := load(of))) or model)
    look = lambda config, run, y_encoder, workdir: kept.append((loaded[0](), jax.tree.leaves(y_encoder))) or 0
    monkeypatch.setattr(train_decoder, "train", look)
    assert train(trained, f"--workdir={tmp_path}") == 0
    [(model, y_encoder)] = kept
    assert model is None
    assert all(isinstance(x, np.ndarray) for x in y_encoder)


def test_stopped_and_started_again_it_ends_with_the_same_numbers(trained, tmp_path, monkeypatch, capsys):
    look = loop.StopFlag.look
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    steps = itertools.count(1)

    def interrupt(stop):
        if next(steps) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return look(stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.StopFlag, "look", interrupt)
        assert train(trained, f"--workdir={tmp_path}") == 128 + signal.SIGTERM
    assert "SIGTERM: saved step 7" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert train(trained, f"--workdir={tmp_path}") == 0
    assert "resuming from step 7 of 20" in capsys.readouterr().out
    assert losses(tmp_path) == losses(trained / "decoder")


def test_what_it_started_from_may_be_gone_when_it_goes_on(trained, tmp_path):
    shutil.copytree(trained / "decoder", tmp_path / "decoder")
    file = tmp_path / "decoder" / "config.json"
    file.write_text(file.read_text().replace('"init": null', '"init": "/nowhere"'))
    assert train(trained, f"--workdir={tmp_path / 'decoder'}", "--config.init=/nowhere") == 0


def test_another_config_and_another_checkpoint_are_refused(trained, tmp_path, capsys):
    for argument, sentence in (
        ("--config.noise=0.9", "another config (noise is 0.3 there, 0.9 now): name another --workdir"),
        ("--config.run_step=9", f"run_step=9, but {trained} is step {RUN_STEP}"),
        ("--config.batch_size=12", "batch_size is 8 there, 12 now"),
        ("--config.nois=1", "did you mean noise?"),
        ("--config.llama.causal=false", "a decoder writes from left to right"),
        ("--config.max_length=1", "give at least 2"),
        ("--config.checkpoint.best_metric=recall_at_1", "a decoder's is its 'loss'"),
        ("--config.optim.warmup_steps=21", "warmup_steps=21 exceeds steps=20"),
    ):
        assert train(trained, argument) == 2, argument
        assert sentence in capsys.readouterr().err
    fresh = f"--workdir={tmp_path / 'new'}"
    for argument, sentence in (
        ("--config.batch_size=9", "batch_size=9 is not a multiple of the 8 devices"),
        ("--config.tokenizer=/nowhere", "tokenizer '/nowhere' cannot be loaded"),
        ("--config.llama.vocab_size=7", "vocab_size=7: raise it"),
        ("--config.pair_weights=(('poem',1.0),)", "gives no odds to any"),
        ("--config.init=/nowhere", "holds no converted weights"),
    ):
        assert train(trained, fresh, argument) == 2, argument
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_decoder_of_another_checkpoint_is_not_used(trained, tmp_path):
    copy = tmp_path / "decoder"
    shutil.copytree(trained / "decoder", copy)
    config = dataclasses.replace(tiny_decoder, run_step=4)
    (copy / "config.json").write_text(flags.config_to_json(config))
    model = jepa_jax.load(trained, decoder=copy)
    with pytest.raises(
        flags.UsageError, match=r"decodes the embeddings of step 4.*load WORKDIR/checkpoints/4"
    ):
        model.decode(np.ones((1, run_config.model.embedding_size)))


def test_a_decoder_of_another_run_is_not_used_nor_trained_on(trained, tmp_path, capsys):
    """As after the run was trained again beneath it, to the same step."""
    config = jepa_jax.load(trained).config
    state = tiny.state(config)[1]
    state.trained["y_encoder"] = jax.tree.map(lambda x: 2 * x, state.trained["y_encoder"])
    again = write_run(tmp_path / "again", config, state)
    assert train(again, f"--workdir={trained / 'decoder'}") == 2
    assert "decodes the embeddings of another run" in capsys.readouterr().err
    model = jepa_jax.load(again, decoder=trained / "decoder")
    with pytest.raises(flags.UsageError, match="decodes the embeddings of another run"):
        model.decode(np.ones((1, run_config.model.embedding_size)))


def test_without_a_decoder_the_command_that_makes_one_is_named(trained, tmp_path):
    for name in ("config.json", "checkpoints"):
        (tmp_path / name).symlink_to(trained / name)
    model = jepa_jax.load(tmp_path)
    assert not model.has_decoder
    command = f"python -m jepa_jax.train_decoder --checkpoint={tmp_path}"
    with pytest.raises(flags.UsageError, match=command):
        model.caption(np.zeros((1, 4, 32, 32, 3), np.uint8))


def test_commands_take_a_decoder_that_is_elsewhere(monkeypatch):
    asked = []

    def load(*given, **_):
        asked.append(given)
        raise flags.UsageError("seen")

    monkeypatch.setattr(inference, "load", load)
    commands = (
        (stream.main, "--video=x"),
        (latency.main, "--rounds=1"),
        (evaluate.main, "--task=decode"),
        (evaluate.main, "--split=validation"),
        (evaluate.main, "--task=selective", "--texts=decoder"),
    )
    for main, *more in commands:
        assert flags.run(main, ["--checkpoint=run", "--decoder=there", *more]) == 2
    assert asked == [("run", "there")] * len(commands)


def test_a_folder_that_is_no_decoder_is_refused_by_its_name(trained, tmp_path):
    for folder, sentence in (
        (tmp_path / "misspelt", "misspelt holds no decoder: give the --workdir"),
        (tmp_path, f"{tmp_path} holds no decoder"),
        (trained, f"{trained}/config.json is that of a run: give the folder of a decoder"),
    ):
        with pytest.raises(flags.UsageError, match=sentence):
            jepa_jax.load(trained, decoder=folder)


def test_the_task_that_writes_needs_a_decoder(trained, tmp_path, capsys):
    for name in ("config.json", "checkpoints"):
        (tmp_path / name).symlink_to(trained / name)
    assert flags.run(evaluate.main, [f"--checkpoint={tmp_path}", "--task=decode"]) == 2
    assert f"jepa_jax.train_decoder --checkpoint={tmp_path}" in capsys.readouterr().err


def test_without_splits_one_is_to_be_named(trained, capsys):
    assert flags.run(evaluate.main, [f"--checkpoint={trained}"]) == 2
    assert "eval.splits are none: name one with --split" in capsys.readouterr().err


def test_settings_out_of_range_are_refused(trained):
    write = jepa_jax.load(trained).decoder
    x = np.ones((1, run_config.model.embedding_size), np.float32)
    for settings, sentence in (
        ({"beams": 0}, "beams=0 must be a whole number between 1 and half the vocabulary, 512"),
        ({"beams": 2.0}, "beams=2.0 must be a whole number between 1 and half the vocabulary, 512"),
        ({"temperature": 1.0, "seed": -1}, "seed=-1 must be a whole number between 0 and 4294967295"),
        ({"temperature": -1.0}, "temperature=-1.0 must be 0 or more"),
        ({"temperature": 1e39}, "no more than a float32 holds"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0 must be a whole number from 1 on"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k=2.5 must be a whole number from 1 on"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5 must be over 0 and at most 1"),
        ({"temperature": 1.0, "beams": 2}, "give one"),
        ({"top_k": 3}, "give a temperature over 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            write(x, **settings)


def test_drawn_texts_depend_on_the_seed_and_not_on_the_batch(trained):
    model = jepa_jax.load(trained)
    x = tiny.normal(5, run_config.model.embedding_size)
    settings = {"temperature": 2.0, "top_k": 500, "top_p": 0.999}
    texts = model.decode(x, **settings)
    assert model.decode(x, **settings) == texts
    assert model.decode(x[:2], **settings) == texts[:2]
    assert model.decode(x, seed=1, **settings) != texts
    assert len(set(texts)) > 1
    assert model.decode(x, beams=3) != model.decode(x[::-1], beams=3)


def test_of_what_the_decoder_offers_the_nearest_is_taken(trained):
    model = jepa_jax.load(trained)
    x = tiny.normal(6, run_config.model.embedding_size)
    offered = model.decoder.candidates(x, CANDIDATES)
    assert max(map(len, offered)) > 1
    chosen = model.decode(x)
    for row, pairs, text, beam in zip(x, offered, chosen, model.decode(x, beams=CANDIDATES), strict=True):
        texts, scores = zip(*pairs, strict=True)
        assert texts[0] == beam or not beam
        assert len(set(texts)) == len(texts) <= CANDIDATES
        assert all(score < 0 for score in scores)
        value = model.embed_text(list(texts)) @ row + LIKELIHOOD_WEIGHT * np.array(scores)
        assert text == texts[np.argmax(value)]
    assert chosen != model.decode(x, beams=CANDIDATES)
    assert chosen != [pairs[0][0] for pairs in offered]


def test_a_run_starts_from_a_converted_language_model(tmp_path):
    config = parts.LanguageModelConfig(llama=tiny_decoder.llama)
    arrays = weights(config, "y_decoder")
    folder = write(tmp_path / "part", arrays, "y_decoder", config)
    part = train_decoder.open_init(dataclasses.replace(tiny_decoder, init=str(folder)))
    state = jax.eval_shape(lambda: train_decoder.init_state(tiny_decoder, 16)[1])
    filled = parts.flatten(parts.filled(state.trained["language_model"], part.read()))
    assert filled.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(filled[name], x)
    wider = dataclasses.replace(tiny_decoder, init=str(folder), head="own")
    with pytest.raises(ValueError, match="is another model: head is 'tied' there and 'own' in this run"):
        train_decoder.open_init(wider)
    other = write(tmp_path / "other", weights(tiny_decoder.llama), "predictor", tiny_decoder.llama)
    with pytest.raises(ValueError, match="holds a predictor: convert with --part=y_decoder"):
        train_decoder.open_init(dataclasses.replace(tiny_decoder, init=str(other)))


def test_noise_is_as_long_as_told_and_leaves_unit_vectors():
    x = tiny.normal(1, 509)
    x = np.repeat(x / np.linalg.norm(x), 211, axis=0)
    for noise in (0.0, 0.5, 2.0):
        y = np.asarray(train_decoder.disturb(jnp.asarray(x), noise, jax.random.key(0)))
        np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, rtol=1e-5)
        assert np.mean(np.sum(x * y, axis=1)) == pytest.approx((1 + noise**2) ** -0.5, abs=0.01)


def test_the_loss_is_that_of_the_text_alone():
    """By NumPy, and whatever stands where padding is."""
    graphdef, params = nnx.split(tiny.filled(lambda: YDecoder(tiny_decoder, 16, rngs=nnx.Rngs(0))))
    text = np.random.default_rng(0).integers(0, 1024, (3, 7))
    mask = tiny.right_padded([7, 2, 5], 7)
    x = tiny.normal(3, 16)
    loss = jax.jit(train_decoder.loss_fn, static_argnums=1)
    found = loss(params, graphdef, x, text, mask)
    logits = np.asarray(tiny.run(nnx.merge(graphdef, params), x, text), np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(logits, text[..., None], axis=-1)[..., 0][mask].mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(loss(params, graphdef, x, np.where(mask, text, 3), mask)) == pytest.approx(float(found))


# Fields that show in the first batch, in the parameters' shapes, or in the program of a step.
BATCH = {"batch_size": 16, "seed": 3, "max_length": 5, "pair_weights": (("how_many", 1.0),)}
STEP = {
    "llama": dataclasses.replace(tiny_decoder.llama, layers=3),
    "head": "own",
    "prefix_tokens": 2,
    "noise": 0.7,
    "compute_dtype": "bfloat16",
    "remat": "layer",
    "scan_layers": False,
    "optim": c.OptimizerConfig(weight_decay=0.1),
    "steps": 30,
}
ELSEWHERE = {
    "name": "RunLog's bar, as a run's",
    "tokenizer": "test_another_config_and_another_checkpoint_are_refused",
    "init": "test_a_run_starts_from_a_converted_language_model",
    "checkpoint": "test_another_config_and_another_checkpoint_are_refused",
    "run_step": "test_a_decoder_of_another_checkpoint_is_not_used",
    "log_every": "run_fields_test.py, for RunLog is a run's",
}


def test_no_field_is_forgotten():
    assert BATCH.keys() | STEP.keys() | ELSEWHERE.keys() == {
        f.name for f in dataclasses.fields(c.DecoderConfig)
    }


@pytest.fixture(scope="module")
def model(run):
    return jepa_jax.load(run)


@pytest.mark.parametrize(("name", "value"), BATCH.items(), ids=BATCH)
def test_every_field_of_the_batch(name, value, model):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))

    def first_batch(**changes):
        config = dataclasses.replace(tiny_decoder, **changes)
        return train_decoder.open_data(config, model.config, mesh, BadRecords(0.0))[0][0].arrays

    first, again, other = first_batch(), first_batch(), first_batch(**{name: value})
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    ends = other["text"][np.arange(len(other["text"])), other["text_mask"].sum(axis=1) - 1]
    full = other["text_mask"].all(axis=1)
    assert (ends[~full] == load_decoder_tokenizer(tiny_decoder).end_id).all()
    assert (~full).any()


def program(config: c.DecoderConfig, y_encoder) -> str:
    graphdef, state = jax.eval_shape(lambda: train_decoder.init_state(config, 16))
    batch = {"target": np.ones((8, 6), np.int32), "text": np.ones((8, 7), np.int32)}
    batch |= {f"{name}_mask": x > 0 for name, x in batch.items()}
    step = lambda state, batch: train_decoder.train_step(state, batch, y_encoder, graphdef, config)
    return str(jax.make_jaxpr(step)(state, batch))


def test_every_field_of_the_step(model):
    y_encoder = model.module.y_encoder
    plain = program(tiny_decoder, y_encoder)
    assert program(dataclasses.replace(tiny_decoder, batch_size=16), y_encoder) == plain
    for name, value in STEP.items():
        assert program(dataclasses.replace(tiny_decoder, **{name: value}), y_encoder) != plain, name


def test_a_decoder_is_one(run, tmp_path):
    assert not decoders.is_decoder(tmp_path)
    (tmp_path / "config.json").write_text(flags.config_to_json(dataclasses.replace(tiny_decoder, run_step=5)))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(flags.UsageError, match="has no checkpoint yet"):
        decoders.load_decoder(tmp_path, 16, run_step=5, y_encoder="", batch_size=3)
