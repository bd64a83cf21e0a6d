"""A model that sees colours: no network, nothing to compile. For tests of what is around a model."""

import dataclasses

import numpy as np
from flax import nnx

from jepa_jax.config import DataConfig
from jepa_jax.inference import Model
from jepa_jax.streaming.online import unit
from tests.streaming.videos import COLOURS
from tests.tiny_config import config as tiny_config

FRAMES, SIZE = 4, 32
config = dataclasses.replace(
    tiny_config,
    data=DataConfig(frames=FRAMES),
    model=dataclasses.replace(tiny_config.model, embedding_size=3),
)


class ColourModel(Model):
    """S^_Y is the direction of a video's mean colour, S_Y that of the colour a text names."""

    has_decoder = True

    def __init__(self):
        super().__init__(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), config)

    def with_weights(self, model: nnx.Module) -> "ColourModel":
        return self

    def check_query(self, query: str) -> None:
        if len(query) > 50:
            raise ValueError(f"the query {query!r} is too long")

    def embed_video(self, frames: np.ndarray, query: str | list[str]) -> np.ndarray:
        assert frames.shape[1:] == (FRAMES, SIZE, SIZE, 3), frames.shape
        assert frames.dtype == np.uint8
        return unit(frames.mean(axis=(1, 2, 3)).astype(np.float32))

    def cuts(self, text: str) -> bool:
        return len(text) > 100

    def embed_text(self, texts: list[str]) -> np.ndarray:
        named = [next(rgb for name, rgb in COLOURS.items() if name in text) for text in texts]
        return unit(np.array(named, np.float32))

    def decode(self, embeddings: np.ndarray) -> list[str]:
        return [f"it is {list(COLOURS)[i]}" for i in np.argmax(embeddings, axis=1)]
