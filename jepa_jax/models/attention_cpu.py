"""Attention for XLA on a CPU: plain two-dimensional products over blocks that stay in the cache.

XLA's CPU back end is fast at single matrix products and slow at batched ones, and the matrix of logits
of a few thousand tokens does not fit a cache. A block of query rows at a time needs neither, and the
backward pass computes the weights again from the log-sum-exp of each row (FlashAttention's, arXiv
2205.14135).
"""

import functools

import jax
import jax.numpy as jnp

# Query rows at a time: their logits against 2,048 keys take 4 MB.
ROWS = 512


def blockwise_attention(q, k, v, valid, *, window: int | None, causal: bool, scale: float) -> jax.Array:
    """As `attention.attention`: [B, L, K, A], two [B, L, G, A], [B, L] or None -> [B, L, K, A]."""
    b, length, heads, a = q.shape
    groups = k.shape[2]
    fold = heads // groups
    # The query heads of a key-value head are rows of one product: [B * G, fold * L, A].
    rows = (q.astype(jnp.float32) * scale).reshape(b, length, groups, fold, a)
    rows = rows.transpose(0, 2, 3, 1, 4).reshape(b * groups, fold * length, a)
    keys, values = (x.astype(jnp.float32).swapaxes(1, 2).reshape(-1, length, a) for x in (k, v))
    floor = jnp.finfo(jnp.float32).min
    bias = jnp.zeros((b, length), jnp.float32) if valid is None else jnp.where(valid, 0.0, floor)
    bias = jnp.repeat(bias, groups, axis=0)
    out = _attend(rows, keys, values, bias, window, causal)
    out = out.reshape(b, groups, fold, length, a).transpose(0, 3, 1, 2, 4)
    return out.reshape(b, length, heads, a).astype(q.dtype)


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
    return jnp.where(seen, logits, jnp.finfo(jnp.float32).min)


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
