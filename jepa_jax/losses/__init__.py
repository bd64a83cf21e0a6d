"""Objectives: pure functions of embeddings over the global batch. They know nothing of the package."""

import jax
import jax.numpy as jnp

from jepa_jax.losses.alternatives import cosine, l1, l2, sigmoid, sigreg, vicreg
from jepa_jax.losses.info_nce import info_nce

__all__ = ["cosine", "info_nce", "l1", "l2", "objective", "sigmoid", "sigreg", "vicreg"]

_DISTANCES = {"cosine": cosine, "l1": l1, "l2": l2}


def objective(
    predicted: jax.Array,
    target: jax.Array,
    target_id: jax.Array,
    logit_scale: jax.Array,
    key: jax.Array,
    config,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss that a configuration names, and its terms.

    Args:
      predicted, target: [B, E], unit vectors where `config.on_the_sphere`.
      target_id: [B] int, equal for equal targets.
      logit_scale: scalar 1 / tau, for those that have a temperature.
      key: of this step, for those that draw random numbers.
      config: a `LossConfig`.

    Returns:
      The scalar loss and its scalar terms; on the sphere `alignment` is among them, for InfoNCE in
      units of the logits, else minus the mean cosine of the pairs.
    """
    name = config.objective
    if name == "info_nce":
        return info_nce(predicted, target, target_id, logit_scale, chunk=config.chunk)
    if config.on_the_sphere:
        alignment = {"alignment": cosine(predicted, target) - 1.0}
        if name in _DISTANCES:
            return _DISTANCES[name](predicted, target), alignment
        bias = config.sigmoid_bias
        return sigmoid(predicted, target, target_id, logit_scale, bias, chunk=config.chunk), alignment
    if name == "vicreg":
        weights = {"variance_weight": config.variance_weight, "covariance_weight": config.covariance_weight}
        return vicreg(predicted, target, **weights)
    options = {"directions": config.sigreg_directions, "knots": config.sigreg_knots}
    regulariser = 0.5 * (sigreg(predicted, key, **options) + sigreg(target, key, **options))
    invariance = jnp.mean(jnp.square(predicted.astype(jnp.float32) - target.astype(jnp.float32)))
    share = config.sigreg_weight
    loss = (1.0 - share) * invariance + share * regulariser
    return loss, {"invariance": invariance, "sigreg": regulariser}
