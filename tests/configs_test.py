"""The run configurations that ship: they load, and say what they claim."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jepa_jax import flags, train_decoder
from jepa_jax.config import (
    BertConfig,
    Config,
    DecoderConfig,
    InitConfig,
    LearningRateFactors,
    LlamaConfig,
    ModelConfig,
)
from jepa_jax.data.tokenizer import SHIPPED
from jepa_jax.train import main

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
FILES = sorted(file.name for file in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_a_config_opens_with_its_command_and_what_to_expect(name):
    decoder = name.endswith("decoder.py")
    config = flags.load_config(f"configs/{name}", DecoderConfig if decoder else Config)
    text = (FOLDER / name).read_text()
    head = text.split('"""')[1]
    command = "benchmark" if name.startswith("benchmark") else "train_decoder" if decoder else "train"
    assert f"python -m jepa_jax.{command} --config=configs/{name}" in head
    assert "Expected" in head
    assert config.name == name.removesuffix(".py")


def test_a_folder_of_one_s_own_needs_nothing_that_does_not_ship():
    config = flags.load_config("configs/my_videos.py")
    assert config.data.path == "my_videos"
    assert config.init == InitConfig()
    for name in (config.data.query_tokenizer, config.data.target_tokenizer):
        assert SHIPPED[name].is_dir()
    assert config.checkpoint.best_metric == "loss"


def test_the_paper_s_first_stage():
    config = flags.load_config("configs/pretrain_images.py")
    assert dataclasses.replace(config.model, remat="layer") == ModelConfig.paper()
    assert None not in (config.init.x_encoder, config.init.predictor, config.init.y_encoder)
    assert (config.batch_size, config.steps, config.data.frames) == (24_576, 100_000, 1)
    assert (config.optim.learning_rate, config.optim.schedule) == (5e-5, "constant")
    assert (config.optim.factors.x_encoder, config.optim.factors.y_encoder) == (0.0, 0.05)
    assert (config.data.resize, config.model.x_encoder.image_size) == (292, 256)


@pytest.mark.parametrize(
    ("name", "batch", "steps", "frames", "x_encoder", "schedule", "before"),
    [
        ("pretrain_video", 12_288, 60_000, 8, 0.0, "constant", "pretrain_images"),
        ("pretrain_long_video", 4 * 3_072, 10_000, 32, 1.0, "constant", "pretrain_video"),
        ("finetune", 3_072, 83_000, 8, 0.0, "cosine", "pretrain_long_video"),
    ],
)
def test_the_paper_s_other_stages(name, batch, steps, frames, x_encoder, schedule, before):
    config = flags.load_config(f"configs/{name}.py")
    assert dataclasses.replace(config.model, remat="layer") == ModelConfig.paper()
    assert (config.batch_size, config.steps, config.data.frames) == (batch, steps, frames)
    assert (config.optim.learning_rate, config.optim.schedule) == (5e-5, schedule)
    assert (config.optim.factors.x_encoder, config.optim.factors.y_encoder) == (x_encoder, 0.05)
    assert config.init.model == f"runs/{before}"
    assert config.data.length_buckets[-1][1] == 512


def test_the_shape_of_the_comparison():
    config = flags.load_config("configs/benchmark_cpu.py")
    model = config.model
    assert (config.data.frames, model.x_encoder.image_size, config.batch_size) == (8, 128, 8)
    assert config.data.length_buckets == ((16, 32),)
    parts = (model.x_encoder, model.predictor, model.y_encoder)
    assert [(part.layers, part.width) for part in parts] == [(12, 384), (8, 512), (6, 256)]
    assert (model.compute_dtype, model.remat, model.scan_layers) == ("float32", "none", False)
    assert config.optim.factors == LearningRateFactors()


def test_the_open_run_needs_no_gated_weights():
    config = flags.load_config("configs/open.py")
    assert config.model.predictor == LlamaConfig.smollm2_135m(layers=8)
    assert config.model.y_encoder == BertConfig.all_minilm_l6_v2()
    named = " ".join((FOLDER / "open.py").read_text().split('"""')[1].split())
    assert "meta-llama" not in named
    assert "google/" not in named


def test_the_open_decoder_trains_in_the_memory_of_one_accelerator():
    """What the forward pass keeps for the backward pass, beside 3.3 GB of optimizer and model."""
    config = flags.load_config("configs/open_decoder.py", DecoderConfig)
    size, rows = flags.load_config("configs/open.py").model.embedding_size, config.batch_size
    graphdef, state = jax.eval_shape(lambda: train_decoder.init_state(config, size))
    texts = [jax.ShapeDtypeStruct((rows, config.max_length), dtype) for dtype in (jnp.int32, jnp.bool_)]

    def kept(params, *batch):
        return jax.vjp(lambda params: train_decoder.loss_fn(params, graphdef, *batch), params)[1]

    found = jax.eval_shape(kept, state.trained, jax.ShapeDtypeStruct((rows, size), jnp.float32), *texts)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found)) < 5e9


@pytest.mark.parametrize("name", ["open.py", "pretrain_images.py"])
def test_without_its_weights_a_run_says_how_to_make_them(name, tmp_path, capsys):
    arguments = [f"--config=configs/{name}", f"--workdir={tmp_path / 'run'}"]
    where = f"--config.init.x_encoder={tmp_path / 'nowhere'}"
    assert flags.run(main, [*arguments, where]) == 2
    captured = capsys.readouterr()
    assert "holds no converted weights" in captured.err
    assert "python -m weights_conversion --source=" in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_bert_with_fewer_positions_than_the_texts_is_refused():
    config = flags.load_config("configs/open.py")
    with pytest.raises(flags.UsageError, match=r"513 target tokens.*max_length=512"):
        flags.override(config, [("data.length_buckets", "((16, 513),)")])
