"""Linear maps on a CPU: the same numbers and gradients as the plain product, without its copies. Gains and
biases: their gradients are sums over all positions. Rotary positions on a TPU."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.models import layers
from jepa_jax.models.layers import RMSNorm, gelu, layer_norm, linear
from tests import tiny

SHAPES = [(32,), (5, 32), (0, 5, 32), (3, 5, 32), (2, 3, 5, 32)]


def parts_of(dtype):
    return nnx.split(linear(32, 64, bias=True, dtype=dtype, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_the_plain_product(shape):
    graph, state = parts_of(jnp.float32)
    x, weights = (jax.random.normal(jax.random.key(i), (*shape[:-1], d)) for i, d in enumerate((32, 64)))

    def ours(state, x):
        return jnp.sum(weights * nnx.merge(graph, state)(x))

    def plain(state, x):
        return jnp.sum(weights * (jnp.einsum("...D,DE->...E", x, state["kernel"][...]) + state["bias"][...]))

    with jax.numpy_dtype_promotion("strict"):
        found = jax.value_and_grad(ours, argnums=(0, 1))(state, x)
    wanted = jax.value_and_grad(plain, argnums=(0, 1))(state, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_stays_bfloat16_and_is_summed_in_float32(shape):
    graph, state = parts_of(jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    found = nnx.merge(graph, state)(x)
    kernel = np.asarray(state["kernel"][...].astype(jnp.bfloat16), np.float64)
    assert found.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16, after sums that do not round to it.
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(x, np.float64) @ kernel, rtol=2**-8)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 16, 32)], ids=str)
def test_bfloat16_gradients_are_the_exact_ones_rounded_once(shape):
    graph, state = parts_of(jnp.bfloat16)
    x, weights = (
        jax.random.normal(jax.random.key(i), (*shape[:-1], d), jnp.bfloat16) for i, d in enumerate((32, 64))
    )
    loss = lambda state, x: jnp.sum(weights * nnx.merge(graph, state)(x))
    d_state, d_x = jax.grad(loss, argnums=(0, 1))(state, x)
    kernel = np.asarray(state["kernel"][...].astype(jnp.bfloat16), np.float64)
    rows, d_out = (np.asarray(a, np.float64).reshape(-1, a.shape[-1]) for a in (x, weights))
    for found, wanted in ((d_state["kernel"][...], rows.T @ d_out), (d_x, (d_out @ kernel.T).reshape(shape))):
        # Sums in float32 are exact to 1e-5 of what they add up; then half a unit of bfloat16's last place.
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2**-8, atol=1e-4)
    assert (d_x.dtype, d_state["kernel"].dtype) == (jnp.bfloat16, jnp.float32)


def test_the_gradient_of_the_kernel_is_computed_without_a_copy():
    graph, state = parts_of(jnp.float32)
    loss = lambda state, x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))
    compiled = jax.jit(jax.grad(loss)).lower(state, jnp.ones((8, 16, 32))).compile().as_text()
    assert " dot(" in compiled
    assert " transpose(" not in compiled
    assert " copy(" not in compiled


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: linear(32, 32, bias=True, dtype=dtype, rngs=nnx.Rngs(0)),
        lambda dtype: layer_norm(32, eps=1e-6, dtype=dtype, rngs=nnx.Rngs(0)),
        lambda dtype: RMSNorm(32, eps=1e-6),
        lambda dtype: RMSNorm(32, eps=1e-6, unit_offset=True),
    ],
    ids=["linear", "layer norm", "Llama's norm", "Gemma's norm"],
)
def test_gradients_of_gains_and_biases_are_as_exact_in_bfloat16_however_many_positions(make):
    """A sum of ones in bfloat16 stops at 256."""
    x, weights = (jax.random.uniform(jax.random.key(i), (64, 1024, 32)).astype(jnp.bfloat16) for i in (0, 1))

    @functools.partial(jax.jit, static_argnames="dtype")
    def gradient(x, weights, dtype):
        graph, state = nnx.split(make(dtype))
        loss = lambda state: jnp.sum(nnx.merge(graph, state)(x.astype(dtype)) * weights, dtype=jnp.float32)
        return jax.grad(loss)(state)

    found, wanted = (gradient(x, weights, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    for name, value in tiny.parameters(wanted).items():
        assert tiny.relative_error(tiny.parameters(found)[name], value) < 2**-7, name


@pytest.mark.parametrize(("dtype", "precision"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2.0**-8)])
def test_gelu_and_its_gradient_are_the_exact_ones_rounded_once(dtype, precision):
    x = jnp.linspace(-12.0, 12.0, 999).astype(dtype)
    d_out = jax.random.normal(jax.random.key(0), x.shape).astype(dtype)
    value, pull_back = jax.vjp(jax.jit(gelu), x)
    assert value.dtype == pull_back(d_out)[0].dtype == dtype

    y, d = (np.asarray(a, np.float64) for a in (x, d_out))
    share = 0.5 * (1.0 + np.vectorize(math.erf)(y / math.sqrt(2)))
    exact = y * share
    gradient = (share + y * np.exp(-y * y / 2) / math.sqrt(2 * math.pi)) * d
    for found, wanted in ((value, exact), (pull_back(d_out)[0], gradient)):
        # What is nearly zero has the digits that 1 + erf leaves it.
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=precision, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rotate", [layers.rotate_halves, layers.rotate_neighbours])
def test_positions_turn_on_a_tpu_as_elsewhere(rotate, dtype, monkeypatch):
    """There by a product that is exact."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8), dtype)
    table = layers.rope_table(5, layers.rope_frequencies(8, 100.0))
    by = jax.random.normal(jax.random.key(1), x.shape, dtype)
    run = lambda x: jax.vjp(lambda x: rotate(x, table), x)[1](by)[0]
    elsewhere = rotate(x, table), run(x)
    monkeypatch.setattr(layers, "device_platform", lambda: "tpu")
    assert "dot_general" in str(jax.make_jaxpr(lambda x: rotate(x, table))(x))
    for found, expected in zip((rotate(x, table), run(x)), elsewhere, strict=True):
        assert (found.shape, found.dtype) == (x.shape, dtype)
        digits = {"rtol": 1e-6, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 2**-7, "atol": 2**-8}
        np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), **digits)
