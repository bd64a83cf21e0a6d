"""Evaluate a trained model.

    python -m jepa_jax.evaluate --checkpoint=DIR [--task=NAME] [--split=NAME] [--decoder=DIR]
    python -m jepa_jax.evaluate --checkpoint=DIR --task=selective [--texts=bank|decoder]
    python -m jepa_jax.evaluate --checkpoint=DIR --task=NAME --annotations=PATH --media=FOLDER

DIR is a work directory, one checkpoint in it, or a converted model. The first form runs the tasks of
the default data, all (those that write text if the model has a decoder) or one; the second watches
clips joined to streams, and draws CIDEr over decodes per second to DIR/selective.png; the third runs a
benchmark of the paper from its official annotation files (docs/evaluation.md names them). All print a
table and write DIR/eval/TASK.json; what a benchmark lacks is in DIR/eval/TASK.missing.json. Of one
checkpoint in a run DIR is RUN/evaluated/STEP.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from etils import epath
from flax import nnx

from jepa_jax import distributed, flags, inference, parts
from jepa_jax.config import Config
from jepa_jax.evaluation import benchmark, emoji_motion, frames, pairs, selective_streams, wording
from jepa_jax.evaluation.benchmarks import BENCHMARKS
from jepa_jax.evaluation.clips import Clip, Subject, load_clips, shuffle_in_time
from jepa_jax.evaluation.media import MediaFolder
from jepa_jax.evaluation.paper import beside_paper
from jepa_jax.evaluation.pictures import plot_retrieval
from jepa_jax.evaluation.report import format_table, write_json
from jepa_jax.inference import Model
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.places import place
from jepa_jax.runs import find_run
from jepa_jax.streaming.texts import NearestText, Written

CONTROLS = ("untrained", "shuffled")
OWN_TASKS = emoji_motion.TASKS | emoji_motion.TEXT_TASKS | emoji_motion.ON_REQUEST
SELECTIVE = "selective"
BENCHMARK_FLAGS = ("annotations", "media", "query", "wordings")
_NO_SPLITS = "the run's eval.splits are none: name one with --split"


def tasks_of(clips: list[Clip]) -> dict:
    """What can be asked about clips: more where they have the default data's labels."""
    return OWN_TASKS if all(map(emoji_motion.is_labelled, clips)) else pairs.TASKS


class Validation:
    """Retrieval on the validation split while training, to tell which checkpoint is the best."""

    def __init__(self, config: Config, tokenizers):
        self._config = config
        self._tokenizers = tokenizers
        self._frames, self._clips = load_clips(
            config, config.eval.validation_split, config.eval.retrieval_clips
        )

    def __call__(self, model: VLJEPA) -> dict[str, float]:
        """{"recall_at_1": text-to-video R@1 of the model as it is}."""
        subject = Subject(Model(model, self._config, self._tokenizers), self._frames)
        metrics = tasks_of(self._clips)["retrieval"](subject, self._clips, self._config.eval)
        return {"recall_at_1": metrics["text_to_video_recall_at_1"]["value"]}


def untrained_twin(model: Model) -> Model:
    """The same architecture and tokenizers with new weights, as those of the model are spread."""
    config = model.config
    graphdef, state = nnx.split(model.module)

    def create():
        rngs = nnx.Rngs(config.seed + 1)
        return nnx.state(VLJEPA(config.model, config.loss, rngs=rngs))

    create = jax.jit(create, out_shardings=jax.tree.map(lambda x: x.sharding, state))
    return model.with_weights(nnx.merge(graphdef, create()))


def run_tasks(model: Model, tasks: list[str], look: Callable[[], None]) -> dict[str, dict[str, dict]]:
    """Every task on every split that has the labels for it, beside the untrained model and the frames
    shuffled in time.

    Args:
      look: see `evaluate`.

    Returns:
      {task: {"SPLIT/METRIC": {"value", "untrained", "shuffled", "chance", "n"}}}, empty for a task that
      no split has the labels for.
    """
    config = model.config.eval
    results: dict[str, dict[str, dict]] = {task: {} for task in tasks}
    twin = untrained_twin(model)

    def after_a_look(part, *arguments):
        look()
        return part(*arguments)

    for split in config.splits:
        with flags.as_usage_errors(ValueError, OSError):
            frames, clips = load_clips(model.config, split, config.clips)
        subjects = {
            "value": after_a_look(Subject, model, frames),
            "untrained": after_a_look(Subject, twin, frames),
            "shuffled": after_a_look(Subject, model, shuffle_in_time(frames, model.config.seed)),
        }
        possible = tasks_of(clips)
        for task in [task for task in tasks if task in possible]:
            ask = partial(after_a_look, possible[task])
            found = {who: ask(subject, clips, config) for who, subject in subjects.items()}
            for name, metric in (found["value"] or {}).items():
                controls = {who: found[who][name]["value"] for who in CONTROLS}
                results[task][f"{split}/{name}"] = {**metric, **controls}
    return results


def retrieval_picture(model: Model, rows: int = 6) -> tuple:
    """What `plot_retrieval` draws: texts and the clips they found on the first evaluation split."""
    config = model.config.eval
    frames, clips = load_clips(model.config, config.splits[0], config.clips)
    subject = Subject(model, frames)
    if tasks_of(clips) is OWN_TASKS:
        index, video, text = emoji_motion.caption_embeddings(subject, clips, config.retrieval_clips)
        captions = [clips[i].pair("describe")[1] for i in index]
    else:
        index, captions, video, text = pairs.answer_embeddings(subject, clips, config.retrieval_clips)
    # Rows are taken evenly over the clips, not chosen for how well they came out.
    shown = np.linspace(0, len(index) - 1, min(rows, len(index))).astype(int)
    found = np.argsort(-(text[shown] @ video.T), axis=1, kind="stable")[:, :5]
    return [captions[i] for i in shown], found, shown, frames[index]


def evaluate(
    model: Model, workdir: epath.Path, tasks: list[str], look: Callable[[], None] = lambda: None
) -> None:
    """Run tasks, write `eval/TASK.json` and `retrieval.png`, print the table; nothing of a task that the
    data have no labels for.

    Every host takes part, for each holds a share of the model; the first writes.

    Args:
      look: called on every host before each part of the work, equally often; what it raises ends it.

    Raises:
      UsageError: a split cannot be read, none has the labels for any of the tasks, or the results, which
        are printed, cannot be written.
    """
    results = {task: metrics for task, metrics in run_tasks(model, tasks, look).items() if metrics}
    if not results:
        if not model.config.eval.splits:
            raise flags.UsageError(_NO_SPLITS)
        splits = ", ".join(model.config.eval.splits)
        raise flags.UsageError(
            f"nothing to evaluate: splits ({splits}) have no labels for {', '.join(tasks)}"
        )
    picture = retrieval_picture(model) if "retrieval" in results else None
    if not distributed.is_main():
        return
    print(format_table(results))  # first: the run may be another's, where nothing can be written
    with flags.as_usage_errors(OSError):
        for task, metrics in results.items():
            write_json(workdir, task, metrics)
        if picture is not None:
            plot_retrieval(workdir / "retrieval.png", *picture)


def read_benchmark(values: argparse.Namespace) -> benchmark.Benchmark:
    """The benchmark that the command line asks for.

    Raises:
      UsageError: a flag is missing or wrong, or the annotation files are.
    """
    task = BENCHMARKS[values.task]
    split = values.split or task.splits[0]
    if split not in task.splits:
        raise flags.UsageError(f"{values.task} has no split {split!r}: there are {', '.join(task.splits)}")
    if values.annotations is None:
        raise flags.UsageError(f"--task={values.task} needs --annotations=PATH: see docs/evaluation.md")
    path = pathlib.Path(values.annotations)
    if not path.exists():
        raise flags.UsageError(f"--annotations={values.annotations}: no such file or folder of this machine")
    if values.query is not None and values.wordings is not None:
        raise flags.UsageError("--query and --wordings: give one, each says what is asked")
    found = task.read(path, split)
    if values.query is not None:
        found = benchmark.with_query(found, values.query)
    if values.wordings is not None:
        found = wording.reworded(found, wording.read_wordings(pathlib.Path(values.wordings)))
    return found


def evaluate_benchmark(
    asked: benchmark.Benchmark, model, workdir: epath.Path, name: str, media: str | None
) -> None:
    """Run one benchmark, write `eval/NAME.json` and `eval/NAME.missing.json`, print the table.

    Raises:
      UsageError: the model is a part that this benchmark is not about, or nothing could be scored.
    """
    sees = any(item.media for item in asked.items)
    if not hasattr(model, "predict" if sees else "embed_text"):
        raise flags.UsageError(f"{workdir} holds one part of a model, and {name} needs another or the whole")
    watching = None
    if sees:
        config = model.config
        watching = benchmark.Watching(
            media=None if media is None else MediaFolder(media),
            load_frames=frames.loader(config),
            frames=config.data.frames,
            batch_size=config.eval.batch_size,
            threads=config.data.threads,
            check_query=model.check_query,
        )
    outcome = benchmark.run(asked, model, watching)
    metrics = beside_paper(name, outcome.metrics)
    if not distributed.is_main():
        return
    print(format_table({name: metrics}))
    with flags.as_usage_errors(OSError):
        write_json(workdir, name, metrics)
        missing = write_json(workdir, f"{name}.missing", outcome.missing)
    if outcome.missing:
        print(benchmark.missing_sentence(outcome, str(missing)))


def evaluate_selective(model: Model, workdir: epath.Path, split: str | None, by_decoder: bool) -> None:
    """Selective against uniform decoding: write `eval/selective.json` and `selective.png`, print the table.

    Raises:
      UsageError: a split cannot be read, or windows of the run's frames cannot overlap by half.
    """
    config = model.config.eval
    if not (split or config.splits):
        raise flags.UsageError(_NO_SPLITS)
    splits = (config.validation_split, split or config.splits[0])
    speak = (lambda model, _: Written(model)) if by_decoder else NearestText
    with flags.as_usage_errors(ValueError, OSError):
        metrics, curves, places = selective_streams.evaluate(model, speak, splits)
    if not distributed.is_main():
        return
    print(format_table({SELECTIVE: metrics}))
    with flags.as_usage_errors(OSError):
        write_json(workdir, SELECTIVE, metrics)
        selective_streams.plot(workdir / "selective.png", curves, places)


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    known = [*OWN_TASKS, SELECTIVE, *BENCHMARKS]
    parser = flags.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a work directory or a checkpoint in it")
    parser.add_argument("--task", help=f"one of {', '.join(known)} (default: all of the default data)")
    parser.add_argument("--split", help="one split (default: those of the run's config, or the paper's)")
    parser.add_argument("--annotations", help="a benchmark's annotation file, or the folder of them")
    parser.add_argument("--media", help="the folder of a benchmark's videos or images, in any layout")
    parser.add_argument("--query", help="asked in place of the benchmark's own; '' for none")
    parser.add_argument("--wordings", help="a JSON list of queries: how far answers spread over them")
    parser.add_argument(
        "--texts",
        choices=("bank", "decoder"),
        help="who speaks in --task=selective (default: the bank's nearest)",
    )
    parser.add_argument(
        "--decoder", metavar="DIR", help="a decoder elsewhere than in the run (default: its own)"
    )
    flags.add_batch(parser)
    values = flags.parse_without_config(arguments, parser)
    if values.task is not None and values.task not in known:
        raise flags.UsageError(f"no task {values.task!r}: there are {', '.join(known)}")
    asked = read_benchmark(values) if values.task in BENCHMARKS else None
    for flag in BENCHMARK_FLAGS:
        if asked is None and getattr(values, flag) is not None:
            raise flags.UsageError(f"--{flag} is for benchmarks: name one with --task")
    if values.task != SELECTIVE and values.texts is not None:
        raise flags.UsageError("--texts is for --task=selective")
    writes = asked.needs_decoder if asked is not None else values.task in (None, *emoji_motion.TEXT_TASKS)
    if values.decoder is not None and not (writes or values.texts == "decoder"):
        raise flags.UsageError(f"--decoder is for what writes text, and --task={values.task} does not")
    distributed.check_devices()
    taking = {"devices": jax.local_devices(), "batch_size": values.batch}
    model = inference.load(values.checkpoint, values.decoder, **taking)
    path = place(values.checkpoint)
    workdir, step = (path, None) if parts.is_part(path) else find_run(path)
    if step is not None:  # what the run itself was evaluated to stays
        workdir = workdir / "evaluated" / str(step)
        if distributed.is_main():
            print(f"what is found of checkpoint {step} goes to {workdir}")
    if asked is not None:
        name = values.task if values.wordings is None else f"{values.task}_wording"
        evaluate_benchmark(asked, model, workdir, name, values.media)
        return 0
    if not isinstance(model, Model):
        raise flags.UsageError(f"{values.checkpoint} holds one part: only whole models can be evaluated")
    if values.task == SELECTIVE:
        if values.texts == "decoder":
            _ = model.decoder  # what is wrong with it comes out before anything runs
        evaluate_selective(model, workdir, values.split, values.texts == "decoder")
        return 0
    if values.split is not None:
        config = model.config
        splits = dataclasses.replace(config.eval, splits=(values.split,))
        model.config = dataclasses.replace(config, eval=splits)
    every = emoji_motion.TASKS | (emoji_motion.TEXT_TASKS if model.has_decoder else {})
    tasks = list(every) if values.task is None else [values.task]
    if emoji_motion.TEXT_TASKS.keys() & set(tasks):
        _ = model.decoder  # what is wrong with it comes out before the other tasks run
    evaluate(model, workdir, tasks)
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
