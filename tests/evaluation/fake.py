"""A model that answers what it is told to, and a folder of media without content."""

import pathlib
import zlib

import numpy as np

from jepa_jax.evaluation import benchmark
from jepa_jax.evaluation.benchmarks import BENCHMARKS
from jepa_jax.evaluation.media import SUFFIXES, MediaFolder

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FRAMES = 6


def embed_text(texts):
    """[B, 256] unit vectors: equal for equal texts, nearly at right angles for others."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=256) for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows])


class World:
    """Loads frames that only say which clip they are, and answers (clip, query) with a text.

    Attributes:
      loaded: (name, start, end) of every decoded clip, in order.
    """

    embed_text = staticmethod(embed_text)

    def __init__(self, answers: dict):
        self._answers = answers
        self._places = {}
        self.loaded = []

    def load_frames(self, media, start, end):
        name = media.decode() if isinstance(media, bytes) else media.stem
        self.loaded.append((name, start, end))
        place = self._places.setdefault((name, start), len(self._places))
        return np.full((FRAMES, 2, 3, 3), place, np.uint8)

    def check_query(self, query):
        pass

    def encode_video(self, frames):
        return frames[:, :, 0, 0, :1]

    def predict(self, visual, queries):
        clips = list(self._places)
        asked = [(*clips[int(v[0, 0])], query) for v, query in zip(visual, queries, strict=True)]
        return embed_text([self._answers[key] for key in asked])


class DecodingWorld(World):
    """Also decodes: it finds the text that it embedded."""

    has_decoder = True

    def decode(self, embeddings):
        texts = sorted(set(self._answers.values()))
        return [texts[place] for place in (embeddings @ embed_text(texts).T).argmax(axis=1)]


def read(task: str, fixture: str, split: str | None = None) -> benchmark.Benchmark:
    """A benchmark of the fixtures."""
    return BENCHMARKS[task].read(FIXTURES / fixture, split or BENCHMARKS[task].splits[0])


def _is_file(name: str) -> bool:
    return pathlib.PurePosixPath(name).suffix in SUFFIXES


def fill(folder: pathlib.Path, items) -> MediaFolder:
    """A folder with an empty file for every name of some items."""
    names = {name for item in items for name in item.media if isinstance(name, str)}
    for name in names:
        file = folder / (name if _is_file(name) else f"{name}.mp4")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return MediaFolder(folder)


def key(item) -> tuple:
    """What a World is asked about an item."""
    name = item.media[0]
    if isinstance(name, bytes):
        return name.decode(), item.start, item.query
    path = pathlib.PurePosixPath(name)
    return path.stem if _is_file(name) else path.name, item.start, item.query


def watching(media, load_frames, batch_size: int = 2) -> benchmark.Watching:
    """Media seen in small batches."""
    return benchmark.Watching(media=media, load_frames=load_frames, frames=FRAMES, batch_size=batch_size)


def ask(found: benchmark.Benchmark, texts: list[str], folder: pathlib.Path, world=World, batch_size=2):
    """The outcome of a World that answers item i with text i."""
    model = world({key(item): text for item, text in zip(found.items, texts, strict=True)})
    seen = watching(fill(folder, found.items), model.load_frames, batch_size)
    return benchmark.run(found, model, seen)
