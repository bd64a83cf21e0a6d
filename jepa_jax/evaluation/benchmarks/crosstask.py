"""CrossTask: 18 primary tasks and their steps."""

import dataclasses
import pathlib

from jepa_jax.evaluation import classification
from jepa_jax.evaluation.annotations import folder_of, locate, read_lists, read_text_lines
from jepa_jax.evaluation.benchmark import Benchmark, Item
from jepa_jax.flags import UsageError

SPLITS = ("val",)
QUERY_STEP = "What step is being done in the video?"
QUERY_TASK = "What task is being done in the video?"
STEP_TEMPLATES = ("{}",)
TASK_TEMPLATES = ("{}", "a video of how to {}")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task's name and steps, in order."""

    name: str
    steps: list[str]


def read_tasks_file(path: pathlib.Path) -> dict[str, Task]:
    """`tasks_primary.txt`: of each task its id, name, address, number of steps and steps, a line each.

    Raises:
      UsageError: it is not of that form.
    """
    lines = read_text_lines(path)
    tasks = {}
    for first in range(0, len(lines), 5):
        block = lines[first : first + 5]
        steps = [step.strip() for step in block[-1].split(",")]
        if len(block) < 5 or block[3] != str(len(steps)):
            raise UsageError(
                f"{path} is not of the form expected: five lines a task (id, name, address, number of "
                f"steps, steps between commas), but the block of {block[0]!r} is another"
            )
        tasks[block[0]] = Task(block[1], steps)
    return tasks


def _videos(path: pathlib.Path) -> list[tuple[str, str]]:
    """(task, video) of the rows TASK,VIDEO,ADDRESS."""
    file = locate(path, "videos_val.csv")
    rows = read_lists(file)
    if any(len(row) < 2 for row in rows):
        raise UsageError(f"{file} is not of the form expected: TASK,VIDEO,ADDRESS in every line")
    return [(row[0], row[1]) for row in rows]


def read_steps(path: pathlib.Path, split: str) -> Benchmark:
    """Step recognition: `tasks_primary.txt`, `videos_val.csv` and `annotations/TASK_VIDEO.csv`
    (step, start, end); media VIDEO.mp4. The candidates are the distinct steps of all tasks."""
    tasks = read_tasks_file(locate(path, "tasks_primary.txt"))
    names = sorted({step for task in tasks.values() for step in task.steps})
    places = {name: place for place, name in enumerate(names)}
    # Files are looked up by name among those there are: names in a table lead nowhere else.
    found = {file.stem: file for file in (folder_of(path) / "annotations").glob("*.csv")}
    items, unknown = [], {}
    for task, video in _videos(path):
        name = f"{task}_{video}"
        if task not in tasks or name not in found:
            unknown[name] = "no such task" if task not in tasks else f"no annotations/{name}.csv"
            continue
        for number, row in enumerate(read_lists(found[name])):
            try:
                step, start, end = int(row[0]), float(row[1]), float(row[2])
            except (ValueError, IndexError) as error:
                raise UsageError(
                    f"{found[name]} is not of the form expected: STEP,START,END in every line"
                ) from error
            if not 1 <= step <= len(tasks[task].steps):
                unknown[f"{name}, line {number + 1}"] = f"task {task} has no step {step}"
                continue
            answer = places[tasks[task].steps[step - 1]]
            items.append(
                Item(
                    name=f"{name}, line {number + 1}",
                    media=(video,),
                    start=start,
                    end=end,
                    query=QUERY_STEP,
                    answer=answer,
                )
            )
    classes = [classification.phrased(name, STEP_TEMPLATES) for name in names]
    return classification.benchmark(items, classes, unknown)


def read_tasks(path: pathlib.Path, split: str) -> Benchmark:
    """Task recognition from the whole video: `tasks_primary.txt` and `videos_val.csv`."""
    tasks = read_tasks_file(locate(path, "tasks_primary.txt"))
    places = {task: place for place, task in enumerate(tasks)}
    items, unknown = [], {}
    for task, video in _videos(path):
        name = f"{task}_{video}"
        if task in tasks:
            items.append(Item(name=name, media=(video,), query=QUERY_TASK, answer=places[task]))
        else:
            unknown[name] = "no such task"
    classes = [
        classification.phrased(task.name[:1].lower() + task.name[1:], TASK_TEMPLATES)
        for task in tasks.values()
    ]
    return classification.benchmark(items, classes, unknown)
