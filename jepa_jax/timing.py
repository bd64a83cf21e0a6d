"""A training step and its parts, each ready to be run and timed by itself."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jepa_jax.config import Config
from jepa_jax.models.vl_jepa import VLJEPA, is_trained, normalise_frames
from jepa_jax.optim import make_optimizer
from jepa_jax.sharding import batch_sharding, parameter_shardings
from jepa_jax.state import abstract_state, init_state
from jepa_jax.step import Batch, compiler_options, jit_train_step, loss_of_embeddings

MODEL_PARTS = ("x_encoder", "predictor", "y_encoder")


def longest(config: Config) -> Config:
    """The run whose batches are all of one shape, the largest of the given run's: texts of the last length
    bucket and, of a mixture, clips of the datasets with the most frames."""
    data = config.data
    frames = max(dataset.frames for dataset in data.datasets)
    mixture = tuple(dataset for dataset in data.mixture if (dataset.frames or data.frames) == frames)
    changes = {"frames": frames, "mixture": mixture, "length_buckets": data.length_buckets[-1:]}
    return dataclasses.replace(config, data=dataclasses.replace(data, **changes))


def parts_of(config: Config) -> tuple[str, ...]:
    """Those of `MODEL_PARTS` that a step runs."""
    return tuple(name for name in MODEL_PARTS if name != "x_encoder" or not config.data.features)


def seconds(function: Callable[[], Any], runs: int) -> float:
    """Median time of a call that ends when its result is there; the first, which compiles, does not
    count, nor does the second, which still finds cold memory."""
    times = []
    for _ in range(runs + 2):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


class Step:
    """The training step as `train` compiles it, on parameters from the seed; `config.init` plays no
    part, because no time depends on what the parameters are."""

    def __init__(self, config: Config, mesh: Mesh):
        self._options = {"config": config}
        self._options["graphdef"], template = abstract_state(config, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, template)
        self.state = jax.jit(lambda: init_state(config)[1], out_shardings=shardings)()
        self._step = jit_train_step(template, config)

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Dispatch one step over a batch on the devices; its metrics."""
        self.state, metrics = self._step(self.state, batch, **self._options)
        return metrics


def model_part(name: str, config: Config, mesh: Mesh) -> Callable[..., tuple[jax.Array, Any]]:
    """One of `MODEL_PARTS`, jitted, on parameters from the seed: forward, and backward where anything
    in it trains.

    Returns:
      A function of a batch on the devices and, for the predictor, of visual tokens [B, N, D]; it gives
      the part's output and the gradients of its sum, None where there are none.
    """
    make = lambda rngs: getattr(VLJEPA(config.model, config.loss, rngs=rngs), name)
    in_whole = is_trained(config.optim.factors, config.loss)
    trained_filter = lambda path, x: in_whole((name, *path), x)

    def split(rngs):
        graphdef, params = nnx.split(make(rngs))
        return graphdef, nnx.split_state(params, trained_filter, ...)

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    draw = lambda: split(nnx.Rngs(config.seed))[1]
    shardings = parameter_shardings(jax.eval_shape(draw), mesh)
    trained, frozen = jax.jit(draw, out_shardings=shardings)()
    below = name == "predictor" and config.optim.factors.x_encoder > 0
    dtype = jnp.dtype(config.model.compute_dtype)

    def forward(trained, visual, frozen, batch):
        module = nnx.merge(graphdef, trained, frozen)
        if name == "x_encoder":
            return module(normalise_frames(batch["frames"], dtype))
        if name == "predictor":
            visual = jnp.repeat(visual, len(batch["query"]) // len(visual), axis=0)
            return module(visual, batch["query"], batch["query_mask"])
        return module(batch["target"], batch["target_mask"])

    has_gradient = bool(jax.tree.leaves(trained)) or below
    options = compiler_options(config) if has_gradient else None

    @functools.partial(jax.jit, compiler_options=options)
    def run(trained, visual, frozen, batch):
        if not has_gradient:
            return forward(trained, visual, frozen, batch), None
        if below:
            out, pull_back = jax.vjp(lambda t, v: forward(t, v, frozen, batch), trained, visual)
        else:
            out, pull_back = jax.vjp(lambda t: forward(t, visual, frozen, batch), trained)
        return out, pull_back(jnp.ones_like(out))

    return lambda batch, visual=None: run(trained, visual, frozen, batch)


def loss_part(config: Config, mesh: Mesh) -> Callable[[], Any]:
    """The loss over a batch's embeddings and its gradient, as a function of nothing."""
    pairs = config.batch_size * config.data.pairs_per_clip
    shape, dtype = (pairs, config.model.embedding_size), jnp.dtype(config.model.compute_dtype)

    def draw():
        keys = jax.random.split(jax.random.key(config.seed))
        return tuple(jax.random.normal(key, shape, dtype) for key in keys), jnp.arange(pairs)

    # Where a step has them: each device its own rows.
    embeddings, ids = jax.jit(draw, out_shardings=batch_sharding(mesh))()
    loss = jax.value_and_grad(loss_of_embeddings, argnums=(0, 1), has_aux=True)
    gradient = jax.jit(lambda *given: loss(*given, jax.random.key(config.seed), config))
    scale = -np.log(np.float32(config.loss.temperature))
    return lambda: gradient(scale, embeddings, ids)


def optimizer_part(config: Config, step: Step) -> Callable[[], Any]:
    """The update of a step's parameters, as a function of nothing; it takes the state from the step."""
    optimizer = make_optimizer(config.optim, config.steps)
    state, step.state = step.state, None
    gradients = jax.tree.map(jnp.copy, state.trained)
    kept = (state.trained, state.optimizer)

    def update(kept, gradients):
        trained, moments = kept
        updates, moments = optimizer.update(gradients, moments, trained)
        return (optax.apply_updates(trained, updates), moments), optax.tree.norm(gradients)

    shardings = jax.tree.map(lambda x: x.sharding, kept)
    update = jax.jit(update, donate_argnums=0, out_shardings=(shardings, None))

    def run():
        nonlocal kept
        kept, norm = update(kept, gradients)
        return kept, norm

    return run
