"""Counted FLOPs against the matrix products of the real step, and against figures worked by hand."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax.data import synthetic
from jepa_jax.flops import model_flops, visible_pairs, x_encoder_forward
from jepa_jax.models.attention import attention_mask
from jepa_jax.step import train_step
from tests import tiny

BATCH, FRAMES, QUERY, TARGET = 5, 6, 7, 11


def products(jaxpr) -> int:
    """FLOPs of all matrix products of a program, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracting = equation.params["dimension_numbers"][0][0]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
            continue
        called = [
            products(getattr(value, "jaxpr", value))
            for group in equation.params.values()
            for value in (group if isinstance(group, tuple | list) else [group])
            if hasattr(getattr(value, "jaxpr", value), "eqns")
        ]
        if equation.primitive.name == "cond":
            total += max(called)  # branches for other platforms do the same work
        elif equation.primitive.name == "while":
            assert not sum(called), "a loop of unknown length"
        else:
            total += equation.params.get("length", 1) * sum(called)
    return total


def batch(config: c.Config, pairs: int) -> dict[str, np.ndarray]:
    """Of the shapes that `model_flops` is told."""
    n = config.batch_size * pairs
    made = synthetic.batch(config, 0)
    return {
        **{name: made[name] for name in ("frames", "visual") if name in made},
        "query": np.zeros((n, QUERY), np.int32),
        "query_mask": np.ones((n, QUERY), bool),
        "target": np.zeros((n, TARGET), np.int32),
        "target_mask": np.ones((n, TARGET), bool),
        "target_id": np.arange(n, dtype=np.int32),
    }


def run_config(factors: dict[str, float], model: c.ModelConfig | None = None, **changes) -> c.Config:
    # A window that reaches everything: the step computes masked logits too, which are of no use.
    model = model or tiny.model(y_encoder=tiny.y_encoder(window=TARGET))
    off = dict.fromkeys(("x_encoder", "predictor", "token_embedding", "y_encoder", "heads"), 0.0)
    data = c.DataConfig(frames=FRAMES, pairs_per_clip=changes.pop("pairs", 1))
    optim = c.OptimConfig(factors=c.LearningRateFactors(**(off | factors)))
    return tiny.run_config(model=model, optim=optim, data=data, batch_size=BATCH, **changes)


def counted(config: c.Config) -> int:
    """Of the real training step."""
    graphdef, state = tiny.state(config)
    step = lambda s, b: train_step(s, b, graphdef, config)
    return products(jax.make_jaxpr(step)(state, batch(config, config.data.pairs_per_clip)).jaxpr)


def expected(config: c.Config) -> float:
    return config.batch_size * sum(model_flops(config, QUERY, TARGET).values())


PARTS = [f.name for f in dataclasses.fields(c.LearningRateFactors)]
PAPER = {"predictor": 1.0, "y_encoder": 0.05, "heads": 1.0}


@pytest.mark.parametrize(
    "trained",
    [s for n in (1, 2) for s in itertools.combinations(PARTS, n)] + [tuple(PAPER), tuple(PARTS)],
    ids="+".join,
)
def test_the_step_has_exactly_these_products(trained):
    config = run_config(dict.fromkeys(trained, 1.0))
    assert counted(config) == expected(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"pairs": 3},
        {"model": tiny.model(y_encoder=tiny.bert())},
        {"model": tiny.model(y_encoder=dataclasses.replace(tiny.bert(), pool="first"))},
        {"model": tiny.model(y_encoder=tiny.y_encoder(window=TARGET, dense_widths=()))},
        {"model": tiny.model(y_encoder=tiny.bert(), y_projection=False, embedding_size=57)},
        {"loss": c.LossConfig(objective="vicreg")},
        {"loss": c.LossConfig(objective="sigreg", sigreg_directions=13)},
    ],
    ids=["pairs", "bert", "first", "no_dense", "no_projection", "vicreg", "sigreg"],
)
def test_other_models_and_objectives(changes):
    config = run_config(PAPER, **changes)
    assert counted(config) == expected(config)


def test_what_is_computed_twice_counts_once():
    """Rematerialised layers and the logits of sigmoid, a chunk at a time."""
    base = run_config(PAPER)
    remat = dataclasses.replace(base, model=dataclasses.replace(base.model, remat="layer", scan_layers=True))
    assert expected(remat) == expected(base) < counted(remat)
    sigmoid = run_config(PAPER, loss=c.LossConfig(objective="sigmoid"))
    assert expected(sigmoid) == expected(base)
    assert counted(sigmoid) == expected(sigmoid) + 2 * BATCH**2 * sigmoid.model.embedding_size


def test_visual_tokens_that_are_read_cost_no_encoder():
    config = run_config(PAPER)
    cached = dataclasses.replace(config, data=dataclasses.replace(config.data, features="somewhere"))
    found, before = (model_flops(run, QUERY, TARGET) for run in (cached, config))
    assert found == before | {"x_encoder": 0}
    assert before["x_encoder"] > 0
    assert counted(cached) == expected(cached)


def test_a_still_image_fills_a_tubelet():
    config = run_config(PAPER)
    still = dataclasses.replace(config, data=dataclasses.replace(config.data, frames=1))
    assert counted(still) == expected(still)
    assert (
        model_flops(still, QUERY, TARGET)["x_encoder"] < model_flops(config, QUERY, TARGET)["x_encoder"] / 3
    )


@pytest.mark.parametrize("window", [None, 0, 1, 4, 12, 13, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_visible_pairs_are_those_of_the_mask(window, causal):
    length = 13
    mask = attention_mask(length, window=window, causal=causal)
    seen = np.ones((1, length, length), bool) if mask is None else np.asarray(mask)
    assert visible_pairs(length, window=window, causal=causal) == seen.sum()


def test_what_no_query_sees_is_of_no_use():
    wide = run_config(PAPER)
    narrow = run_config(PAPER, tiny.model(y_encoder=tiny.y_encoder(window=4)))
    # Two sliding layers of three, 3 heads of 16; 42 of 121 pairs lie further apart than 4.
    saved = 2 * 4 * (121 - visible_pairs(11, window=4)) * 3 * 16
    assert visible_pairs(11, window=4) == 11 + 2 * (10 + 9 + 8 + 7)
    difference = expected(wide) - expected(narrow)
    assert difference == BATCH * 3 * saved  # forward and backward


def test_vit_l_by_hand():
    """24 layers of 12 x 1024^2 weights and the patches' 1536 x 1024, at 2,048 tokens of 16 frames."""
    found = x_encoder_forward(c.XEncoderConfig.vit_l(), frames=16)
    assert found["patches"] == 2 * 2048 * 1_572_864
    assert found["projections"] == 2 * 2048 * 301_989_888
    assert found["attention"] == 412_316_860_416
    # Its 303.885 million parameters, biases and gains too, come to two FLOPs a token each.
    approximate = 2 * 303.885e6 * 2048
    assert abs(found["patches"] + found["projections"] - approximate) < 0.002 * approximate


def test_the_paper_s_step_by_hand():
    """Frozen ViT-L, eight Llama layers of 60,817,408 weights, EmbeddingGemma, 32 and 128 tokens."""
    config = c.Config(
        name="paper",
        model=c.ModelConfig.paper(),
        data=c.DataConfig(frames=16, length_buckets=((32, 128),)),
        steps=1,
        batch_size=1024,
    )
    found = model_flops(config, 32, 128)
    assert found["x_encoder"] == sum(x_encoder_forward(config.model.x_encoder, 16).values())
    length = 2048 + 32
    blocks = 3 * 2 * 8 * 60_817_408 * length
    attention = 3 * 8 * 4 * length**2 * 2048
    # No gradient goes below the visual projection: the X-Encoder is frozen.
    projections = 2 * 2 * 2048 * 1024 * 2048 + 3 * 2 * 2048 * 1536
    pool = 2 * 2 * length * 2048
    assert found["predictor"] == blocks + attention + projections + pool
    # 24 layers of 768 x 256 x (3 + 1 + 1 + 3) and 3 x 768 x 1152 weights; the window covers 128 tokens.
    layers = 24 * (2 * 128 * 4_227_072 + 4 * 128**2 * 3 * 256)
    heads = 2 * (768 * 3072 + 3072 * 768 + 768 * 1536)
    assert found["y_encoder"] == 3 * (layers + heads) + 2 * 2 * 128 * 768
    assert found["loss"] == 3 * 2 * 1024 * 1536
