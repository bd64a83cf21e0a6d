"""YouCook2: steps of recipes by their sentence; retrieval and captioning of clips."""

import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_json
from jepa_jax.evaluation.benchmark import Benchmark, Item, Score
from jepa_jax.evaluation.captioning import score_texts
from jepa_jax.evaluation.retrieval import score_captions

SPLITS = ("validation", "training")
QUERY = "Describe the video."


class _Clip(BaseModel):
    segment: tuple[float, float]
    sentence: str


class _Video(BaseModel):
    subset: str
    annotations: list[_Clip]


class _YouCook(BaseModel):
    database: dict[str, _Video]


def _read(path: pathlib.Path, split: str, score: Score, *, needs_decoder: bool) -> Benchmark:
    content = read_json(main_file(path, "youcookii_annotations_trainval.json"), _YouCook)
    items = [
        Item(
            name=f"{video_id}, clip {number}",
            media=(video_id,),
            start=clip.segment[0],
            end=clip.segment[1],
            query=QUERY,
            answer=[clip.sentence],
        )
        for video_id, video in content.database.items()
        if video.subset == split
        for number, clip in enumerate(video.annotations)
    ]
    return Benchmark(items=items, score=score, needs_decoder=needs_decoder)


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`youcookii_annotations_trainval.json`, media YOUTUBEID.mp4, untrimmed; a clip is one segment."""
    return _read(path, split, score_captions, needs_decoder=False)


def read_captioning(path: pathlib.Path, split: str) -> Benchmark:
    """CIDEr against the one sentence of a clip; files as `read`."""
    return _read(path, split, score_texts, needs_decoder=True)
