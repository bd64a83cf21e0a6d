"""MSVD: short clips with about forty captions each; retrieval and captioning."""

import pathlib

from jepa_jax.evaluation.annotations import locate, main_file, read_text_lines
from jepa_jax.evaluation.benchmark import Benchmark, Item, Score
from jepa_jax.evaluation.captioning import score_texts
from jepa_jax.evaluation.retrieval import score_captions

SPLITS = ("test", "val", "train")
QUERY = "Describe the video."


def _read(path: pathlib.Path, split: str, score: Score, *, needs_decoder: bool) -> Benchmark:
    captions: dict[str, list[str]] = {}
    for line in read_text_lines(locate(path, "AllVideoDescriptions.txt")):
        video, _, caption = line.partition(" ")
        captions.setdefault(video, []).append(caption.strip())
    names = read_text_lines(main_file(path, f"{split}_list.txt"))
    items = [
        Item(name=name, media=(name,), query=QUERY, answer=captions[name])
        for name in names
        if name in captions
    ]
    unknown = {name: "no captions in AllVideoDescriptions.txt" for name in names if name not in captions}
    return Benchmark(items=items, score=score, unknown=unknown, needs_decoder=needs_decoder)


def read(path: pathlib.Path, split: str) -> Benchmark:
    """`AllVideoDescriptions.txt` (VIDEO CAPTION in a line) and `test_list.txt` (670 names), media
    YOUTUBEID_START_END.avi."""
    return _read(path, split, score_captions, needs_decoder=False)


def read_captioning(path: pathlib.Path, split: str) -> Benchmark:
    """CIDEr against all captions of a clip; files as `read`."""
    return _read(path, split, score_texts, needs_decoder=True)
