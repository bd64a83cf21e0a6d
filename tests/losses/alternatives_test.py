"""The objectives beside InfoNCE, by their definitions and over the batch of all devices."""

import dataclasses
import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax.losses import objective, sigmoid, sigreg, vicreg
from jepa_jax.sharding import batch_sharding, make_mesh
from tests import tiny

B, E, SCALE = 24, 5, 4.0
KEY = jax.random.key(3)
IDS = np.arange(B, dtype=np.int32)
IDS[[2, 9, 23]] = 7


def embeddings(on_the_sphere: bool) -> tuple[np.ndarray, np.ndarray]:
    pair = tiny.normal(B, E, seed=1), 0.6 * tiny.normal(B, E, seed=2) + 0.3
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in pair) if on_the_sphere else pair


def by_definition(name: str, config: c.LossConfig, dtype=np.float32) -> float:
    """One sample, pair or direction at a time, in float64, of embeddings of a given type."""
    x, y = (a.astype(dtype).astype(np.float64) for a in embeddings(config.on_the_sphere))
    rows = list(zip(x, y, strict=True))
    match name:
        case "cosine":
            return np.mean([1 - a @ b for a, b in rows])
        case "l1":
            return np.mean([np.abs(a - b).sum() for a, b in rows])
        case "l2":
            return np.mean([np.square(a - b).sum() for a, b in rows])
        case "sigmoid":
            total = 0.0
            for i, a in enumerate(x):
                for j, b in enumerate(y):
                    z = 1.0 if IDS[i] == IDS[j] else -1.0
                    total += np.log1p(np.exp(-z * (SCALE * a @ b + config.sigmoid_bias)))
            return total / B
        case "vicreg":
            loss = np.mean([np.square(a - b).mean() for a, b in rows])
            for side in (x, y):
                covariance = np.cov(side, rowvar=False)
                deviations = np.sqrt(np.diag(covariance) + 1e-4)
                loss += config.variance_weight * np.maximum(0, 1 - deviations).mean() / 2
                off = covariance - np.diag(np.diag(covariance))
                loss += config.covariance_weight * np.square(off).sum() / E
            return loss
        case "sigreg":
            sides = np.asarray(jax.random.normal(KEY, (config.sigreg_directions, E)), np.float64)
            t = np.linspace(-3, 3, 2 * config.sigreg_knots - 1)
            statistics = []
            for samples in (x, y):
                for side in sides:
                    z = samples @ (side / np.linalg.norm(side))
                    found = np.exp(1j * t[:, None] * z).mean(axis=1)
                    error = np.abs(found - np.exp(-(t**2) / 2)) ** 2
                    statistics.append(B * np.trapezoid(error * np.exp(-(t**2) / 2), t))
            invariance = np.mean([np.square(a - b).mean() for a, b in rows])
            share = config.sigreg_weight
            return (1 - share) * invariance + share * np.mean(statistics)
    raise AssertionError(name)


# All weights at values that are not their defaults, so that one that is not used is noticed.
CONFIGS = {
    name: c.LossConfig(
        objective=name,
        chunk=7,
        sigmoid_bias=-1.5,
        variance_weight=0.7,
        covariance_weight=0.3,
        sigreg_weight=0.4,
        sigreg_directions=19,
        sigreg_knots=9,
    )
    for name in ("cosine", "l1", "l2", "sigmoid", "vicreg", "sigreg")
}


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def gradient(predicted, target, ids, key, config):
    return objective(predicted, target, ids, SCALE, key, config)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_definition(name):
    config = CONFIGS[name]
    (loss, metrics), _ = gradient(*embeddings(config.on_the_sphere), IDS, KEY, config)
    np.testing.assert_allclose(loss, by_definition(name, config), rtol=1e-5)
    assert metrics
    if config.on_the_sphere:
        x, y = embeddings(True)
        np.testing.assert_allclose(metrics["alignment"], -np.mean(np.sum(x * y, axis=1)), rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_embeddings_give_a_float32_loss(name):
    """Differences and products of theirs are not rounded to bfloat16, which would cost three digits."""
    config = CONFIGS[name]
    rounded = [x.astype(ml_dtypes.bfloat16) for x in embeddings(config.on_the_sphere)]
    (loss, metrics), grads = gradient(*rounded, IDS, KEY, config)
    assert {loss.dtype, *(m.dtype for m in metrics.values())} == {np.dtype("float32")}
    assert {x.dtype for x in grads} == {rounded[0].dtype}
    np.testing.assert_allclose(loss, by_definition(name, config, ml_dtypes.bfloat16), rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fsdp", [1, 2])
def test_statistics_are_those_of_the_batch_of_all_devices(name, fsdp):
    config = CONFIGS[name]
    arguments = (*embeddings(config.on_the_sphere), IDS)
    (expected, expected_metrics), expected_grads = gradient(*arguments, KEY, config)
    mesh = make_mesh(fsdp)
    with jax.set_mesh(mesh):
        split = [jax.device_put(x, batch_sharding(mesh)) for x in arguments]
        (loss, metrics), grads = jax.device_get(gradient(*split, KEY, config))
    tiny.assert_close(loss, expected, 1e-5)
    for key, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5)
    for grad, value in zip(grads, expected_grads, strict=True):
        tiny.assert_close(grad, value, 1e-5)


def test_sigmoid_s_chunks_change_nothing():
    arguments = (*embeddings(True), IDS, SCALE, -1.5)
    whole = sigmoid(*arguments, chunk=B)
    for chunk in (1, 5, 12):
        np.testing.assert_allclose(sigmoid(*arguments, chunk=chunk), whole, rtol=1e-6)


def test_sigreg_tells_a_gaussian_from_a_collapse():
    gaussian, options = tiny.normal(4096, E), {"directions": 64, "knots": 17}
    good = sigreg(gaussian, KEY, **options)
    for bad in (np.zeros_like(gaussian), 3 * gaussian, gaussian + 1, np.sign(gaussian)):
        assert sigreg(bad, KEY, **options) > 20 * good
    assert good < 2, "of the order of 1, whatever the number of samples"


def test_sigreg_looks_from_other_sides_with_another_key():
    x, options = embeddings(False)[0], {"directions": 2, "knots": 17}
    assert sigreg(x, KEY, **options) == sigreg(x, KEY, **options)
    assert sigreg(x, KEY, **options) != sigreg(x, jax.random.key(4), **options)


def test_vicreg_s_terms_see_what_they_are_for():
    def terms(x, y):
        return vicreg(x, y, variance_weight=1.0, covariance_weight=1.0)[1]

    x = 3 * tiny.normal(500, E)
    spread = terms(x, x)
    assert spread["invariance"] == spread["variance"] == 0
    assert terms(0 * x, 0 * x)["variance"] > 0.9
    assert terms(x[:, :1] + 0 * x, x)["covariance"] > 10 * spread["covariance"]


@pytest.mark.parametrize("name", ["cosine", "l1", "l2"])
def test_what_can_collapse_needs_a_frozen_target(name):
    loss = c.LossConfig(objective=name)
    frozen = c.OptimConfig(factors=c.LearningRateFactors(y_encoder=0.0))
    without = tiny.model(y_projection=False, embedding_size=17)
    for changes in (
        {"optim": frozen},
        {"model": without},
        {},
    ):
        with pytest.raises(ValueError, match=r"optim.factors.y_encoder=0 and model.y_projection=false"):
            tiny.run_config(loss=loss, **({"optim": c.OptimConfig()} | changes))
    config = tiny.run_config(loss=loss, optim=frozen, model=without)
    state = tiny.state(config)[1]
    assert not [name for name in tiny.parameters(state.trained) if name[0] == "y_encoder"]
    assert dataclasses.replace(config, loss=c.LossConfig()).loss.objective == "info_nce"


def test_variances_need_more_than_one_pair():
    loss = c.LossConfig(objective="vicreg")
    with pytest.raises(ValueError, match="set batch_size to 2 or more"):
        tiny.run_config(loss=loss, batch_size=1)
    data = dataclasses.replace(tiny.run_config().data, pairs_per_clip=2)
    assert tiny.run_config(loss=loss, batch_size=1, data=data).batch_size == 1
