"""Gradients in pieces are the gradients of the whole."""

import dataclasses
import functools

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from jepa_jax import config as c
from jepa_jax.sharding import make_mesh, shard_global_batch
from jepa_jax.state import abstract_state
from jepa_jax.step import embed, gradients_in_pieces, loss_fn
from tests import tiny

BATCH, PAIRS = 16, 2
# One with negatives, one without, and one that draws random numbers: to the rest they are all alike.
OBJECTIVES = ("info_nce", "l2", "sigreg")


def config_for(objective: str, *, x_encoder: float = 1.0, **changes) -> c.Config:
    loss = c.LossConfig(objective=objective, chunk=5)
    factors = c.LearningRateFactors(x_encoder=x_encoder, y_encoder=0.0 if loss.can_collapse else 1.0)
    model = tiny.model(y_projection=False, embedding_size=17) if loss.can_collapse else tiny.model()
    optim = c.OptimConfig(factors=factors)
    return tiny.run_config(loss=loss, model=model, optim=optim, batch_size=BATCH, **changes)


def gradient(function, config: c.Config, devices: int, fsdp: int = 1):
    """((loss, metrics), gradients) on so many devices."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    graphdef, template = abstract_state(config, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, template)
    step = jax.jit(functools.partial(function, config=config), static_argnames="graphdef")
    with jax.set_mesh(mesh):
        state = jax.device_put(tiny.state(config)[1], shardings)
        # Two texts a clip; as many clips as a mesh of 8 in 4 pieces takes.
        batch = shard_global_batch(tiny.batch(2 * PAIRS * BATCH, config.model, PAIRS), mesh)
        return jax.device_get(
            step(state.trained, state.frozen, graphdef=graphdef, batch=batch, key=jax.random.key(1))
        )


@functools.cache
def of_the_whole(config: c.Config):
    return gradient(jax.value_and_grad(loss_fn, has_aux=True), config, 1)


def assert_same(actual, expected) -> None:
    (loss, metrics), grads = actual
    (expected_loss, expected_metrics), expected_grads = expected
    tiny.assert_close(loss, expected_loss, 1e-5)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        atol = 1e-5 * abs(expected_loss)
        np.testing.assert_allclose(metrics[name], value, 1e-5, atol, err_msg=name)
    grads, expected_grads = tiny.parameters(grads), tiny.parameters(expected_grads)
    assert grads.keys() == expected_grads.keys()
    for name, value in expected_grads.items():
        error = tiny.relative_error(grads[name], value)
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("objective", "devices", "fsdp", "pieces"),
    [*((objective, 8, 2, 4) for objective in OBJECTIVES), ("info_nce", 1, 1, 2)],
)
def test_pieces_give_the_gradient_of_the_whole(objective, devices, fsdp, pieces):
    config = config_for(objective)
    split = dataclasses.replace(config, micro_batches=pieces)
    assert_same(gradient(gradients_in_pieces, split, devices, fsdp), of_the_whole(config))


def test_a_mesh_of_one_s_own_has_axes_of_any_name():
    """As a training loop of one's own may have: the batch is split, the parameters are whole."""
    config = config_for("info_nce", micro_batches=2)
    graphdef, state = tiny.state(config)
    batch = tiny.batch(2 * PAIRS * BATCH, config.model, PAIRS)
    step = jax.jit(functools.partial(gradients_in_pieces, config=config), static_argnames="graphdef")
    with jax.set_mesh(jax.make_mesh((2, 2), ("replica", "model"), axis_types=(AxisType.Auto,) * 2)):
        found = step(state.trained, state.frozen, graphdef=graphdef, batch=batch, key=jax.random.key(1))
    assert_same(jax.device_get(found), of_the_whole(dataclasses.replace(config, micro_batches=1)))


@pytest.mark.parametrize("keep", [True, False])
def test_features_of_a_frozen_encoder_are_the_same_kept_or_not(keep):
    config = config_for("info_nce", x_encoder=0.0)
    split = dataclasses.replace(config, micro_batches=4, keep_visual_tokens=keep)
    assert_same(gradient(gradients_in_pieces, split, 1), of_the_whole(config))


def test_pieces_of_visual_tokens_give_the_gradient_of_the_whole(monkeypatch):
    """As they are read from a cache, in place of frames."""
    made = tiny.batch

    def batch(*arguments):
        found = made(*arguments)
        clips = len(found.pop("frames"))
        return found | {"visual": tiny.normal(clips, 6, 66).astype(ml_dtypes.bfloat16)}

    monkeypatch.setattr(tiny, "batch", batch)
    config = config_for("info_nce", x_encoder=0.0)
    split = dataclasses.replace(config, micro_batches=4)
    whole = gradient(jax.value_and_grad(loss_fn, has_aux=True), config, 1)
    assert_same(gradient(gradients_in_pieces, split, 1), whole)


@pytest.mark.parametrize(("factor", "keep", "runs"), [(0.0, True, 1), (0.0, False, 2), (1.0, True, 2)])
def test_a_frozen_encoder_that_is_kept_runs_once(factor, keep, runs):
    """How often frames are normalised (which only the encoder does) tells how often it runs."""
    config = config_for("info_nce", x_encoder=factor, micro_batches=4, keep_visual_tokens=keep)
    graphdef, state = tiny.state(config)
    program = jax.make_jaxpr(
        lambda state, batch: gradients_in_pieces(
            state.trained, state.frozen, graphdef, batch, state.key, config
        )
    )(state, jax.tree.map(jax.numpy.asarray, tiny.batch(BATCH, config.model)))
    frames = [e for e in tiny.operations(program.jaxpr) if any(v.aval.dtype == np.uint8 for v in e.invars)]
    assert sum(e.primitive.name == "convert_element_type" for e in frames) == runs


def test_pieces_take_less_memory():
    """The compiler's plan for temporaries: an eighth of the clips at a time."""

    def temporary(function, pieces):
        config = dataclasses.replace(config_for("info_nce"), micro_batches=pieces, batch_size=64)
        graphdef, state = tiny.state(config)
        batch = jax.tree.map(jax.numpy.asarray, tiny.batch(64, config.model))
        step = jax.jit(functools.partial(function, config=config), static_argnames="graphdef")
        lowered = step.lower(state.trained, state.frozen, graphdef=graphdef, batch=batch, key=state.key)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    whole = temporary(jax.value_and_grad(loss_fn, has_aux=True), 1)
    assert temporary(gradients_in_pieces, 8) < 0.4 * whole


def test_plain_accumulation_would_be_noticed():
    """The mean of the pieces' own losses sees fewer negatives: another loss, another gradient."""
    config = config_for("info_nce")
    graphdef, state = tiny.state(config)
    batch = jax.tree.map(jax.numpy.asarray, tiny.batch(BATCH, config.model))
    half = jax.tree.map(lambda x: x[: len(x) // 2], batch)
    whole, part = (
        jax.jit(lambda s, b: loss_fn(s.trained, s.frozen, graphdef, b, s.key, config)[0])(state, b)
        for b in (batch, half)
    )
    assert part < whole - 0.1


@pytest.mark.parametrize("text", [tiny.bert(), tiny.y_encoder()], ids=["bert", "gemma"])
def test_a_step_sees_the_embeddings_that_the_model_gives_in_bfloat16(text):
    config = tiny.run_config(model=tiny.model(y_encoder=text, compute_dtype="bfloat16"), batch_size=BATCH)
    graphdef, state = tiny.state(config)
    batch = jax.tree.map(jax.numpy.asarray, tiny.batch(BATCH, config.model))

    def directly(trained, frozen, graphdef, batch):
        model = nnx.merge(graphdef, trained, frozen)
        predicted = model.predictor(model.encode_frames(batch["frames"]), batch["query"], batch["query_mask"])
        return predicted, model.y_encoder(batch["target"], batch["target_mask"])

    functions = functools.partial(embed, config=config), directly
    in_a_step, alone = (
        jax.jit(f, static_argnums=2)(state.trained, state.frozen, graphdef, batch) for f in functions
    )
    for found, expected in zip(in_a_step, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("micro_batches", "batch_size"), [(3, 16), (32, 16)])
def test_pieces_that_do_not_divide_the_batch_are_refused(micro_batches, batch_size):
    with pytest.raises(ValueError, match=f"batch_size=16 is not a multiple of micro_batches={micro_batches}"):
        tiny.run_config(micro_batches=micro_batches, batch_size=batch_size)
