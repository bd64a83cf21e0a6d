"""Objectives: pure functions of embeddings over the global batch."""

import jax
import jax.numpy as jnp


def info_nce(
    predicted: jax.Array, target: jax.Array, target_id: jax.Array, logit_scale: jax.Array
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

    Returns:
      The scalar loss, and scalars `alignment`, `uniformity` and `accuracy` (the share of
      predictions whose nearest target is a positive).
    """
    logits = logit_scale * jnp.einsum("BE,CE->BC", predicted, target, preferred_element_type=jnp.float32)
    positive = target_id[:, None] == target_id[None, :]
    # `positive` is symmetric, so one count serves rows and columns, and the mean over the
    # positives of each row and of each column add up to the same number.
    weights = positive / jnp.sum(positive, axis=1, keepdims=True)
    alignment = -jnp.sum(weights * logits) / logits.shape[0]
    rows = jax.nn.logsumexp(logits, axis=1)
    columns = jax.nn.logsumexp(logits, axis=0)
    uniformity = 0.5 * (jnp.mean(rows) + jnp.mean(columns))
    nearest = jnp.argmax(logits, axis=1)
    accuracy = jnp.mean(target_id[nearest] == target_id)
    loss = alignment + uniformity
    return loss, {"alignment": alignment, "uniformity": uniformity, "accuracy": accuracy}
