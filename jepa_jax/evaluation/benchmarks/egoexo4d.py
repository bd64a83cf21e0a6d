"""Ego-Exo4D keysteps: steps of procedures, seen by the camera on the head of who does them."""

import pathlib
from typing import Any

from pydantic import BaseModel

from jepa_jax.evaluation import classification
from jepa_jax.evaluation.annotations import folder_of, locate, main_file, read_json
from jepa_jax.evaluation.benchmark import Benchmark, Item

SPLITS = ("val", "train")
QUERY = "What step is being done in the video?"
TEMPLATES = ("{}",)


class _Segment(BaseModel):
    start_time: float
    end_time: float
    step_name: str


class _Take(BaseModel):
    segments: list[_Segment]


class _Keysteps(BaseModel):
    annotations: dict[str, _Take]


class _Stream(BaseModel):
    relative_path: str | None = None


class _TakeFiles(BaseModel):
    take_uid: str
    take_name: str
    # Cameras, and entries of other forms that are none.
    frame_aligned_videos: dict[str, dict[str, _Stream] | Any] = {}


def ego_video(take: _TakeFiles) -> str | None:
    """TAKE/CAMERA of the colour video of a take's Aria glasses; None if it has none."""
    for camera, streams in take.frame_aligned_videos.items():
        stream = streams.get("rgb") if isinstance(streams, dict) else None
        if camera.lower().startswith("aria") and isinstance(stream, _Stream) and stream.relative_path:
            return f"{take.take_name}/{pathlib.PurePosixPath(stream.relative_path).stem}"
    return None


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`keystep_val.json` and `keystep_train.json` in `annotations/` and `takes.json` beside that folder,
    as the downloader leaves them; media takes/TAKE/../ariaNN_214-1.mp4.

    The candidates are the steps that occur in either file. Procedures share some, under ids of their own:
    steps of one name are one candidate.
    """
    takes = read_json(
        locate(folder_of(path).parent if path.is_file() else path, "takes.json"), list[_TakeFiles]
    )
    videos = {take.take_uid: ego_video(take) for take in takes}
    file = main_file(path, f"keystep_{split}.json")
    asked = read_json(file, _Keysteps)
    names: set[str] = set()
    for other in SPLITS:
        found = asked if other == split else read_json(locate(file, f"keystep_{other}.json"), _Keysteps)
        for take in found.annotations.values():
            names |= {segment.step_name for segment in take.segments}
    places = {name: place for place, name in enumerate(sorted(names))}
    items, unknown = [], {}
    for uid, take in asked.annotations.items():
        for number, segment in enumerate(take.segments):
            name = f"{uid}, segment {number}"
            if not videos.get(uid):
                unknown[name] = "its take is not in takes.json, or was made without glasses"
                continue
            items.append(
                Item(
                    name=name,
                    media=(videos[uid],),
                    start=segment.start_time,
                    end=segment.end_time,
                    query=QUERY,
                    answer=places[segment.step_name],
                )
            )
    classes = [classification.phrased(name, TEMPLATES) for name in places]
    return classification.benchmark(items, classes, unknown)
