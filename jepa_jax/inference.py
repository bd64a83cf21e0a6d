"""A trained model for use: NumPy in, NumPy out, compiled once per shape."""

import contextlib
import functools
import pathlib

import jax
import numpy as np
from flax import nnx

from jepa_jax import flags
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError
from jepa_jax.config import Config
from jepa_jax.data.tokenizer import Tokenizer, load_tokenizers
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, to_items


@functools.partial(jax.jit, static_argnames="graphdef")
def _encode(state, frames, graphdef):
    return nnx.merge(graphdef, state).encode_frames(frames)


@functools.partial(jax.jit, static_argnames="graphdef")
def _predict(state, visual, query, query_mask, graphdef):
    return nnx.merge(graphdef, state).predict(visual, query, query_mask)


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed_text(state, tokens, mask, graphdef):
    return nnx.merge(graphdef, state).embed_text(tokens, mask)


class Model:
    """VL-JEPA with its tokenizers.

    Everything is computed in batches of `batch_size`, the last one filled up, so each method
    compiles once whatever the number of inputs.
    """

    def __init__(self, model: VLJEPA, config: Config, tokenizers: tuple[Tokenizer, Tokenizer]):
        self.config = config
        self._query_tokenizer, self._target_tokenizer = tokenizers
        self._lengths = config.data.length_buckets[-1]
        self._graphdef, self._state = nnx.split(model)
        self._batch_size = config.eval.batch_size

    def with_weights(self, model: VLJEPA) -> "Model":
        """The same configuration and tokenizers around other weights of the same architecture."""
        return Model(model, self.config, (self._query_tokenizer, self._target_tokenizer))

    def _batched(self, function, *arrays: np.ndarray) -> np.ndarray:
        count, size = len(arrays[0]), self._batch_size
        if not count:
            raise ValueError("nothing to embed: the input is empty")
        results = []
        for start in range(0, count, size):
            rows = [a[start : start + size] for a in arrays]
            missing = size - len(rows[0])
            if missing:
                rows = [np.concatenate([r, np.repeat(r[-1:], missing, axis=0)]) for r in rows]
            # Not read here: every batch is dispatched before the first result is copied back.
            results.append(function(self._state, *rows, graphdef=self._graphdef))
        return np.concatenate([np.asarray(r) for r in results])[:count]

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """Visual tokens S_V, to be given to `predict` with as many queries as one likes.

        Args:
          frames: [B, T, H, W, C] uint8 RGB.

        Returns:
          [B, N, D].
        """
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be [B, T, H, W, 3] uint8, got {frames.shape} {frames.dtype}")
        return self._batched(_encode, frames)

    def predict(self, visual: np.ndarray, queries: list[str]) -> np.ndarray:
        """Predicted embeddings of the answers, S^_Y: [B, N, D], B texts -> [B, E] unit vectors."""
        if len(visual) != len(queries):
            raise ValueError(f"{len(visual)} videos but {len(queries)} queries")
        query, mask = self._query_tokenizer.batch(queries, self._lengths[0])
        return self._batched(_predict, visual, query, mask)

    def embed_video(self, frames: np.ndarray, query: str | list[str]) -> np.ndarray:
        """Predicted embedding of the answer to a query about each video.

        Args:
          frames: [B, T, H, W, C] uint8 RGB.
          query: one for all, or one for each.

        Returns:
          [B, E] float32 unit vectors.
        """
        queries = [query] * len(frames) if isinstance(query, str) else query
        return self.predict(self.encode_video(frames), queries)

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Embeddings of texts, S_Y: B texts -> [B, E] float32 unit vectors."""
        if not texts:
            raise ValueError("nothing to embed: the list of texts is empty")
        return self._batched(_embed_text, *self._target_tokenizer.batch(texts, self._lengths[1]))


def find_run(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """The work directory and, where `path` is WORKDIR/checkpoints/STEP, the step.

    Raises:
      UsageError: it is neither.
    """
    if path.name.isdigit() and path.parent.name == "checkpoints":
        workdir, step = path.parent.parent, int(path.name)
    else:
        workdir, step = path, None
    if not (workdir / "config.json").is_file() or not (workdir / "checkpoints").is_dir():
        raise flags.UsageError(f"{path} is not a work directory of a run: it has no checkpoints")
    return workdir, step


def load(directory: str | pathlib.Path) -> Model:
    """The model of a run.

    Args:
      directory: a work directory of `python -m jepa_jax.train` (its last whole checkpoint is taken),
        or one checkpoint in it, WORKDIR/checkpoints/STEP.

    Raises:
      UsageError: there is no checkpoint, or none is whole.
    """
    workdir, step = find_run(pathlib.Path(directory).absolute())
    file = workdir / "config.json"
    config = flags.config_from_json(file.read_text(), str(file))
    mesh = make_mesh(devices=jax.local_devices()[:1])
    graphdef, template = abstract_state(config, mesh)
    template = {"params": to_items(template)["params"]}
    checkpointer = Checkpointer(workdir / "checkpoints", config.checkpoint, read_only=True)
    with contextlib.closing(checkpointer):
        try:
            if step is None:
                found = checkpointer.restore_latest(template)
                if found is None:
                    raise flags.UsageError(f"{workdir} has no checkpoint yet")
                items = found[1]
            else:
                items = checkpointer.restore(template, step)[0]
        except DamagedCheckpointError as error:
            raise flags.UsageError(f"{directory}: {error}") from error
    return Model(nnx.merge(graphdef, items["params"]), config, load_tokenizers(config))
