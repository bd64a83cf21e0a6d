"""The training step: pure functions of a run's state and a batch."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from jepa_jax.config import Config
from jepa_jax.losses import objective
from jepa_jax.models.sharded import device_platform, whole
from jepa_jax.models.vl_jepa import VLJEPA, names_of, normalise_frames, unit
from jepa_jax.optim import learning_rate_schedule, make_optimizer
from jepa_jax.sharding import batch_sharding, parameter_specs
from jepa_jax.state import TrainState

Batch = dict[str, jax.Array]
# The parts of a step that profiles and preflight tell apart, by `jax.named_scope` where each is computed.
SCOPES = ("x_encoder", "predictor", "y_encoder", "loss", "optimizer")


def _on_every_device(function: Callable, in_specs, out_specs) -> Callable:
    """Each device runs `function` on its own rows and its own share of every parameter; all that
    travels is what the function sends. On one device it is the function itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _specs(trained: nnx.State, frozen: nnx.State):
    """Where the parameters and the rows of a batch live: three PartitionSpecs or trees of them. On a mesh of
    the caller's own, without an axis "fsdp", every device has the parameters whole."""
    mesh = jax.sharding.get_abstract_mesh()
    fsdp = 1 if mesh.empty else mesh.shape.get("fsdp", 1)
    rows = PartitionSpec(() if mesh.empty else mesh.axis_names)
    return parameter_specs(trained, fsdp), parameter_specs(frozen, fsdp), rows


def _model_maker(trained: nnx.State, frozen: nnx.State, graphdef: nnx.GraphDef, dtype) -> Callable:
    """From a device's share of the parameters to a model to call there.

    Stacks gather a layer at a time and embedding tables are never gathered; the few other matrices
    are made whole here.
    """
    shapes = [jax.tree.map(jnp.shape, jax.tree.leaves(tree)) for tree in (trained, frozen)]

    def gathered(path, x, shape):
        names = set(names_of(path))
        if {"stacked", "token_embedding"} & names:
            return x
        # A kernel travels in the type that it is computed in; BERT's positions are added in float32.
        return whole(x, shape, dtype if "kernel" in names else None)

    def all_gathered(tree, shapes):
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        pairs = zip(leaves, shapes, strict=True)
        return jax.tree.unflatten(treedef, [gathered(*leaf, shape) for leaf, shape in pairs])

    return lambda *trees: nnx.merge(graphdef, *map(all_gathered, trees, shapes))


def _embed_rows(model: VLJEPA, batch: Batch) -> tuple[jax.Array, jax.Array]:
    visual = batch["visual"] if "visual" in batch else model.encode_frames(batch["frames"])
    # Several pairs of a clip share its visual tokens.
    visual = jnp.repeat(visual, len(batch["query"]) // len(visual), axis=0)
    predicted = model.predictor(visual, batch["query"], batch["query_mask"])
    return predicted, model.y_encoder(batch["target"], batch["target_mask"])


def embed(
    trained: nnx.State, frozen: nnx.State, graphdef: nnx.GraphDef, batch: Batch, config: Config
) -> tuple[jax.Array, jax.Array]:
    """Both sides of the loss, S^_Y and S_Y before normalisation: two [B, E].

    A batch holds `frames`, or in their place `visual`, the tokens of a frozen X-Encoder.
    """
    model = _model_maker(trained, frozen, graphdef, config.model.compute_dtype)
    here = lambda trained, frozen, batch: _embed_rows(model(trained, frozen), batch)
    *params, rows = _specs(trained, frozen)
    return _on_every_device(here, (*params, rows), (rows, rows))(trained, frozen, _rows_of(batch))


def encode_frames(
    x_encoder: nnx.State, graphdef: nnx.GraphDef, frames: jax.Array, config: Config
) -> jax.Array:
    """Visual tokens as a step sees them: [B, T, H, W, C] uint8 -> [B, N, D] in the compute type.

    Args:
      x_encoder, graphdef: of that part alone; `graphdef` and `config` are static.
    """
    dtype = jnp.dtype(config.model.compute_dtype)
    nothing = nnx.State({})
    model = _model_maker(nothing, x_encoder, graphdef, dtype)
    here = lambda params, frames: model(nothing, params)(normalise_frames(frames, dtype))
    _, params, rows = _specs(nothing, x_encoder)
    return _on_every_device(here, (params, rows), rows)(x_encoder, frames)


def _rows_of(batch: Batch) -> Batch:
    """What the model sees of a batch."""
    return {name: x for name, x in batch.items() if name != "target_id"}


@jax.named_scope("loss")
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
    embeddings = embed(trained, frozen, graphdef, batch, config)
    scale = (trained if "log_logit_scale" in trained else frozen)["log_logit_scale"][...]
    return loss_of_embeddings(scale, embeddings, batch["target_id"], key, config)


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
    between the two passes where the configuration says that they fit. A device cuts up its own rows, and
    gradients are summed over devices once, after the last piece.
    """
    model = _model_maker(trained, frozen, graphdef, config.model.compute_dtype)
    trained_specs, frozen_specs, rows = _specs(trained, frozen)
    keep_visual = config.optim.factors.x_encoder == 0 and config.keep_visual_tokens and "visual" not in batch

    def in_pieces(tree):
        """[b, ...] -> [pieces, b / pieces, ...]. Which rows come together does not matter to a loss
        over all of them."""
        return jax.tree.map(lambda x: x.reshape(config.micro_batches, -1, *x.shape[1:]), tree)

    joined = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def embed_here(trained, frozen, batch):
        def of_piece(piece):
            here = model(trained, frozen)
            visual = {"visual": here.encode_frames(piece["frames"])} if keep_visual else {}
            return _embed_rows(here, piece | visual), visual

        return joined(jax.lax.map(of_piece, in_pieces(batch)))

    def gradients_here(trained, frozen, batch, cotangents):
        def add_piece(total, inputs):
            piece, cotangents = inputs
            _, pull_back = jax.vjp(lambda t: _embed_rows(model(t, frozen), piece), trained)
            return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, trained)
        total, _ = jax.lax.scan(add_piece, zeros, in_pieces((batch, cotangents)))
        return jax.tree.map(_sum_over_the_others, total, trained_specs)

    params = (trained_specs, frozen_specs)
    features = _rows_of(batch)
    run = _on_every_device(embed_here, (*params, rows), ((rows, rows), rows))
    embeddings, visual = run(trained, frozen, features)
    scale = (trained if "log_logit_scale" in trained else frozen)["log_logit_scale"][...]
    value, (d_scale, d_embeddings) = jax.value_and_grad(loss_of_embeddings, argnums=(0, 1), has_aux=True)(
        scale, embeddings, batch["target_id"], key, config
    )
    if keep_visual:
        features.pop("frames")
    run = _on_every_device(gradients_here, (*params, rows, rows), trained_specs)
    grads = run(trained, frozen, features | visual, d_embeddings)
    if "log_logit_scale" in trained:
        grads["log_logit_scale"][...] = grads["log_logit_scale"][...] + d_scale
    return value, grads


def _sum_over_the_others(grad: jax.Array, spec: PartitionSpec) -> jax.Array:
    """A gradient's sum over the devices that hold the same share of the parameter."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = [] if mesh.empty or mesh.size == 1 else [axis for axis in mesh.axis_names if axis not in spec]
    return jax.lax.psum(grad, axes) if axes else grad


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
    with jax.named_scope("optimizer"):
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


def abstract_batch(config: Config, lengths: tuple[int, int], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and places of a global batch whose texts are padded to (query, target) lengths."""
    clips, pairs = config.batch_size, config.batch_size * config.data.pairs_per_clip
    frames, x_encoder = config.data.frames, config.model.x_encoder
    if config.data.features:
        seen = {"visual": ((clips, x_encoder.visual_tokens(frames), x_encoder.width), jnp.bfloat16)}
    else:
        seen = {"frames": ((clips, frames, x_encoder.image_size, x_encoder.image_size, 3), jnp.uint8)}
    shapes = {
        **seen,
        "query": ((pairs, lengths[0]), jnp.int32),
        "query_mask": ((pairs, lengths[0]), bool),
        "target": ((pairs, lengths[1]), jnp.int32),
        "target_mask": ((pairs, lengths[1]), bool),
        "target_id": ((pairs,), jnp.int32),
    }
    place = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct(s, d, sharding=place) for k, (s, d) in shapes.items()}


@functools.cache
def _cpu_options() -> dict[str, str] | None:
    # Products and sums by XLA's kernel library, the rest by LLVM: with products alone a step of
    # configs/benchmark_cpu.py takes 1.07 times as long, with elementwise work as well 1.3 times.
    # Each product by itself: with type DOT, which adds to a product what follows it, XLA lets the sum of a
    # matrix and its product with another take the place of that matrix while the product still reads it.
    # Muon is made of such sums; those of narrow kernels came out wrong by 1 to 8%, each time otherwise.
    kinds = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    options = {"xla_cpu_experimental_ynn_fusion_type": kinds}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except (jax.errors.JaxRuntimeError, ValueError):  # an XLA that does not know it
        return None
    return options


def compiler_options(config: Config) -> dict[str, str] | None:
    """XLA's options for code with a backward pass on the platform in context; None for its defaults,
    without which bfloat16 would be multiplied as float32."""
    if device_platform() != "cpu" or config.model.compute_dtype != "float32":
        return None
    return _cpu_options()


def jit_train_step(template: TrainState, config: Config):
    """`train_step` as training runs it: the old state's memory is the new state's.

    Args:
      template: the state, or its shapes, with their places.
      config: the run's, for which the compiler's options are.
    """
    shardings = jax.tree.map(lambda x: x.sharding, template)
    return jax.jit(
        train_step,
        static_argnames=("graphdef", "config"),
        donate_argnames="state",
        out_shardings=(shardings, None),
        compiler_options=compiler_options(config),
    )
