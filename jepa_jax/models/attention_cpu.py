"""Attention for XLA on a CPU, of short sequences and of long ones.

The matrix of logits of a few thousand tokens does not fit a cache. `blockwise_attention` takes a block
of query rows at a time, in plain two-dimensional products, and its backward pass computes the weights
again from the log-sum-exp of each row (FlashAttention's, arXiv 2205.14135).

Where the logits do fit, `dense_attention` keeps the exponentials and divides by their sum after the
product with the values, forward and backward: passes over the logits, not products, are what costs.
"""

import functools

import jax
import jax.numpy as jnp

# Query rows at a time: their logits against 2,048 keys take 4 MB.
ROWS = 512
_FLOOR = float(jnp.finfo(jnp.float32).min)


def blockwise_attention(q, k, v, valid, *, window: int | None, causal: bool, scale: float) -> jax.Array:
    """As `attention.attention`: [B, L, K, A], two [B, L, G, A], [B, L] or None -> [B, L, K, A]."""
    b, length, groups = len(q), q.shape[1], k.shape[2]
    bias = jnp.zeros((b, length), jnp.float32) if valid is None else jnp.where(valid, 0.0, _FLOOR)
    bias = jnp.repeat(bias, groups, axis=0)
    out = _attend(*_rows(q, k, v, scale), bias, window, causal)
    return _heads(out, groups, q)


def dense_attention(q, k, v, mask: jax.Array | None, *, scale: float) -> jax.Array:
    """As `attention.attention`, with `attention.attention_mask`'s mask: [B, L, K, A], two [B, L, G, A],
    bool broadcastable to [B, L, L] -> [B, L, K, A]."""
    groups = k.shape[2]
    rows, keys, values = _rows(q, k, v, scale)
    fold = rows.shape[1] // keys.shape[1]
    if mask is None:
        bias = jnp.zeros((1, 1, 1), jnp.float32)
    else:
        bias = jnp.where(mask, 0.0, _FLOOR)
        bias = jnp.repeat(bias, groups, axis=0) if len(mask) > 1 else bias
        bias = jnp.tile(bias, (1, fold, 1)) if mask.shape[1] > 1 else bias
    return _heads(_attend_densely(rows, keys, values, bias), groups, q)


def _rows(q, k, v, scale: float):
    """Scaled queries [B * G, fold * L, A] and keys and values [B * G, L, A], in float32: the query heads
    of a key-value head are rows of one product."""
    b, length, heads, a = q.shape
    groups = k.shape[2]
    rows = (q.astype(jnp.float32) * scale).reshape(b, length, groups, heads // groups, a)
    rows = rows.transpose(0, 2, 3, 1, 4).reshape(b * groups, -1, a)
    return rows, *(x.astype(jnp.float32).swapaxes(1, 2).reshape(-1, length, a) for x in (k, v))


def _heads(out: jax.Array, groups: int, like: jax.Array) -> jax.Array:
    """The inverse of `_rows` for queries: [B * G, fold * L, A] -> [B, L, K, A]."""
    b, length, heads, a = like.shape
    out = out.reshape(b, groups, heads // groups, length, a).transpose(0, 3, 1, 2, 4)
    return out.reshape(like.shape).astype(like.dtype)


def _blocks(x: jax.Array) -> jax.Array:
    """[R, ...] -> [blocks, rows of one, ...], the last filled up with zeros."""
    size = min(ROWS, len(x))
    missing = -len(x) % size
    x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])


def _logits(q, k, bias, position, window, causal):
    """[rows, L] of a block whose rows stand at `position` [rows] of their sequence."""
    logits = q @ k.T + bias
    if window is None and not causal:
        return logits
    distance = position[:, None] - jnp.arange(len(k))[None, :]
    seen = jnp.abs(distance) <= window if window is not None else True
    seen = seen & (distance >= 0) if causal else seen
    return jnp.where(seen, logits, _FLOOR)


def _positions(q, k):
    """Of every row of [fold * L, A] in its sequence of L, cut as `_blocks` cuts the rows."""
    return _blocks(jnp.arange(len(q)) % len(k))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, bias, window, causal):
    return _attend_forward(q, k, v, bias, window, causal)[0]


def _attend_forward(q, k, v, bias, window, causal):
    def one_head(inputs):
        q, k, v, bias = inputs

        def one_block(inputs):
            logits = _logits(inputs[0], k, bias, inputs[1], window, causal)
            top = jnp.max(logits, axis=1, keepdims=True)
            weights = jnp.exp(logits - top)
            total = jnp.sum(weights, axis=1, keepdims=True)
            return weights @ v / total, top[:, 0] + jnp.log(total[:, 0])

        out, lse = jax.lax.map(one_block, (_blocks(q), _positions(q, k)))
        return out.reshape(-1, q.shape[1])[: len(q)], lse.reshape(-1)[: len(q)]

    out, lse = jax.lax.map(one_head, (q, k, v, bias))
    return out, (q, k, v, bias, out, lse)


def _attend_backward(window, causal, kept, d_out):
    def one_head(inputs):
        q, k, v, bias, out, lse, d_out = inputs
        share = jnp.sum(out * d_out, axis=1)

        def one_block(carry, inputs):
            d_k, d_v = carry
            q, position, lse, share, d_out = inputs
            weights = jnp.exp(_logits(q, k, bias, position, window, causal) - lse[:, None])
            d_logits = weights * (d_out @ v.T - share[:, None])
            # Rows that fill up the last block have no gradient: their `q` and `d_out` are zero.
            return (d_k + d_logits.T @ q, d_v + weights.T @ d_out), d_logits @ k

        rows = (_blocks(q), _positions(q, k), _blocks(lse), _blocks(share), _blocks(d_out))
        start = (jnp.zeros_like(k), jnp.zeros_like(v))
        (d_k, d_v), d_q = jax.lax.scan(one_block, start, rows)
        return d_q.reshape(-1, q.shape[1])[: len(q)], d_k, d_v

    d_q, d_k, d_v = jax.lax.map(one_head, (*kept, d_out))
    return d_q, d_k, d_v, jnp.zeros_like(kept[3])


_attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def _attend_densely(q, k, v, bias):
    return _attend_densely_forward(q, k, v, bias)[0]


def _attend_densely_forward(q, k, v, bias):
    logits = q @ k.swapaxes(1, 2) + bias
    weights = jnp.exp(logits - jnp.max(logits, axis=2, keepdims=True))
    share = 1.0 / jnp.sum(weights, axis=2, keepdims=True)
    out = weights @ v * share
    return out, (q, k, v, weights, share, out)


def _attend_densely_backward(kept, d_out):
    q, k, v, weights, share, out = kept
    d_out = d_out * share
    d_logits = weights * (d_out @ v.swapaxes(1, 2) - jnp.sum(out * d_out, axis=2, keepdims=True))
    return d_logits @ k, d_logits.swapaxes(1, 2) @ q, weights.swapaxes(1, 2) @ d_out, None


_attend_densely.defvjp(_attend_densely_forward, _attend_densely_backward)
