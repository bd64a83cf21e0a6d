"""The training step: pure functions of a run's state and a batch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from jepa_jax.config import Config
from jepa_jax.losses import objective
from jepa_jax.models.vl_jepa import unit
from jepa_jax.optim import learning_rate_schedule, make_optimizer
from jepa_jax.state import TrainState

Batch = dict[str, jax.Array]


def embed(
    trained: nnx.State, frozen: nnx.State, graphdef: nnx.GraphDef, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Both sides of the loss, S^_Y and S_Y before normalisation: two [B, E].

    A batch holds `frames`, or in their place `visual`, the tokens of a frozen X-Encoder.
    """
    model = nnx.merge(graphdef, trained, frozen)
    visual = batch["visual"] if "visual" in batch else model.encode_frames(batch["frames"])
    # Several pairs of a clip share its visual tokens.
    visual = jnp.repeat(visual, len(batch["query"]) // len(visual), axis=0)
    predicted = model.predictor(visual, batch["query"], batch["query_mask"])
    return predicted, model.y_encoder(batch["target"], batch["target_mask"])


def loss_of_embeddings(
    log_logit_scale: jax.Array,
    embeddings: tuple[jax.Array, jax.Array],
    target_id: jax.Array,
    key: jax.Array,
    config: Config,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of a global batch of embeddings."""
    logit_scale = jnp.exp(log_logit_scale)
    if config.loss.on_the_sphere:
        embeddings = tuple(map(unit, embeddings))
    loss, metrics = objective(*embeddings, target_id, logit_scale, key, config.loss)
    return loss, {**metrics, "temperature": 1 / logit_scale}


def loss_fn(
    trained: nnx.State,
    frozen: nnx.State,
    graphdef: nnx.GraphDef,
    batch: Batch,
    key: jax.Array,
    config: Config,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of a batch, as a function of the parameters that train."""
    embeddings = embed(trained, frozen, graphdef, batch)
    scale = (trained if "log_logit_scale" in trained else frozen)["log_logit_scale"][...]
    return loss_of_embeddings(scale, embeddings, batch["target_id"], key, config)


def _mesh_axes() -> tuple[tuple[str, ...], int]:
    """Axes and number of devices of the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    return ((), 1) if mesh.empty else (mesh.axis_names, mesh.size)


def _pinned(x: jax.Array, *spec) -> jax.Array:
    axes, _ = _mesh_axes()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec)) if axes else x


def _split(x: jax.Array, pieces: int) -> jax.Array:
    """[B, ...] -> [pieces, B / pieces, ...], every device cutting up its own rows.

    Which rows come together does not matter to a loss over all of them; moving none does.
    """
    axes, devices = _mesh_axes()
    x = x.reshape(devices, pieces, -1, *x.shape[1:]).swapaxes(0, 1)
    return _pinned(x.reshape(pieces, -1, *x.shape[3:]), None, axes)


def _joined(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    axes, devices = _mesh_axes()
    x = x.reshape(x.shape[0], devices, -1, *x.shape[2:]).swapaxes(0, 1)
    return _pinned(x.reshape(-1, *x.shape[3:]), axes)


def gradients_in_pieces(
    trained: nnx.State,
    frozen: nnx.State,
    graphdef: nnx.GraphDef,
    batch: Batch,
    key: jax.Array,
    config: Config,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], nnx.State]:
    """What `jax.value_and_grad(loss_fn, has_aux=True)` gives, in the memory of one piece.

    Every piece is embedded without gradients, the loss is taken over all embeddings at once, and each
    piece is embedded again to carry its share of the gradient to the parameters (GradCache, arXiv
    2101.06983). The negatives are those of the whole batch. Visual tokens of a frozen X-Encoder are kept
    between the two passes where the configuration says that they fit.
    """
    pieces = {name: _split(x, config.micro_batches) for name, x in batch.items() if name != "target_id"}
    x_encoder_frozen = config.optim.factors.x_encoder == 0
    if x_encoder_frozen and config.keep_visual_tokens and "visual" not in pieces:
        encode = lambda frames: nnx.merge(graphdef, trained, frozen).encode_frames(frames)
        pieces["visual"] = jax.lax.map(encode, pieces.pop("frames"))
    embeddings = jax.lax.map(lambda piece: embed(trained, frozen, graphdef, piece), pieces)
    embeddings = jax.tree.map(_joined, embeddings)

    scale_state = trained if "log_logit_scale" in trained else frozen
    loss_gradient = jax.value_and_grad(loss_of_embeddings, argnums=(0, 1), has_aux=True)
    value, (d_scale, d_embeddings) = loss_gradient(
        scale_state["log_logit_scale"][...], embeddings, batch["target_id"], key, config
    )

    def add_piece(total, inputs):
        piece, cotangents = inputs
        _, pull_back = jax.vjp(lambda t: embed(t, frozen, graphdef, piece), trained)
        return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

    d_pieces = jax.tree.map(lambda x: _split(x, config.micro_batches), d_embeddings)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    grads, _ = jax.lax.scan(add_piece, zeros, (pieces, d_pieces))
    if "log_logit_scale" in trained:
        grads["log_logit_scale"][...] = grads["log_logit_scale"][...] + d_scale
    return value, grads


def train_step(
    state: TrainState, batch: Batch, graphdef: nnx.GraphDef, config: Config
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step over a global batch.

    Args:
      state: the run's state.
      batch: as `pipeline.batches` makes it, on the device.
      graphdef, config: static.

    Returns:
      The next state and float32 scalars: `loss` and its terms (`alignment`, `uniformity`, `accuracy`
      of InfoNCE), `temperature`, `grad_norm`, `learning_rate`.
    """
    key = jax.random.fold_in(state.key, state.step)
    gradient = jax.value_and_grad(loss_fn, has_aux=True) if config.micro_batches == 1 else gradients_in_pieces
    (loss, metrics), grads = gradient(state.trained, state.frozen, graphdef, batch, key, config)
    optimizer = make_optimizer(config.optim, config.steps)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trained)
    metrics |= {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate_schedule(config.optim, config.steps)(state.step),
    }
    trained = optax.apply_updates(state.trained, updates)
    if "log_logit_scale" in trained:
        # Clipped after the update, not inside the loss, where a value beyond the cap would get no
        # gradient and never come back.
        scale = trained["log_logit_scale"]
        scale[...] = jnp.minimum(scale[...], math.log(config.loss.max_logit_scale))
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        trained=trained,
        optimizer=optimizer_state,
    )
    return state, metrics
