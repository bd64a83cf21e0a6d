"""ActivityNet Captions: whole videos by the paragraph of their sentences."""

import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_json
from jepa_jax.evaluation.benchmark import Benchmark, Item
from jepa_jax.evaluation.retrieval import score_captions

SPLITS = ("val_1", "val_2", "train")
QUERY = "Describe the video."


class _Video(BaseModel):
    sentences: list[str]


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`val_1.json` ({VIDEO: {"duration", "timestamps", "sentences"}}), media v_ID.mp4."""
    videos = read_json(main_file(path, f"{split}.json"), dict[str, _Video])
    items, unknown = [], {}
    for name, video in videos.items():
        paragraph = " ".join(sentence.strip() for sentence in video.sentences).strip()
        if paragraph:
            items.append(Item(name=name, media=(name,), query=QUERY, answer=[paragraph]))
        else:
            unknown[name] = "no sentences"
    return Benchmark(items=items, score=score_captions, unknown=unknown)
