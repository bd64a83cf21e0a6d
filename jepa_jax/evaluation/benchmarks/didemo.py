"""DiDeMo: whole videos by their moments' descriptions, one after another."""

import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_json
from jepa_jax.evaluation.benchmark import Benchmark, Item
from jepa_jax.evaluation.retrieval import score_captions

SPLITS = ("test", "val", "train")
QUERY = "Describe the video."


class _Moment(BaseModel):
    video: str
    description: str


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`test_data.json` ([{"video", "description", ..}]), media as named there, of any suffix."""
    texts: dict[str, list[str]] = {}
    for moment in read_json(main_file(path, f"{split}_data.json"), list[_Moment]):
        texts.setdefault(moment.video, []).append(moment.description.strip())
    items = [
        Item(name=video, media=(video,), query=QUERY, answer=[" ".join(found)])
        for video, found in texts.items()
    ]
    return Benchmark(items=items, score=score_captions)
