"""Kinetics-400: 400 actions."""

import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation import classification
from jepa_jax.evaluation.annotations import main_file, read_table
from jepa_jax.evaluation.benchmark import Benchmark, Item

# DeepMind and the CVDF name the validation split differently.
FILES = {"val": ("val.csv", "validate.csv"), "test": ("test.csv",), "train": ("train.csv",)}
SPLITS = tuple(FILES)
QUERY = "What is being done in the video?"
TEMPLATES = ("{}", "a person is {}", "a video of {}")


class _Row(BaseModel):
    label: str
    youtube_id: str
    time_start: int
    time_end: int


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`val.csv` (label, youtube_id, time_start, time_end, split), media YOUTUBEID_000010_000020.mp4."""
    rows = read_table(main_file(path, *FILES[split]), _Row)
    # The classes are those of the file: every official split has all of them.
    names = sorted({row.label for row in rows})
    places = {name: place for place, name in enumerate(names)}
    items = []
    for row in rows:
        clip = f"{row.youtube_id}_{row.time_start:06d}_{row.time_end:06d}"
        items.append(Item(name=clip, media=(clip,), query=QUERY, answer=places[row.label]))
    return classification.benchmark(items, [classification.phrased(n, TEMPLATES) for n in names])
