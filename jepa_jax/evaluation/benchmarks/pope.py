"""POPE and POPEv2: is some object in the image, yes or no."""

import pathlib
from typing import Literal

from pydantic import BaseModel

from jepa_jax.evaluation.annotations import locate, main_file, read_parquet, read_rows
from jepa_jax.evaluation.benchmark import Benchmark, Item
from jepa_jax.evaluation.vqa import score_yes_no

SPLITS = ("coco",)
V2_SPLITS = ("test",)
SETTINGS = ("random", "popular", "adversarial")

YesNo = Literal["yes", "no", "Yes", "No"]


class _Row(BaseModel):
    question_id: int
    image: str
    text: str
    label: YesNo


class _Image(BaseModel):
    bytes: bytes


class _Pair(BaseModel):
    example_id: str | int
    question: str
    normal_image: _Image
    counterfactual_image: _Image
    normal_label: YesNo
    counterfactual_label: YesNo


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`coco_pope_random.json`, `.._popular.json` and `.._adversarial.json` ({"question_id", "image",
    "text", "label"} a line), media COCO_val2014_N.jpg."""
    items = [
        Item(
            name=f"{setting} question {row.question_id}",
            media=(row.image,),
            query=row.text,
            answer=(setting, row.label.lower() == "yes"),
        )
        for setting in SETTINGS
        for row in read_rows(locate(path, f"{split}_pope_{setting}.json"), _Row)
    ]
    return Benchmark(items=items, score=score_yes_no, asks_its_own=True)


def read_v2(path: pathlib.Path, split: str) -> Benchmark:
    """`test.parquet`: {"example_id", "question", "normal_image", "normal_label", "counterfactual_image",
    "counterfactual_label"}; the images are in it."""
    items = [
        Item(
            name=f"{row.example_id}, {kind}",
            media=(image.bytes,),
            query=row.question,
            answer=("", label.lower() == "yes"),
        )
        for row in read_parquet(main_file(path, f"{split}.parquet", "test-00000-of-00001.parquet"), _Pair)
        for kind, image, label in (
            ("normal", row.normal_image, row.normal_label),
            ("counterfactual", row.counterfactual_image, row.counterfactual_label),
        )
    ]
    return Benchmark(items=items, score=score_yes_no, asks_its_own=True)
