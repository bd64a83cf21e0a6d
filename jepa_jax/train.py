"""Train a VL-JEPA.

    python -m jepa_jax.train [--config=FILE.py] [--workdir=DIR] [--config.SECTION.FIELD=VALUE ...]

Without arguments it runs the demo. The same command again goes on where the run stopped.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from jepa_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()

import contextlib
import pathlib
import sys
from functools import partial

import jax
from flax import nnx
from jax.sharding import Mesh

from jepa_jax import distributed, evaluate, flags, loop
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError
from jepa_jax.config import Config
from jepa_jax.data import pipeline
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.evaluation.emoji_motion import TASKS
from jepa_jax.inference import Model
from jepa_jax.initial import open_initial
from jepa_jax.metrics import NotFiniteError, plot_loss, write_atomically
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, from_items, init_state, to_items
from jepa_jax.step import jit_train_step


def open_data(config: Config, mesh: Mesh):
    """The training batches and both tokenizers.

    Raises:
      ValueError: batch, mesh, data and tokenizers do not fit together.
    """
    if config.batch_size % (mesh.size * config.micro_batches):
        pieces = f" times {config.micro_batches} micro_batches" if config.micro_batches > 1 else ""
        raise ValueError(
            f"batch_size={config.batch_size} is not a multiple of the mesh's {mesh.size} devices{pieces}"
        )
    tokenizers = load_tokenizers(config)
    several = len(config.data.length_buckets) > 1  # only then are the lengths of all texts needed
    dataset = pipeline.batches(
        config,
        pipeline.open_source(config.data),
        tokenizers,
        texts=pipeline.open_source(config.data, with_frames=False) if several else None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return dataset, tokenizers


def train(config: Config, workdir: pathlib.Path) -> int:
    """Train to `config.steps`, going on from the work directory's last whole checkpoint, evaluate.

    Returns:
      The exit status: 0 when all is done, 128 + the signal when one stopped it, 1 when the last
      checkpoint could not be written.

    Raises:
      UsageError: the configuration does not fit this machine or the data, the work directory cannot
        be written, or it has checkpoints and none is whole.
      NotFiniteError: the loss or the gradient norm is NaN or infinite.
    """
    stop = loop.StopFlag()
    if jax.config.jax_compilation_cache_dir is None:
        # A run that goes on does not compile again; several hosts read what the first wrote.
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
    # All that can be wrong with the configuration comes out before anything is written.
    with flags.as_usage_errors(ValueError, OSError):
        mesh = make_mesh(config.fsdp)
        initial = open_initial(config, mesh)
        with distributed.main_first():
            dataset, tokenizers = open_data(config, mesh)
            by_recall = config.checkpoint.best_metric == "recall_at_1"
            validation = evaluate.Validation(config, tokenizers) if by_recall else None
            workdir.mkdir(parents=True, exist_ok=True)
            if distributed.is_main():
                write_atomically(workdir / "config.json", flags.config_to_json(config))
    checkpointer = Checkpointer(workdir / "checkpoints", config.checkpoint)
    with jax.set_mesh(mesh), contextlib.closing(checkpointer):
        graphdef, template = abstract_state(config, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, template)
        with flags.as_usage_errors(DamagedCheckpointError):
            restored = checkpointer.restore_latest(to_items(template))
        if restored is None:
            start, data_state = 0, None
            # On a CPU, code that runs once is not worth LLVM's optimisations: they take longer.
            quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            draw = jax.jit(lambda: init_state(config)[1], out_shardings=shardings, compiler_options=quick)
            with flags.as_usage_errors(DamagedCheckpointError):
                state = initial.apply(draw())
        else:
            start, items, data_state = restored
            state = from_items(items, config)
            if distributed.is_main():
                print(f"resuming from step {start} of {config.steps}")
        step_fn = partial(jit_train_step(template), graphdef=graphdef, config=config)
        iterator = pipeline.iterate(dataset, config.data, data_state)
        score = None
        if validation:
            score = lambda state: validation(nnx.merge(graphdef, state.trained, state.frozen))
        machinery = {"mesh": mesh, "checkpointer": checkpointer, "stop": stop, "score": score}
        state, done = loop.run_steps(step_fn, state, iterator, start, config, workdir, **machinery)
        if not done:
            return 128 + stop.signal
        if distributed.is_main():
            plot_loss(workdir)
        if config.eval.splits:
            model = Model(nnx.merge(graphdef, state.trained, state.frozen), config, tokenizers)
            evaluate.evaluate(model, workdir, list(TASKS))
    if not checkpointer.steps() or checkpointer.steps()[-1] != config.steps:
        print(f"error: the checkpoint of step {config.steps} could not be saved", file=sys.stderr)
        return 1
    return 0


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
    "data.threads",
    "data.prefetch",
    "checkpoint.every",
    "checkpoint.keep",
}


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--config", default=flags.DEFAULT_CONFIG, help="a Python config file")
    parser.add_argument("--workdir", help="where everything is written (default: runs/NAME)")
    distributed.add_arguments(parser)
    values, overrides = flags.parse(arguments, parser)
    config = flags.override(flags.load_config(values.config), overrides)
    workdir = pathlib.Path(values.workdir or f"runs/{config.name}").absolute()
    loop.check_workdir(config, workdir, _FREE_TO_CHANGE)
    distributed.initialize(values)
    try:
        with distributed.ending_together(workdir):
            return train(config, workdir)
    except NotFiniteError as error:
        print(f"error: {error}; the last good checkpoint is in {workdir}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
