"""Useful work against the matrix products that the program itself holds."""

import dataclasses

import jax
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax.chips import CHIPS, find_chip
from jepa_jax.flops import model_flops
from jepa_jax.hlo import Program
from jepa_jax.step import train_step
from tests import tiny

TRAINED = c.LearningRateFactors(x_encoder=1.0, token_embedding=0.0)


def in_program(config: c.Config) -> float:
    """FLOPs of all matrix products of a compiled training step, per pair."""
    graphdef, state = tiny.state(config)
    batch = tiny.batch(config.batch_size, config.model)
    side = config.model.x_encoder.image_size
    batch["frames"] = np.zeros((config.batch_size, config.data.frames, side, side, 3), np.uint8)
    step = jax.jit(lambda s, b: train_step(s, b, graphdef, config))
    return Program(step.lower(state, batch).compile().as_text()).cost().flops / config.batch_size


@pytest.mark.parametrize(
    "factors",
    [
        TRAINED,
        c.LearningRateFactors(),
        c.LearningRateFactors(predictor=0.0, y_encoder=0.0),
        c.LearningRateFactors(heads=0.0, y_encoder=0.0),
        c.LearningRateFactors(heads=0.0, predictor=0.0),
    ],
)
@pytest.mark.parametrize("y_encoder", [tiny.y_encoder(window=100), tiny.bert()])
def test_all_matrix_products_of_a_step_are_counted(factors, y_encoder):
    """The tiny Gemma sees everything here, as XLA's path computes what a window then masks. The pools
    over tokens are products of the program and not of the count: under a hundredth."""
    model = tiny.model(y_encoder=y_encoder)
    optim = c.OptimConfig(factors=factors)
    config = tiny.run_config(model=model, optim=optim, batch_size=8, data=c.DataConfig(frames=4))
    counted = model_flops(config, tiny.QUERY_LENGTH, tiny.TARGET_LENGTH)
    np.testing.assert_allclose(sum(counted.values()), in_program(config), rtol=0.01)


def test_a_frozen_encoder_is_counted_once_and_shared_by_the_pairs_of_a_clip():
    config = tiny.run_config(optim=c.OptimConfig())
    once = model_flops(config, 7, 11)["x_encoder"]
    trained = dataclasses.replace(config, optim=c.OptimConfig(factors=TRAINED))
    # Frames have no gradient: of the patch embedding's three products there are two.
    patches = 2 * (8 // 2) * 49 * (2 * 5 * 5 * 3) * 66
    assert model_flops(trained, 7, 11)["x_encoder"] == 3 * once - patches
    shared = dataclasses.replace(config, data=c.DataConfig(pairs_per_clip=4))
    assert model_flops(shared, 7, 11)["x_encoder"] == once / 4


def test_a_window_is_work_for_what_it_sees():
    """Hand-counted: of 5 positions with a window of 1, the outer see 2 and the inner 3: 13 pairs."""
    narrow = tiny.run_config(model=tiny.model(y_encoder=tiny.y_encoder(window=1, full_every=9)))
    wide = tiny.run_config(model=tiny.model(y_encoder=tiny.y_encoder(window=9, full_every=9)))
    difference = model_flops(wide, 7, 5)["y_encoder"] - model_flops(narrow, 7, 5)["y_encoder"]
    inner = 3 * 16
    assert difference == pytest.approx(3 * (2 * 2 * inner * (25 - 13)) * 3)


def test_the_paper_s_model_by_hand():
    """Per token two FLOPs a parameter, and attention: 24 layers of 4 N D, 8 of 4 L 2,048."""
    config = c.Config(name="paper", model=c.ModelConfig.paper(), steps=1, batch_size=1)
    one = dataclasses.replace(config, data=c.DataConfig(frames=1, length_buckets=((1, 64),)))
    counted = model_flops(one, 1, 64)
    tokens = 256
    # Of ViT-L's parameters, all but norms and biases are matrices.
    matrices = 24 * (4 * 1024**2 + 2 * 1024 * 4096) + 1536 * 1024
    assert counted["x_encoder"] == 2 * tokens * matrices + 24 * 4 * tokens**2 * 1024
    assert matrices == pytest.approx(303_885_312, rel=0.002)
    blocks = 2 * 257 * 486_572_032 + 8 * 4 * 257**2 * 2048
    heads = 2 * 2 * 256 * 1024 * 2048 + 3 * 2 * 2048 * 1536
    assert counted["predictor"] == pytest.approx(3 * blocks + heads, rel=1e-4)


def test_chips_have_their_published_peaks():
    assert find_chip("TPU v5 lite").flops == 197e12
    assert find_chip("TPU v5").bandwidth == 2765e9
    assert find_chip("TPU v6 lite").network == 448e9
    assert find_chip("cpu") is None
    assert all(chip.source.startswith("https://") for chip in CHIPS)
    kinds = [kind for chip in CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
