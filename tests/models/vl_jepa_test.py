"""The three parts together: unit vectors, how they run, and which of their parameters train."""

import dataclasses
import pickle
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.config import LearningRateFactors, LossConfig, OptimConfig, Remat
from jepa_jax.models.vl_jepa import VLJEPA, is_trained, normalise_frames, part_of, unit
from jepa_jax.step import loss_fn, train_step
from tests import tiny

PARTS = tuple(f.name for f in dataclasses.fields(LearningRateFactors))


def make(**changes):
    return lambda: VLJEPA(tiny.model(**changes), LossConfig(), rngs=nnx.Rngs(0))


# The part of every parameter.
PART_OF = {
    tiny.names(path): part_of(path)
    for path, _ in jax.tree_util.tree_flatten_with_path(nnx.state(nnx.eval_shape(make())))[0]
}


def embed(model: VLJEPA, batch):
    """S^_Y and S_Y of a batch."""
    visual = model.encode_frames(batch["frames"])
    predicted = model.predict(visual, batch["query"], batch["query_mask"])
    return predicted, model.embed_text(batch["target"], batch["target_mask"])


def score(model: VLJEPA, batch):
    """A smooth function of both embeddings that no symmetry makes flat."""
    predicted, target = embed(model, batch)
    return jnp.sum(predicted * target * jnp.arange(1.0, 24.0))


def config_with(**factors):
    """A run with these learning-rate factors."""
    optim = OptimConfig(learning_rate=0.01, factors=LearningRateFactors(**factors))
    return tiny.run_config(optim=optim)


def test_two_models_of_one_configuration_are_one_to_the_compiler():
    """Equal graphs, so that what was compiled for one serves the other, in another process too."""
    first, second = (nnx.graphdef(nnx.eval_shape(make())) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first


def test_scan_and_remat_change_neither_values_nor_gradients():
    batch = tiny.batch()

    def run(**flags):
        value, grads = jax.jit(jax.value_and_grad(score))(tiny.filled(make(**flags)), batch)
        grads = tiny.parameters(grads)
        assert grads.pop(("log_logit_scale",)) == 0, "embeddings do not depend on the temperature"
        return value, grads

    value, grads = run(scan_layers=False, remat="none")
    for scan, remat in [(False, "layer"), *((True, remat) for remat in get_args(Remat))]:
        other_value, other_grads = run(scan_layers=scan, remat=remat)
        tiny.assert_close(other_value, value, 1e-5)
        assert other_grads.keys() == grads.keys()
        for name, grad in grads.items():
            tiny.assert_close(other_grads[name], grad, 1e-5)


def test_embeddings_are_float32_unit_vectors_and_bfloat16_compute_stays_close():
    batch = tiny.batch(5)
    exact = jax.jit(embed)(tiny.filled(make()), batch)
    rounded = jax.jit(embed)(tiny.filled(make(compute_dtype="bfloat16")), batch)
    for x in (*exact, *rounded):
        assert x.shape == (5, 23)
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, atol=1e-6)
    for a, b in zip(exact, rounded, strict=True):
        cosine = np.sum(np.asarray(a) * np.asarray(b), axis=-1)
        assert (cosine > 0.99).all()
        assert (cosine < 1 - 1e-6).all(), "bfloat16 was not used"


def test_float16_is_refused():
    """Gemma 3's activations overflow it."""
    with pytest.raises(ValueError, match="compute_dtype"):
        tiny.model(compute_dtype="float16")


def test_a_zero_vector_stays_zero_with_a_finite_gradient():
    x = np.stack([np.zeros(7), np.arange(7.0)]).astype(np.float32)
    value, grad = unit(jnp.asarray(x)), jax.grad(lambda x: unit(x)[:, 1].sum())(x)
    np.testing.assert_array_equal(value[0], 0)
    tiny.assert_close(value[1], x[1] / np.linalg.norm(x[1]), 1e-6)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("size", [1e-5, 1.0, 1e18, 1e30, 3e38])
def test_vectors_of_any_size_become_unit_vectors(size):
    x = np.random.default_rng(0).uniform(-1, 1, (3, 7))
    by = np.random.default_rng(1).normal(size=x.shape)
    # So that the gradient, which shrinks as the vector grows, keeps float32's digits.
    weight = min(size, 1e30)
    value, back = jax.vjp(unit, jnp.asarray(x * size, jnp.float32))
    gradient = back(jnp.asarray(by * weight, jnp.float32))[0]
    length = np.linalg.norm(x, axis=1, keepdims=True)
    exact = x / length
    tiny.assert_close(value, exact, 1e-6)
    projected = (by - exact * (by * exact).sum(1, keepdims=True)) / length
    tiny.assert_close(np.float64(gradient) * (size / weight), projected, 1e-5)


@pytest.mark.parametrize("size", [np.inf, np.nan])
def test_what_is_not_finite_stays_so(size):
    """The run is stopped by it."""
    assert not np.isfinite(unit(jnp.asarray([1.0, size]))).any()


def test_frames_are_normalised_on_the_device_with_imagenet_s_constants():
    frames = tiny.pixels(2, 3, 5, 7, 3)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    tiny.assert_close(normalise_frames(frames), (frames / 255.0 - mean) / std, 1e-6)
    model = tiny.filled(make())
    batch = tiny.batch()
    expected = tiny.run(model.x_encoder, normalise_frames(batch["frames"]))
    actual = jax.jit(lambda m, x: m.encode_frames(x))(model, batch["frames"])
    tiny.assert_close(actual, expected, 1e-6)


def test_every_parameter_belongs_to_a_part_and_every_part_has_parameters():
    found = {part: {name for name in PART_OF if PART_OF[name] == part} for part in PARTS}
    assert set(PART_OF.values()) <= set(PARTS)
    assert all(found.values())
    assert {p[:2] for p in found["heads"]} == {
        ("predictor", "visual_projection"),
        ("predictor", "output_projection"),
        ("y_encoder", "output_projection"),
        ("log_logit_scale",),
    }
    assert found["token_embedding"] == {("predictor", "token_embedding")}
    assert {p[0] for p in found["x_encoder"]} == {"x_encoder"}
    assert {p[:2] for p in found["predictor"]} == {("predictor", "llama")}
    # The pretrained Dense heads and text embedding learn with the backbone, at its rate.
    assert {p[1] for p in found["y_encoder"]} == {"blocks", "norm", "dense", "token_embedding"}


@pytest.mark.parametrize("frozen", PARTS)
def test_a_frozen_part_gets_no_gradient_and_no_moments(frozen):
    config = config_with(**{part: float(part != frozen) for part in PARTS})
    graphdef, state = tiny.state(config)
    trained, kept = tiny.parameters(state.trained), tiny.parameters(state.frozen)
    assert {PART_OF[name] for name in kept} == {frozen}
    assert {PART_OF[name] for name in trained} == set(PARTS) - {frozen}
    assert trained.keys() | kept.keys() == PART_OF.keys()
    # Adam's two moments of every trained parameter, and nothing else but counters.
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.dtype != jnp.int32]
    assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in trained.values()])
    grads = jax.eval_shape(
        lambda t, f, batch: jax.grad(loss_fn, has_aux=True)(t, f, graphdef, batch, state.key, config)[0],
        *(state.trained, state.frozen, tiny.batch()),
    )
    assert tiny.parameters(grads).keys() == trained.keys()


def test_a_step_moves_every_trained_parameter_and_no_frozen_one():
    """The gradient flows into a trained X-Encoder, to its first layer."""
    config = config_with(x_encoder=1.0, predictor=0.0, token_embedding=1.0)
    graphdef, state = tiny.state(config)
    after, _ = jax.jit(train_step, static_argnames=("graphdef", "config"))(
        state, tiny.batch(), graphdef=graphdef, config=config
    )
    assert ("x_encoder", "patch_embedding", "kernel") in tiny.parameters(after.trained)
    for name, x in tiny.parameters(after.trained).items():
        assert (x != tiny.parameters(state.trained)[name]).any(), name
    for name, x in tiny.parameters(after.frozen).items():
        np.testing.assert_array_equal(x, tiny.parameters(state.frozen)[name])


def test_by_default_the_x_encoder_and_the_token_embedding_are_frozen():
    factors = LearningRateFactors()
    assert {part for part in PARTS if not getattr(factors, part)} == {"x_encoder", "token_embedding"}
    assert factors.y_encoder == 0.05
    assert factors.heads == factors.predictor == 1.0


@pytest.mark.parametrize("learnable", [True, False])
def test_the_temperature_trains_only_if_learnable(learnable):
    trained = is_trained(LearningRateFactors(), LossConfig(learnable_temperature=learnable))
    assert trained(("log_logit_scale",), None) is learnable
    assert trained(("predictor", "output_projection", "kernel"), None)


@pytest.fixture(scope="module")
def fresh():
    """Fresh parameters of seeds 0, 0 and 1."""

    @jax.jit
    def start(seed):
        return nnx.state(VLJEPA(tiny.model(), LossConfig(), rngs=nnx.Rngs(jax.random.key(seed))))

    return [tiny.parameters(start(seed)) for seed in (0, 0, 1)]


def test_every_matrix_of_every_layer_starts_from_a_draw_of_its_own(fresh):
    first, again, other = fresh
    matrices = [name for name in first if name[-1] in ("kernel", "token_embedding")]
    draws = []
    for name in matrices:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any(), name
        layers = first[name] if "stacked" in name else first[name][None]
        # The first values over the scale: equal only where the random numbers are.
        draws += [tuple(np.round(x.ravel()[:5] / x.std(), 3)) for x in np.asarray(layers)]
    assert len(set(draws)) == len(draws)


def test_a_fresh_model_keeps_activations_at_1_and_adds_little_in_each_block(fresh):
    """Matrices by their fan-in; what a block adds to the stream by (2 layers) ** -0.5, in Gemma's
    blocks through the gain of the norm after it."""
    layers = {"x_encoder": 2, "predictor": 2, "y_encoder": 3}
    for name, x in fresh[0].items():
        gain = (2 * layers[name[0]]) ** -0.5 if name[0] in layers else None
        if name[-1] == "token_embedding":
            np.testing.assert_allclose(np.std(x), x.shape[-1] ** -0.5, rtol=0.05)
        elif name[-1] == "kernel":
            adds = name[-2] in ("out", "down") and name[0] != "y_encoder"
            expected = x.shape[-2] ** -0.5 * (gain if adds else 1.0)
            np.testing.assert_allclose(np.std(x), expected, rtol=0.05, err_msg=str(name))
        elif name[-1] == "bias":
            np.testing.assert_array_equal(x, 0)
        elif name[-1] == "scale":
            offset = 1.0 if name[0] == "y_encoder" else 0.0
            start = gain if name[-2].startswith("norm_after") else 1.0
            np.testing.assert_allclose(x + offset, start, rtol=1e-6, err_msg=str(name))


def test_pairs_of_one_clip_share_its_visual_tokens():
    """The loss is the one of a batch that holds the clip once for each of them."""
    config = tiny.run_config()
    graphdef, state = tiny.state(config)
    batch = jax.tree.map(jnp.asarray, tiny.batch(6, pairs=3))
    apart = batch | {"frames": jnp.repeat(batch["frames"], 3, axis=0)}
    loss = jax.jit(
        lambda state, batch: loss_fn(state.trained, state.frozen, graphdef, batch, state.key, config)[0]
    )
    assert batch["frames"].shape[0] == 2
    tiny.assert_close(loss(state, batch), loss(state, apart), 1e-6)
