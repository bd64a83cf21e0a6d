"""MSR-VTT: retrieval on the 1k-A split, captioning on the official test videos."""

import pathlib

from pydantic import BaseModel

from jepa_jax.evaluation.annotations import main_file, read_json, read_table
from jepa_jax.evaluation.benchmark import Benchmark, Item
from jepa_jax.evaluation.captioning import score_texts
from jepa_jax.evaluation.retrieval import score_captions

SPLITS = ("1k-A",)
# The release has two files for its three splits.
_TRAINING = "train_val_videodatainfo.json"
CAPTION_FILES = {"test": "test_videodatainfo.json", "validate": _TRAINING, "train": _TRAINING}
CAPTION_SPLITS = tuple(CAPTION_FILES)
QUERY = "Describe the video."


class _Row(BaseModel):
    video_id: str
    sentence: str


class _Sentence(BaseModel):
    video_id: str
    caption: str


class _Video(BaseModel):
    video_id: str
    split: str


class _Captions(BaseModel):
    videos: list[_Video]
    sentences: list[_Sentence]


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`MSRVTT_JSFUSION_test.csv` (key, vid_key, video_id, sentence), media videoN.mp4."""
    rows = read_table(main_file(path, "MSRVTT_JSFUSION_test.csv"), _Row)
    items = [
        Item(name=row.video_id, media=(row.video_id,), query=QUERY, answer=[row.sentence]) for row in rows
    ]
    return Benchmark(items=items, score=score_captions)


def read_captioning(path: pathlib.Path, split: str) -> Benchmark:
    """`test_videodatainfo.json`, for the other splits `train_val_videodatainfo.json`, or `MSRVTT_data.json`:
    {"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}, twenty captions a video;
    media videoN.mp4."""
    file = main_file(path, CAPTION_FILES[split], "MSRVTT_data.json")
    content = read_json(file, _Captions)
    captions: dict[str, list[str]] = {v.video_id: [] for v in content.videos if v.split == split}
    unknown = {}
    known = {video.video_id for video in content.videos}
    for sentence in content.sentences:
        if sentence.video_id in captions:
            captions[sentence.video_id].append(sentence.caption)
        elif sentence.video_id not in known:
            unknown[sentence.video_id] = "captions of a video that is not listed"
    unknown |= dict.fromkeys((name for name, texts in captions.items() if not texts), "no captions")
    items = [
        Item(name=name, media=(name,), query=QUERY, answer=texts) for name, texts in captions.items() if texts
    ]
    return Benchmark(items=items, score=score_texts, unknown=unknown, needs_decoder=True)
