"""Videos with one long caption each, in rows of JSON: PVD-Bench, Dream-1k, VDC-1k."""

import functools
import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_rows
from jepa_jax.evaluation.benchmark import Benchmark, Item
from jepa_jax.evaluation.retrieval import score_captions

SPLITS = ("test",)
QUERY = "Describe the video in detail."


class _Pvd(BaseModel):
    clip_id: str
    human_caption: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.clip_id, self.human_caption


class _Dream(BaseModel):
    video_file: str
    description: str

    @property
    def pair(self) -> tuple[str, str]:
        # It says "video/1.mp4"; the archive's folder has another name.
        return pathlib.PurePosixPath(self.video_file).name, self.description


class _Vdc(BaseModel):
    video_name: str
    detailed_caption: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.video_name, self.detailed_caption


def _read(
    path: pathlib.Path, split: str, *, names: tuple[str, ...], row: type[_Pvd | _Dream | _Vdc]
) -> Benchmark:
    pairs = [found.pair for found in read_rows(main_file(path, *names), row)]
    items = [Item(name=video, media=(video,), query=QUERY, answer=[text]) for video, text in pairs]
    return Benchmark(items=items, score=score_captions)


# The rows of the test shards' KEY.json, each with its key as `clip_id`: {"clip_id", "human_caption"}.
read_pvd_bench = functools.partial(_read, names=("test.jsonl", "test.json"), row=_Pvd)
# DREAM-1K's json/metadata.json: {"video_file", "description"}.
read_dream_1k = functools.partial(_read, names=("metadata.json",), row=_Dream)
# VDC_1k.jsonl: {"video_name", "detailed_caption"}.
read_vdc_1k = functools.partial(_read, names=("VDC_1k.jsonl",), row=_Vdc)
