"""COIN: 180 tasks of daily life, their steps, and the step that comes next."""

import pathlib
import re

from pydantic import BaseModel, Field

from jepa_jax.evaluation import classification
from jepa_jax.evaluation.annotations import main_file, read_json
from jepa_jax.evaluation.benchmark import Benchmark, Item

SPLITS = ("testing", "training")
QUERY_STEP = "What step is being done in the video?"
QUERY_TASK = "What task is being done in the video?"
QUERY_NEXT = "What step will be done next?"
STEP_TEMPLATES = ("{}",)
TASK_TEMPLATES = ("{}", "a video of how to {}")


class _Step(BaseModel):
    segment: tuple[float, float]
    label: str


class _Video(BaseModel):
    subset: str
    task: str = Field(alias="class")
    annotation: list[_Step]


class _Coin(BaseModel):
    database: dict[str, _Video]


def words(name: str) -> str:
    """A task's name in words: "PutOnQuiltCover" -> "put on quilt cover", "RJ45Cable" -> "rj45 cable"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()


def _read(path: pathlib.Path) -> dict[str, _Video]:
    return read_json(main_file(path, "COIN.json"), _Coin).database


def _steps(videos: dict[str, _Video]) -> list[str]:
    return sorted({step.label for video in videos.values() for step in video.annotation})


def read_steps(path: pathlib.Path, split: str) -> Benchmark:
    """Step recognition: `COIN.json`, media YOUTUBEID.mp4. The candidates are the steps of all tasks."""
    return _step_benchmark(path, split, QUERY_STEP, ahead=0)


def read_next_step(path: pathlib.Path, split: str) -> Benchmark:
    """The step after the one that is seen; files as `read_steps`."""
    return _step_benchmark(path, split, QUERY_NEXT, ahead=1)


def _step_benchmark(path: pathlib.Path, split: str, query: str, ahead: int) -> Benchmark:
    videos = _read(path)
    names = _steps(videos)
    places = {name: place for place, name in enumerate(names)}
    items = [
        Item(
            name=f"{video_id}, step {number}",
            media=(video_id,),
            start=seen.segment[0],
            end=seen.segment[1],
            query=query,
            answer=places[asked.label],
        )
        for video_id, video in videos.items()
        if video.subset == split
        for number, (seen, asked) in enumerate(zip(video.annotation, video.annotation[ahead:], strict=False))
    ]
    return classification.benchmark(items, [classification.phrased(n, STEP_TEMPLATES) for n in names])


def read_tasks(path: pathlib.Path, split: str) -> Benchmark:
    """Task recognition from the whole video; files as `read_steps`."""
    videos = _read(path)
    names = sorted({video.task for video in videos.values()})
    places = {name: place for place, name in enumerate(names)}
    items = [
        Item(name=video_id, media=(video_id,), query=QUERY_TASK, answer=places[video.task])
        for video_id, video in videos.items()
        if video.subset == split
    ]
    return classification.benchmark(
        items, [classification.phrased(words(name), TASK_TEMPLATES) for name in names]
    )
