"""Objectives beside InfoNCE: what the paper ablates, and what needs no negatives.

All take statistics over the whole batch: under a mesh the arrays are global, so that a mean over the
batch is one over every device. VICReg and SIGReg look at embeddings before normalisation, the others
at unit vectors.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jepa_jax.losses.axes import batch_axes
from jepa_jax.losses.products import product


def _float32(*arrays: jax.Array) -> list[jax.Array]:
    """Before anything is computed of them: differences of bfloat16 have lost their digits before a sum."""
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def cosine(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of 1 - cosine of unit vectors: [B, E], [B, E] -> scalar.

    This and the next two are perfect when all embeddings are equal: the target must be frozen.
    """
    x, y = _float32(predicted, target)
    return 1.0 - jnp.mean(jnp.sum(x * y, axis=-1))


def l1(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over the batch of the summed absolute differences: [B, E], [B, E] -> scalar."""
    x, y = _float32(predicted, target)
    return jnp.mean(jnp.sum(jnp.abs(x - y), axis=-1))


def l2(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over the batch of the squared distances: [B, E], [B, E] -> scalar."""
    x, y = _float32(predicted, target)
    return jnp.mean(jnp.sum(jnp.square(x - y), axis=-1))


def sigmoid(
    predicted: jax.Array,
    target: jax.Array,
    target_id: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    chunk: int,
) -> jax.Array:
    """Every pair a yes or a no (SigLIP, arXiv 2303.15343): equal targets are a yes.

        1/B sum_ij log(1 + exp(-z_ij (s <predicted_i, target_j> + b))), z = 1 for a yes, -1 for a no

    Args:
      predicted, target: [B, E] unit vectors. target_id: [B] int.
      logit_scale, logit_bias: scalars s and b.
      chunk: rows of logits that exist at a time on a device.

    Raises:
      ValueError: inside a `shard_map` over several devices.
    """
    axes = batch_axes()

    def on_a_device(predicted, target, target_id, scale, bias):
        everywhere = functools.partial(jax.lax.all_gather, axis_name=axes, tiled=True)
        targets, ids = (everywhere(target), everywhere(target_id)) if axes else (target, target_id)

        @jax.checkpoint
        def of_rows(inputs):
            x, x_id, real = inputs
            logits = scale * product("BE,CE->BC", x, targets) + bias
            sign = jnp.where(x_id[:, None] == ids[None, :], 1.0, -1.0)
            return jnp.sum(jnp.where(real[:, None], jax.nn.softplus(-sign * logits), 0.0))

        rows = min(chunk, len(predicted))
        missing = -len(predicted) % rows
        padded = [
            jnp.pad(x, ((0, missing),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, rows, *x.shape[1:])
            for x in (predicted, target_id, jnp.ones(len(predicted), bool))
        ]
        total = jnp.sum(jax.lax.map(of_rows, tuple(padded)))
        return jax.lax.psum(total, axes) if axes else total

    arguments = (predicted, target, target_id, logit_scale, logit_bias)
    if axes:
        rows, whole = PartitionSpec(axes), PartitionSpec()
        on_a_device = jax.shard_map(on_a_device, in_specs=(rows, rows, rows, whole, whole), out_specs=whole)
    return on_a_device(*arguments) / len(predicted)


def vicreg(
    predicted: jax.Array, target: jax.Array, *, variance_weight: float, covariance_weight: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Invariance, variance, covariance (arXiv 2105.04906, equation 6), over invariance's weight.

    Returns:
      The scalar loss and its three terms: mean squared difference; how far each dimension's deviation
      falls short of 1; squared covariances off the diagonal. The last two for both sides.
    """
    x, y = _float32(predicted, target)
    invariance = jnp.mean(jnp.square(x - y))

    def regularisers(x):
        centred = x - jnp.mean(x, axis=0)
        covariance = product("BE,BD->ED", centred, centred) / (x.shape[0] - 1)
        variance = jnp.diagonal(covariance)
        short = jnp.mean(jax.nn.relu(1.0 - jnp.sqrt(variance + 1e-4)))
        off_diagonal = jnp.sum(jnp.square(covariance)) - jnp.sum(jnp.square(variance))
        return short, off_diagonal / x.shape[1]

    (short_x, off_x), (short_y, off_y) = regularisers(x), regularisers(y)
    variance, covariance = (short_x + short_y) / 2, off_x + off_y
    loss = invariance + variance_weight * variance + covariance_weight * covariance
    return loss, {"invariance": invariance, "variance": variance, "covariance": covariance}


def sigreg(x: jax.Array, key: jax.Array, *, directions: int, knots: int) -> jax.Array:
    """How far a batch is from a standard Gaussian, seen from random directions (LeJEPA, arXiv
    2511.08544): the Epps-Pulley statistic of each projection, averaged.

    Args:
      x: [B, E], not normalised.
      key: of this step; the same on every device, so that all project on the same directions.
      directions: random unit vectors. knots: points of [0, 3] of the trapezoid rule.

    Returns:
      Scalar: B times the integral over [-3, 3] of |phi_B(t) - exp(-t^2/2)|^2 exp(-t^2/2), phi_B being
      the empirical characteristic function.
    """
    x = x.astype(jnp.float32)
    sides = jax.random.normal(key, (directions, x.shape[1]), jnp.float32)
    projected = product("BE,ME->BM", x, sides / jnp.linalg.norm(sides, axis=1, keepdims=True))
    t = jnp.linspace(0.0, 3.0, knots)
    window = jnp.exp(-jnp.square(t) / 2)

    def squared_error(t):
        real, imaginary = jnp.mean(jnp.cos(t * projected), axis=0), jnp.mean(jnp.sin(t * projected), axis=0)
        return jnp.square(real - jnp.exp(-jnp.square(t) / 2)) + jnp.square(imaginary)

    # One knot at a time: [B, directions] exists once, not once per knot.
    errors = jax.lax.map(jax.checkpoint(squared_error), t)
    return x.shape[0] * jnp.mean(2.0 * jnp.trapezoid(errors * window[:, None], t, axis=0))
