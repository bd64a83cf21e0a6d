"""Optimizer: AdamW or Muon with a schedule and a learning-rate factor per part."""

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jepa_jax.config import OptimConfig, OptimizerConfig
from jepa_jax.models.vl_jepa import part_of


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step -> learning rate: linear warm-up from 0, then constant or a cosine down to
    `final_fraction` of the peak at `steps`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config.final_fraction)
    ramp = optax.linear_schedule(0.0, peak, max(warmup, 1))
    return optax.join_schedules([ramp, after], [warmup])


# Root mean square of Muon's updates at a rate of 1: about that of AdamW's (arXiv 2502.16982, section 2.2).
_ADAMW_RMS = 0.2


def _names(path) -> list[str]:
    return [str(getattr(p, "key", p)) for p in path]


def _decays(path, x) -> bool:
    """Weight decay is for matrices: not for gains, biases and the temperature. The layers of a
    stack add one axis, so names decide, not the number of axes."""
    return not {"scale", "bias", "log_logit_scale"} & set(_names(path))


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of the trained parameters alone (frozen ones are never passed in), then the factor of
    the part: it scales the decay as well, as a smaller learning rate would."""

    def scale_parts(updates, params=None):
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * getattr(config.factors, part_of(path)), updates
        )

    return optimizer_chain(config, steps, optax.stateless(scale_parts))


def optimizer_chain(
    config: OptimizerConfig, steps: int, *after: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Clip by the global norm, Adam or Muon, decoupled weight decay, schedule: in this order, and what
    comes after."""

    def decay_mask(params):
        return jax.tree_util.tree_map_with_path(_decays, params)

    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    scale = optax.scale_by_adam(config.b1, config.b2, config.eps)
    return optax.chain(
        *clip,
        _with_muon(config, scale) if config.name == "muon" else scale,
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps)),
        *after,
    )


def _with_muon(config: OptimizerConfig, rest: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon for the kernels of linear layers, `rest` for embeddings, gains, biases and the temperature."""

    def kind(path, x) -> str:
        return "matrix" if "kernel" in _names(path) else "rest"

    def axes(params):
        # Of a stack every layer is a matrix of its own.
        return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), params)

    def resize(updates, params=None):
        del params
        return jax.tree.map(lambda u: u * (_ADAMW_RMS * max(u.shape[-2:]) ** 0.5), updates)

    muon = scale_by_muon(ns_steps=config.muon_steps, beta=config.muon_decay, weight_dimension_numbers=axes)
    muon = optax.chain(muon, optax.stateless(resize))
    return optax.partition(
        {"matrix": muon, "rest": rest}, lambda params: jax.tree_util.tree_map_with_path(kind, params)
    )
