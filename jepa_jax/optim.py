"""Optimizer: AdamW with a schedule and a learning-rate factor per part."""

import jax
import optax

from jepa_jax.config import AdamWConfig, OptimConfig
from jepa_jax.models.vl_jepa import part_of


def learning_rate_schedule(config: AdamWConfig, steps: int) -> optax.Schedule:
    """Step -> learning rate: linear warm-up from 0, then constant or a cosine down to
    `final_fraction` of the peak at `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_fraction)
    ramp = optax.linear_schedule(0.0, peak, max(warmup, 1))
    return optax.join_schedules([ramp, after], [warmup])


def _decays(path, x) -> bool:
    """Weight decay is for matrices: not for gains, biases and the temperature. The layers of a
    stack add one axis, so names decide, not the number of axes."""
    names = [str(getattr(p, "key", p)) for p in path]
    return "kernel" in names or "token_embedding" in names


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW over the trained parameters alone (frozen ones are never passed in), then the factor of
    the part: it scales the decay as well, as a smaller learning rate would."""

    def scale_parts(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * getattr(config.factors, part_of(path)), updates
        )

    return adamw(config, steps, optax.stateless(scale_parts))


def adamw(
    config: AdamWConfig, steps: int, *after: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Clip by the global norm, Adam, decoupled weight decay, schedule: in this order, and what comes
    after."""

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(_decays, params)

    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
        *after,
    )
