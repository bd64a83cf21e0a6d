"""Attention and its masks against the textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.models.attention import attention, attention_mask
from tests import tiny

B, L, K, G, A = 2, 11, 6, 3, 7


def textbook(q, k, v, mask, scale):
    """One query head at a time, in float64; head h reads key-value head h // (K / G)."""
    out = np.zeros(q.shape)
    for b, h in np.ndindex(B, K):
        group = h // (K // G)
        logits = scale * q[b, :, h].astype(np.float64) @ k[b, :, group].astype(np.float64).T
        logits = np.where(mask[b], logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ v[b, :, group]
    return out


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_textbook(masked, scale):
    q, k, v = (tiny.normal(B, L, heads, A, seed=i) for i, heads in enumerate((K, G, G)))
    mask = np.random.default_rng(3).random((B, L, L)) < 0.5 if masked else np.ones((B, L, L), bool)
    mask |= np.eye(L, dtype=bool)
    actual = attention(q, k, v, mask=jnp.asarray(mask) if masked else None, scale=scale)
    tiny.assert_close(actual, textbook(q, k, v, mask, A**-0.5 if scale is None else scale), 1e-6)


def test_bfloat16_inputs_get_a_float32_softmax_and_a_bfloat16_result():
    q, k, v = (jnp.ones((B, L, heads, A), jnp.bfloat16) for heads in (K, G, G))
    program = jax.make_jaxpr(attention)(q, k, v)
    assert program.out_avals[0].dtype == jnp.bfloat16
    exponentials = [e for e in tiny.operations(program.jaxpr) if e.primitive.name == "exp"]
    assert [e.outvars[0].aval.dtype for e in exponentials] == [jnp.float32]


def test_a_query_that_may_see_nothing_is_finite_with_finite_gradients():
    q, k, v = (tiny.normal(B, L, heads, A, seed=i) for i, heads in enumerate((K, G, G)))
    mask = jnp.ones((1, L, L), bool).at[:, 4].set(False)
    value, grads = jax.value_and_grad(
        lambda q, k, v: jnp.sum(attention(q, k, v, mask=mask) ** 2), argnums=(0, 1, 2)
    )(q, k, v)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
    blind = attention(q, k, v, mask=mask)[:, 4].reshape(B, G, K // G, A)
    tiny.assert_close(blind, np.broadcast_to(v.mean(1)[:, :, None], blind.shape), 1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_masks_by_definition(causal, window, padded):
    valid = tiny.right_padded([5, 11], L)
    mask = attention_mask(L, valid=jnp.asarray(valid) if padded else None, window=window, causal=causal)
    expected = np.ones((B, L, L), bool)
    for b, i, j in np.ndindex(B, L, L):
        if (causal and j > i) or (window is not None and abs(i - j) > window):
            expected[b, i, j] = False
        if padded and not valid[b, j]:
            expected[b, i, j] = False
    if mask is None:
        assert expected.all()
    else:
        np.testing.assert_array_equal(np.broadcast_to(mask, expected.shape), expected)
