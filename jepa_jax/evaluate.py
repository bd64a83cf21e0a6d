"""Evaluate a trained model.

    python -m jepa_jax.evaluate --checkpoint=DIR [--task=NAME]

DIR is a work directory, one checkpoint in it, or a whole converted model. Without a task it runs all
of the run's own, those that write text if the model has a decoder. It prints a table and writes
DIR/eval/TASK.json.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
from flax import nnx

from jepa_jax import flags, inference, parts
from jepa_jax.config import Config
from jepa_jax.distributed import is_main
from jepa_jax.evaluation import emoji_motion
from jepa_jax.evaluation.clips import Subject, load_clips, shuffle_in_time
from jepa_jax.evaluation.pictures import plot_retrieval
from jepa_jax.inference import Model
from jepa_jax.metrics import write_atomically
from jepa_jax.models.vl_jepa import VLJEPA

CONTROLS = ("untrained", "shuffled")
ALL_TASKS = emoji_motion.TASKS | emoji_motion.TEXT_TASKS


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
        metrics = emoji_motion.retrieval(subject, self._clips, self._config.eval)
        return {"recall_at_1": metrics["text_to_video_recall_at_1"]["value"]}


def untrained_twin(model: Model) -> Model:
    """The same architecture and tokenizers with new weights."""
    config = model.config

    @jax.jit
    def create():
        rngs = nnx.Rngs(config.seed + 1)
        return nnx.split(VLJEPA(config.model, config.loss, rngs=rngs))

    return model.with_weights(nnx.merge(*create()))


def run_tasks(model: Model, tasks: list[str]) -> dict[str, dict[str, dict]]:
    """Every task on every split, beside the untrained model and the frames shuffled in time.

    Returns:
      {task: {"SPLIT/METRIC": {"value", "untrained", "shuffled", "chance", "n"}}}.
    """
    config = model.config.eval
    results: dict[str, dict[str, dict]] = {task: {} for task in tasks}
    twin = untrained_twin(model)
    for split in config.splits:
        frames, clips = load_clips(model.config, split, config.clips)
        subjects = {
            "value": Subject(model, frames),
            "untrained": Subject(twin, frames),
            "shuffled": Subject(model, shuffle_in_time(frames, model.config.seed)),
        }
        for task in tasks:
            found = {who: ALL_TASKS[task](subject, clips, config) for who, subject in subjects.items()}
            for name, metric in (found["value"] or {}).items():
                controls = {who: found[who][name]["value"] for who in CONTROLS}
                results[task][f"{split}/{name}"] = {**metric, **controls}
    return results


def format_table(results: dict[str, dict[str, dict]]) -> str:
    """The closing table: one row a metric, percentages but for ranks and CIDEr."""
    header = ("task", "split / metric", "model", "chance", "untrained", "shuffled", "n")
    rows = []
    for task, metrics in results.items():
        for name, metric in metrics.items():
            percent = "rank" not in name and "cider" not in name
            cells = [metric[k] for k in ("value", "chance", *CONTROLS)]
            shown = [f"{100 * c:.1f}%" if percent else f"{c:.2f}" for c in cells]
            rows.append((task, name, *shown, str(metric["n"])))
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        return "  ".join(left + right)

    return "\n".join([line(header), "-" * len(line(header)), *map(line, rows)])


def retrieval_picture(model: Model, rows: int = 6) -> tuple:
    """What `plot_retrieval` draws: texts and the clips they found on the first evaluation split."""
    config = model.config.eval
    frames, clips = load_clips(model.config, config.splits[0], config.clips)
    subject = Subject(model, frames)
    index, video, text = emoji_motion.caption_embeddings(subject, clips, config.retrieval_clips)
    # Rows are taken evenly over the clips, not chosen for how well they came out.
    shown = np.linspace(0, len(index) - 1, rows).astype(int)
    found = np.argsort(-(text[shown] @ video.T), axis=1, kind="stable")[:, :5]
    captions = [clips[index[i]].pair("describe")[1] for i in shown]
    return captions, found, shown, frames[index]


def evaluate(model: Model, workdir: pathlib.Path, tasks: list[str]) -> None:
    """Run tasks, write `eval/TASK.json` and `retrieval.png`, print the table.

    Every host takes part, for each holds a share of the model; the first writes.
    """
    results = run_tasks(model, tasks)
    drawn = "retrieval" in tasks and model.config.eval.splits
    picture = retrieval_picture(model) if drawn else None
    if not is_main():
        return
    (workdir / "eval").mkdir(exist_ok=True)
    for task, metrics in results.items():
        write_atomically(workdir / "eval" / f"{task}.json", json.dumps(metrics, indent=2) + "\n")
    if picture is not None:
        plot_retrieval(workdir / "retrieval.png", *picture)
    print(format_table(results))


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a work directory or a checkpoint in it")
    parser.add_argument("--task", help=f"one of {', '.join(ALL_TASKS)} (default: all)")
    parser.add_argument("--split", help="one split (default: those of the run's config)")
    values, overrides = flags.parse(arguments, parser)
    if overrides:
        raise flags.UsageError("the config is the checkpoint's own: no --config flags here")
    if values.task is not None and values.task not in ALL_TASKS:
        raise flags.UsageError(f"no task {values.task!r}: there are {', '.join(ALL_TASKS)}")
    model = inference.load(values.checkpoint)
    if not isinstance(model, Model):
        raise flags.UsageError(f"{values.checkpoint} holds one part: only whole models can be evaluated")
    path = pathlib.Path(values.checkpoint).absolute()
    workdir = path if parts.is_part(path) else inference.find_run(path)[0]
    if values.split is not None:
        config = model.config
        splits = dataclasses.replace(config.eval, splits=(values.split,))
        model.config = dataclasses.replace(config, eval=splits)
    every = ALL_TASKS if model.has_decoder else emoji_motion.TASKS
    tasks = list(every) if values.task is None else [values.task]
    if emoji_motion.TEXT_TASKS.keys() & set(tasks):
        _ = model.decoder  # what is wrong with it comes out before the other tasks run
    evaluate(model, workdir, tasks)
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
