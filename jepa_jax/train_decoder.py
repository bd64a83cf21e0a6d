"""Train a Y-Decoder for a trained model, on its texts alone.

    python -m jepa_jax.train_decoder --checkpoint=RUN [--config=FILE.py] [--workdir=DIR]
                                     [--config.SECTION.FIELD=VALUE ...]

RUN is a work directory, one checkpoint in it, or a whole converted model. The decoder is written to
RUN/decoder, where `jepa_jax.load(RUN)` finds it. The same command again goes on where it stopped.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from jepa_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()

import contextlib
import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jepa_jax import decoder, distributed, flags, inference, loop, parts
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError, sha256
from jepa_jax.config import Config, DataConfig, DecoderConfig
from jepa_jax.data import pipeline
from jepa_jax.data.bad_records import BadRecords, TooManyBadRecordsError
from jepa_jax.data.loader import Loader, WorkerEndedError
from jepa_jax.data.targets import target_batches
from jepa_jax.data.tokenizer import load_decoder_tokenizer, load_tokenizers
from jepa_jax.initial import check_same
from jepa_jax.metrics import NotFiniteError
from jepa_jax.models.vl_jepa import unit
from jepa_jax.models.y_decoder import YDecoder
from jepa_jax.optim import learning_rate_schedule, optimizer_chain
from jepa_jax.sharding import check_batch, make_mesh
from jepa_jax.state import TrainState, to_items


def init_state(config: DecoderConfig, embedding_size: int) -> tuple[nnx.GraphDef, TrainState]:
    """A new decoder and its state from the seed. Traceable."""
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    graphdef, params = nnx.split(YDecoder(config, embedding_size, rngs=nnx.Rngs(init_key)))
    optimizer = optimizer_chain(config.optim, config.steps).init(params)
    return graphdef, TrainState(jnp.zeros((), jnp.int32), step_key, params, nnx.State({}), optimizer)


def disturb(embedding: jax.Array, noise: float, key: jax.Array) -> jax.Array:
    """Unit vectors beside those given, in any direction: [B, E] -> [B, E]. The noise is about `noise`
    long, so the cosine of the angle between the two is about (1 + noise ** 2) ** -0.5."""
    direction = jax.random.normal(key, embedding.shape) * embedding.shape[-1] ** -0.5
    return unit(embedding + noise * direction)


def loss_fn(
    params: nnx.State, graphdef: nnx.GraphDef, embedding: jax.Array, text: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mean negative log-likelihood of the tokens of texts, in nats: [B, E], [B, L] int32, [B, L] bool."""
    logits = nnx.merge(graphdef, params)(embedding, text)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, text)
    return jnp.sum(losses * mask) / jnp.sum(mask)


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    y_encoder: nnx.Module,
    graphdef: nnx.GraphDef,
    config: DecoderConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step over a global batch of `target_batches`.

    Returns:
      The next state and float32 scalars: `loss`, `grad_norm`, `learning_rate`.
    """
    embedding = unit(y_encoder(batch["target"], batch["target_mask"]))
    embedding = disturb(embedding, config.noise, jax.random.fold_in(state.key, state.step))
    loss, grads = jax.value_and_grad(loss_fn)(
        state.trained, graphdef, embedding, batch["text"], batch["text_mask"]
    )
    updates, optimizer = optimizer_chain(config.optim, config.steps).update(
        grads, state.optimizer, state.trained
    )
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate_schedule(config.optim, config.steps)(state.step),
    }
    trained = optax.apply_updates(state.trained, updates)
    return dataclasses.replace(state, step=state.step + 1, trained=trained, optimizer=optimizer), metrics


@functools.partial(jax.jit, static_argnames=("config", "embedding_size"))
def _draw(config: DecoderConfig, embedding_size: int) -> TrainState:
    return init_state(config, embedding_size)[1]


# The old state's memory is the new state's.
_jitted_step = jax.jit(train_step, static_argnames=("graphdef", "config"), donate_argnames="state")


def open_init(config: DecoderConfig) -> parts.Part | None:
    """The converted language model that `config.init` names.

    Raises:
      ValueError: it is not there, of another kind, or of another shape; says which fields differ.
    """
    if config.init is None:
        return None
    part = parts.open_part(config.init)
    if part.name != "y_decoder":
        raise ValueError(f"init={config.init!r} holds a {part.name}: convert with --part=y_decoder")
    ours = parts.LanguageModelConfig(llama=config.llama, head=config.head)
    check_same(f"init={config.init!r}", flags.flatten(part.config), flags.flatten(ours))
    return part


def with_pair_weights(data: DataConfig, weights: tuple[tuple[str, float], ...]) -> DataConfig:
    """A run's data with other odds of the kinds of pairs, in every dataset of a mixture."""
    if not data.mixture:
        return dataclasses.replace(data, pair_weights=weights)
    mixture = tuple(dataclasses.replace(dataset, pair_weights=weights) for dataset in data.mixture)
    return dataclasses.replace(data, mixture=mixture)


def open_data(config: DecoderConfig, run: Config, mesh: Mesh, bad: BadRecords):
    """The training batches, their sources, and both tokenizers: of the targets and of the decoder.

    Raises:
      ValueError: batch, mesh, data and tokenizers do not fit together.
      TooManyBadRecordsError: too much was left out of a source.
    """
    check_batch(config.batch_size, mesh)
    data = run.data
    if config.pair_weights:
        data = with_pair_weights(data, config.pair_weights)
    sources = pipeline.open_sources(data, bad)
    tokenizers = load_tokenizers(run)[1], load_decoder_tokenizer(config)
    dataset = target_batches(
        config,
        data,
        sources,
        tokenizers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return dataset, sources, tokenizers


def train(config: DecoderConfig, run: Config, y_encoder: nnx.Module, workdir: epath.Path) -> int:
    """Train to `config.steps`, going on from the work directory's last whole checkpoint.

    Args:
      run: of the model whose embeddings are decoded.
      y_encoder: that model's, of arrays of this host.

    Returns:
      The exit status, as `jepa_jax.train` gives it.

    Raises:
      UsageError: the configuration does not fit the model, this machine or the data, or the work
        directory has checkpoints and none is whole, or those of another run's decoder.
      NotFiniteError: the loss or the gradient norm is NaN or infinite.
      TooManyBadRecordsError: more records than the run's `data.max_bad_fraction` have unusable texts.
      WorkerEndedError: one of `data.workers` died.
    """
    bad = loop.open_tally(run.data.max_bad_fraction, workdir)
    with flags.as_usage_errors(ValueError, OSError):
        loop.check_hosts(config)
        mesh = make_mesh()
        distributed.connect(mesh)
        with distributed.main_first():
            part = None if loop.begun(workdir) else open_init(config)
            dataset, sources, tokenizers = open_data(config, run, mesh, bad)
            taken = loop.take_workdir(config, workdir)
        distributed.check_shared(workdir)
        weights = sha256(nnx.state(y_encoder))
        identity = loop.identity_of(sources, tokenizers)
        loop.check_inputs(identity, part, y_encoder=weights)
    # A decoder is small: every device has the whole of it and its own rows of the batch.
    everywhere = NamedSharding(mesh, PartitionSpec())
    with (
        taken,
        jax.set_mesh(mesh),
        contextlib.closing(Checkpointer(workdir / "checkpoints", config.checkpoint)) as checkpointer,
    ):
        size = run.model.embedding_size
        graphdef, shapes = jax.eval_shape(lambda: init_state(config, size))
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
        with flags.as_usage_errors(DamagedCheckpointError):
            restored = checkpointer.restore_latest(to_items(template))
            if restored is None:
                start, data_state, part = 0, None, part or open_init(config)
                state = jax.device_put(_draw(config, size), everywhere)
                if part is not None:
                    model_params = state.trained["language_model"]
                    read = part.read(dict.fromkeys(part.shapes, everywhere))
                    state.trained["language_model"] = parts.filled(model_params, read)
            else:
                start, items, data_state = restored
                decoder.check_weights(workdir, data_state, weights)
                state = TrainState(trained=items["params"], frozen=nnx.State({}), **items["training"])
                loop.going_on(start, config, data_state, identity)
        y_encoder = jax.device_put(y_encoder, everywhere)
        step_fn = functools.partial(_jitted_step, y_encoder=y_encoder, graphdef=graphdef, config=config)
        _, stopped_by = loop.run_steps(
            step_fn,
            state,
            Loader(dataset, run.data, bad, data_state),
            start,
            config,
            workdir,
            mesh=mesh,
            checkpointer=checkpointer,
            bad=bad,
            identity=identity | {"y_encoder": weights},
        )
    if stopped_by:
        return 128 + stopped_by
    return loop.status_of(checkpointer, config.steps)


# What may differ when training goes on: where and how fast it runs, not what it computes.
_FREE_TO_CHANGE = {"remat", "scan_layers", "log_every", "checkpoint.every", "checkpoint.keep"}


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="the run whose embeddings are decoded")
    parser.add_argument("--config", default="configs/demo_decoder.py", help="a Python config file")
    parser.add_argument(
        "--workdir", type=flags.place, help="where everything is written (default: RUN/decoder)"
    )
    distributed.add_arguments(parser)
    values, overrides = flags.parse(arguments, parser)
    config = flags.override(flags.load_config(values.config, DecoderConfig), overrides)
    distributed.initialize(values, stops_by_step=True)
    with distributed.together():
        model = inference.load(values.checkpoint)
        if not isinstance(model, inference.Model):
            raise flags.UsageError(f"{values.checkpoint} holds one part: a decoder is for whole models")
        if config.run_step not in (None, model.step):
            raise flags.UsageError(
                f"run_step={config.run_step}, but {values.checkpoint} is step {model.step}: give "
                f"--checkpoint=WORKDIR/checkpoints/{config.run_step}"
            )
    workdir = values.workdir or model.home / "decoder"
    config = dataclasses.replace(config, run_step=model.step)
    with distributed.together():
        loop.check_workdir(config, workdir, _FREE_TO_CHANGE)
    # The rest of the model, which is most of it, leaves the device's memory to the decoder.
    run, y_encoder = model.config, jax.tree.map(np.asarray, model.module.y_encoder)
    del model
    with distributed.ending_together(workdir):
        try:
            return train(config, run, y_encoder, workdir)
        except (NotFiniteError, TooManyBadRecordsError, WorkerEndedError) as error:
            return loop.report_failure(error, workdir)


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
