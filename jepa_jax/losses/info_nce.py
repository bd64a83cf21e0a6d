"""InfoNCE, exact over the global batch, in memory that grows with the local batch alone.

Every device keeps its predictions; a piece of its targets at a time travels round the ring of devices,
and with it the running log-sum-exp of its columns, so that one trip serves both directions. Logits
exist for a chunk of rows and columns, and the backward pass computes them again instead of keeping them
(Inf-CL, arXiv 2410.17243, does the same for one direction at a time). One device whose whole batch is
no larger than a chunk takes the matrix of logits as it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jepa_jax.losses.axes import batch_axes
from jepa_jax.losses.products import product

# Logits are made for so many predictions and targets at a time.
CHUNK = 1024


def info_nce(
    predicted: jax.Array,
    target: jax.Array,
    target_id: jax.Array,
    logit_scale: jax.Array,
    *,
    chunk: int = CHUNK,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Bi-directional InfoNCE (arXiv 2512.10942, section 3.2), equal targets being positives.

    With logits s_ij = <predicted_i, target_j> / tau and P(i) the samples whose target equals that
    of i, the loss is

        1/2 mean_i [ LSE_j s_ij - mean_{P(i)} s_ij ] + 1/2 mean_j [ LSE_i s_ij - mean_{P(j)} s_ij ]

    the cross-entropy against a uniform distribution over the positives (UniCL, arXiv 2204.03610,
    equation 2). Where all targets differ it is the paper's. It falls into two terms (Wang and Isola,
    arXiv 2005.10242): alignment, minus the mean positive logit, and uniformity, the mean
    log-sum-exp. Their sum is the loss.

    Args:
      predicted: [B, E] unit vectors S^_Y. target: [B, E] unit vectors S_Y.
      target_id: [B] int, equal where the target texts are equal.
      logit_scale: scalar 1 / tau.
      chunk: rows and columns of the logits that exist at a time on a device; any number, whatever
        B is.

    Returns:
      The scalar loss, and scalars `alignment`, `uniformity` and `accuracy` (the share of
      predictions whose nearest target is a positive), through which no gradient flows.

    Raises:
      ValueError: inside a `shard_map` over several devices.
    """
    axes = batch_axes()
    target_id = jnp.asarray(target_id)  # NumPy's takes no index that is traced
    if not axes and len(predicted) <= chunk:
        loss, metrics = _dense(predicted, target, target_id, logit_scale)
    else:
        scale = jnp.asarray(logit_scale, jnp.float32)
        loss, metrics = _info_nce(predicted, target, target_id, scale, axes, chunk)
    return loss, jax.tree.map(jax.lax.stop_gradient, metrics)


def _dense(predicted, target, target_id, scale):
    logits = scale * _products(predicted, target)
    positive = target_id[:, None] == target_id[None, :]
    # `positive` is symmetric, so one count serves rows and columns, and the mean over the
    # positives of each row and of each column add up to the same number.
    weights = positive / jnp.sum(positive, axis=1, keepdims=True)
    alignment = -jnp.sum(weights * logits) / logits.shape[0]
    rows = jax.nn.logsumexp(logits, axis=1)
    columns = jax.nn.logsumexp(logits, axis=0)
    uniformity = 0.5 * (jnp.mean(rows) + jnp.mean(columns))
    accuracy = jnp.mean(target_id[jnp.argmax(logits, axis=1)] == target_id)
    return alignment + uniformity, {"alignment": alignment, "uniformity": uniformity, "accuracy": accuracy}


def _on_every_device(function, axes, n_rows: int, n_out_rows: int, n_out: int):
    """`function` over the ring: its first `n_rows` arguments and first `n_out_rows` results are split
    by rows, the others are whole on every device."""
    if not axes:
        return function
    rows, whole = PartitionSpec(axes), PartitionSpec()
    outs = (rows,) * n_out_rows + (whole,) * (n_out - n_out_rows)
    return jax.shard_map(function, in_specs=(rows,) * n_rows + (whole,), out_specs=outs, check_vma=False)


def _ring(axes) -> int:
    return int(np.prod([jax.lax.axis_size(axis) for axis in axes])) if axes else 1


def _pass_on(x, axes, size: int):
    """To the next device of the ring."""
    if size == 1:
        return x
    hops = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, axes, hops), x)


def _sum(x, axes):
    return jax.lax.psum(x, axes) if axes else x


def _in_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """[b, ...] -> [chunks, rows of one, ...], the last filled up with zeros."""
    rows = min(chunk, x.shape[0])
    missing = -x.shape[0] % rows
    x = jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(-1, rows, *x.shape[1:])


def _whole(x: jax.Array, rows: int) -> jax.Array:
    """The inverse of `_in_chunks`."""
    return x.reshape(-1, *x.shape[2:])[:rows]


def _products(x, y):
    return product("BE,CE->BC", x, y)


def _forward(predicted, target, target_id, scale, *, axes, chunk):
    """Per device: log-sum-exp of its rows and of its targets' columns, the number of each row's
    positives [b]; alignment, uniformity and accuracy of the whole batch."""
    b, size = predicted.shape[0], _ring(axes)
    real = _in_chunks(jnp.ones(b, bool), chunk)
    ids = _in_chunks(target_id, chunk)
    xs, ys = (_in_chunks(predicted, chunk), ids, real), (_in_chunks(target, chunk), ids, real)

    def one_trip(rows, piece):
        """A piece of every device's targets goes round the ring and comes home."""
        y, y_id, y_real = piece

        def hop(_, carry):
            rows, block = carry

            def one_chunk(columns, inputs, block=block):
                (x, x_id, x_real), (lse, positives, total, best, hit) = inputs
                logits = scale * _products(x, block["target"])
                both = x_real[:, None] & y_real[None, :]
                positive = (x_id[:, None] == block["id"][None, :]) & both
                logits = jnp.where(both, logits, -jnp.inf)
                top = jnp.max(logits, axis=1)
                nearest = block["id"][jnp.argmax(logits, axis=1)] == x_id
                rows = (
                    jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=1)),
                    positives + jnp.sum(positive, axis=1, dtype=jnp.int32),
                    total + jnp.sum(jnp.where(positive, logits, 0.0), axis=1),
                    jnp.maximum(best, top),
                    jnp.where(top > best, nearest, hit),
                )
                return jnp.logaddexp(columns, jax.nn.logsumexp(logits, axis=0)), rows

            columns, rows = jax.lax.scan(one_chunk, block["columns"], (xs, rows))
            return rows, _pass_on(block | {"columns": columns}, axes, size)

        block = {"target": y, "id": y_id, "columns": jnp.full(len(y), -jnp.inf, jnp.float32)}
        rows, block = jax.lax.fori_loop(0, size, hop, (rows, block))
        return rows, block["columns"]

    floor = jnp.full(real.shape, -jnp.inf, jnp.float32)
    zeros = jnp.zeros(real.shape, jnp.float32)
    rows = (floor, jnp.zeros(real.shape, jnp.int32), zeros, floor, jnp.zeros(real.shape, bool))
    rows, columns = jax.lax.scan(one_trip, rows, ys)
    lse, positives, total, _, hit = (_whole(x, b) for x in rows)
    columns = _whole(columns, b)
    mean = lambda x: _sum(jnp.sum(x, dtype=jnp.float32), axes) / (b * size)
    alignment = -mean(total / positives)
    uniformity = 0.5 * (mean(lse) + mean(columns))
    return lse, columns, positives, alignment, uniformity, mean(hit)


def _backward(predicted, target, target_id, lse, columns, positives, scale, *, axes, chunk):
    """Per device: the gradients of the loss, the targets' gathered on the way round."""
    b, size = predicted.shape[0], _ring(axes)
    in_chunks = functools.partial(_in_chunks, chunk=chunk)
    real, ids = in_chunks(jnp.ones(b, bool)), in_chunks(target_id)
    xs = (in_chunks(predicted), ids, in_chunks(lse), in_chunks(positives), real)
    ys = (in_chunks(target), ids, in_chunks(columns), real)

    def one_trip(carry, piece):
        y, y_id, y_columns, y_real = piece

        def hop(_, carry):
            d_x, d_scale, block = carry

            def one_chunk(carry, inputs, block=block):
                d_y, d_scale = carry
                (x, x_id, x_lse, x_positives, x_real), d_x = inputs
                products = _products(x, block["target"])
                logits = scale * products
                positive = x_id[:, None] == block["id"][None, :]
                towards = (
                    0.5 * (jnp.exp(logits - x_lse[:, None]) + jnp.exp(logits - block["columns"][None, :]))
                    - positive / jnp.maximum(x_positives, 1)[:, None]
                )
                towards = jnp.where(x_real[:, None] & y_real[None, :], towards, 0.0) / (b * size)
                d_scale += jnp.sum(towards * products)
                towards = scale * towards
                d_y += product("BC,BE->CE", towards, x)
                d_x += product("BC,CE->BE", towards, block["target"])
                return (d_y, d_scale), d_x

            (d_y, d_scale), d_x = jax.lax.scan(one_chunk, (block["gradient"], d_scale), (xs, d_x))
            return d_x, d_scale, _pass_on(block | {"gradient": d_y}, axes, size)

        block = {"target": y, "id": y_id, "columns": y_columns, "gradient": jnp.zeros(y.shape, jnp.float32)}
        d_x, d_scale, block = jax.lax.fori_loop(0, size, hop, (*carry, block))
        return (d_x, d_scale), block["gradient"]

    start = (jnp.zeros(xs[0].shape, jnp.float32), jnp.zeros((), jnp.float32))
    (d_x, d_scale), d_y = jax.lax.scan(one_trip, start, ys)
    return (
        _whole(d_x, b).astype(predicted.dtype),
        _whole(d_y, b).astype(target.dtype),
        _sum(d_scale, axes),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _info_nce(predicted, target, target_id, scale, axes, chunk):
    return _info_nce_forward(predicted, target, target_id, scale, axes, chunk)[0]


def _info_nce_forward(predicted, target, target_id, scale, axes, chunk):
    forward = functools.partial(_forward, axes=axes, chunk=chunk)
    found = _on_every_device(forward, axes, 3, 3, 6)(predicted, target, target_id, scale)
    lse, columns, positives, alignment, uniformity, accuracy = found
    metrics = {"alignment": alignment, "uniformity": uniformity, "accuracy": accuracy}
    kept = (predicted, target, target_id, lse, columns, positives, scale)
    return (alignment + uniformity, metrics), kept


def _info_nce_backward(axes, chunk, kept, cotangents):
    backward = functools.partial(_backward, axes=axes, chunk=chunk)
    d_x, d_y, d_scale = _on_every_device(backward, axes, 6, 2, 3)(*kept)
    by = cotangents[0]
    ids = np.zeros(kept[2].shape, jax.dtypes.float0)
    return (by * d_x).astype(d_x.dtype), (by * d_y).astype(d_y.dtype), ids, by * d_scale


_info_nce.defvjp(_info_nce_forward, _info_nce_backward)
