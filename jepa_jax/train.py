"""Train a VL-JEPA.

    python -m jepa_jax.train [--config=FILE.py] [--workdir=DIR] [--config.SECTION.FIELD=VALUE ...]

Without arguments it runs the demo. The same command again goes on where the run stopped.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from jepa_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()

import contextlib
import signal
import sys
from functools import partial

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jepa_jax import distributed, evaluate, flags, loop
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError, sha256
from jepa_jax.config import Config
from jepa_jax.data import advice, features, pipeline
from jepa_jax.data.bad_records import BadRecords, TooManyBadRecordsError
from jepa_jax.data.loader import Loader, WorkerEndedError
from jepa_jax.data.sources.selection import only_query
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.evaluation.clips import open_split
from jepa_jax.evaluation.emoji_motion import TASKS
from jepa_jax.inference import Model
from jepa_jax.initial import open_initial
from jepa_jax.metrics import NotFiniteError, plot_loss
from jepa_jax.places import is_local, place
from jepa_jax.sharding import check_batch, make_mesh
from jepa_jax.state import abstract_state, draw_state, from_items, to_items
from jepa_jax.step import jit_train_step


def open_data(config: Config, mesh: Mesh, bad: BadRecords, workdir: epath.Path):
    """The training batches, their sources, and both tokenizers.

    Raises:
      ValueError: batch, mesh, data and tokenizers do not fit together.
      TooManyBadRecordsError: more records than `data.max_bad_fraction` cannot be used.
    """
    # Not in the config: what a step of one pair costs may be asked.
    if config.loss.objective == "info_nce" and config.batch_size * config.data.pairs_per_clip == 1:
        raise ValueError("loss.objective='info_nce' tells a pair from others: set batch_size to 2 or more")
    check_batch(config.batch_size, mesh, config.micro_batches)
    tokenizers = load_tokenizers(config)
    sources = pipeline.open_sources(config.data, bad)
    dataset = pipeline.batches(
        config,
        sources,
        tokenizers,
        bad=bad,
        cache=workdir / "cache",
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return dataset, sources, tokenizers


def keep_programs(workdir: epath.Path) -> None:
    """A run that goes on does not compile again; several hosts read what the first wrote. Whoever has set
    JAX's cache keeps it."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
    if not is_local(workdir):
        # There XLA itself would keep what it measured of a GPU's kernels: not in a bucket, and it would end.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


class StoppedError(RuntimeError):
    """Some host got SIGTERM after the last step."""


def look_for_sigterm() -> None:
    """What all hosts call in turn once the last step is saved, equally often: it raises StoppedError, on all
    in the same call, when one has got SIGTERM, by which a process alone ends. Among several JAX takes it."""
    if distributed.asked_to_stop():
        raise StoppedError


def train(config: Config, workdir: epath.Path) -> int:
    """Train to `config.steps`, going on from the work directory's last whole checkpoint, evaluate.

    Returns:
      The exit status: 0 when all is done, 128 + the signal when one stopped it, 1 when the last
      checkpoint could not be written.

    Raises:
      UsageError: the configuration does not fit this machine or the data, the work directory cannot
        be written, or it has checkpoints and none is whole.
      NotFiniteError: the loss or the gradient norm is NaN or infinite.
      TooManyBadRecordsError: more records than `data.max_bad_fraction` cannot be used.
      WorkerEndedError: one of `data.workers` died.
    """
    bad = loop.open_tally(config.data.max_bad_fraction, workdir)
    keep_programs(workdir)
    # All that can be wrong with the configuration comes out before anything is written.
    with flags.as_usage_errors(ValueError, OSError):
        loop.check_hosts(config)
        mesh = make_mesh(config.fsdp)
        distributed.connect(mesh)
        with distributed.main_first():
            initial = None if loop.begun(workdir) else open_initial(config, mesh)
            if config.data.features:
                features.check_preprocessing(config)
            by_recall = config.checkpoint.best_metric == "recall_at_1"
            splits = [*config.eval.splits, *[config.eval.validation_split] * by_recall]
            evaluated = pipeline.identity([open_split(config, split)[1] for split in splits])
            dataset, sources, tokenizers = open_data(config, mesh, bad, workdir)
            validation = evaluate.Validation(config, tokenizers) if by_recall else None
            taken = loop.take_workdir(config, workdir)
        distributed.check_shared(workdir)
        identity = loop.identity_of(sources, tokenizers)
        loop.check_inputs(identity, initial, evaluation=evaluated)
        if (query := only_query(sources)) is not None:
            identity["query"] = query  # what the model is to be asked later
    with (
        taken,
        jax.set_mesh(mesh),
        contextlib.closing(Checkpointer(workdir / "checkpoints", config.checkpoint)) as checkpointer,
    ):
        graphdef, template = abstract_state(config, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, template)
        with flags.as_usage_errors(DamagedCheckpointError):
            restored = checkpointer.restore_latest(to_items(template))
        if restored is None:
            start, data_state = 0, None
            with flags.as_usage_errors(DamagedCheckpointError):
                initial = initial or open_initial(config, mesh)
                state = initial.apply(draw_state(config, shardings), identity["tokenizers"])
        else:
            start, items, data_state = restored
            state = from_items(items, config)
            loop.going_on(start, config, data_state, identity)
        if config.data.features:
            x_encoder = sha256(state.frozen["x_encoder"])
            # Each host may have a copy of its own: where one is of other weights, none may go on.
            with flags.as_usage_errors(ValueError), distributed.together():
                features.check_weights(config.data.features, x_encoder)
        step_fn = partial(jit_train_step(template, config), graphdef=graphdef, config=config)
        loader = Loader(dataset, config.data, bad, data_state)
        score = None
        if validation:
            score = lambda state: validation(nnx.merge(graphdef, state.trained, state.frozen))
        state, stopped_by = loop.run_steps(
            step_fn,
            state,
            loader,
            start,
            config,
            workdir,
            mesh=mesh,
            checkpointer=checkpointer,
            bad=bad,
            identity=identity,
            score=score,
            after=advice.Advisor(config.data, sources, tell=distributed.is_main()).after,
        )
        if stopped_by:
            return 128 + stopped_by
        if distributed.is_main():
            plot_loss(workdir)
        if bad.total and (left_out := bad.summary()):
            print(left_out, file=sys.stderr)
        if config.eval.splits:
            model = Model(nnx.merge(graphdef, state.trained, state.frozen), config, tokenizers)
            try:
                evaluate.evaluate(model, workdir, list(TASKS), look_for_sigterm)
            except StoppedError:
                distributed.tell(f"\nSIGTERM: stopping before step {config.steps} is evaluated to the end")
                return 128 + signal.SIGTERM
    return loop.status_of(checkpointer, config.steps)


# What may differ when a run goes on: where and how fast it runs, not what it computes.
_FREE_TO_CHANGE = {
    "fsdp",
    "micro_batches",
    "keep_visual_tokens",
    "log_every",
    "model.remat",
    "model.scan_layers",
    "loss.chunk",
    "data.data_dir",
    # The same tokens to bfloat16, or refused.
    "data.features",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.max_bad_fraction",
    "checkpoint.every",
    "checkpoint.keep",
    "eval.batch_size",
}


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--config", default=flags.DEFAULT_CONFIG, help="a Python config file")
    parser.add_argument(
        "--workdir",
        type=flags.place,
        help="where everything is written, DIR or gs://BUCKET/DIR (default: runs/NAME)",
    )
    distributed.add_arguments(parser)
    values, overrides = flags.parse(arguments, parser)
    config = flags.override(flags.load_config(values.config), overrides)
    workdir = values.workdir or place(f"runs/{config.name}")
    distributed.initialize(values, stops_by_step=True)
    with distributed.together():  # one host that refuses would leave the others waiting
        loop.check_workdir(config, workdir, _FREE_TO_CHANGE)
    with distributed.ending_together(workdir):
        try:
            return train(config, workdir)
        except (NotFiniteError, TooManyBadRecordsError, WorkerEndedError) as error:
            return loop.report_failure(error, workdir)


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
