"""A model for use, trained or converted: NumPy in, NumPy out, compiled once per shape."""

import contextlib
import functools
import pathlib

import jax
import numpy as np
from flax import nnx

from jepa_jax import flags, part_models, parts
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError
from jepa_jax.config import Config
from jepa_jax.data.tokenizer import Tokenizer, load_tokenizers
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.part_models import check_frames, in_batches
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

    def __init__(self, model: VLJEPA, config: Config, tokenizers: tuple[Tokenizer, Tokenizer] | None = None):
        self.config = config
        self._given_tokenizers = tokenizers
        self._lengths = config.data.length_buckets[-1]
        self._graphdef, self._state = nnx.split(model)
        # All devices of the mesh in context get as many rows.
        mesh = jax.sharding.get_abstract_mesh()
        devices = 1 if mesh.empty else mesh.size
        self._batch_size = -(-config.eval.batch_size // devices) * devices

    def with_weights(self, model: VLJEPA) -> "Model":
        """The same configuration and tokenizers around other weights of the same architecture."""
        return Model(model, self.config, self._given_tokenizers)

    @functools.cached_property
    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The query's and the target's, loaded when the first text comes: a model whose tokenizers
        are out of reach still sees."""
        return load_tokenizers(self.config) if self._given_tokenizers is None else self._given_tokenizers

    @property
    def module(self) -> VLJEPA:
        """The Flax module with its parameters."""
        return nnx.merge(self._graphdef, self._state)

    def _batched(self, function, *arrays: np.ndarray) -> np.ndarray:
        return in_batches(function, self._state, self._graphdef, self._batch_size, *arrays)

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """Visual tokens S_V, to be given to `predict` with as many queries as one likes.

        Args:
          frames: [B, T, H, W, C] uint8 RGB.

        Returns:
          [B, N, D].
        """
        check_frames(frames)
        return self._batched(_encode, frames)

    def predict(self, visual: np.ndarray, queries: list[str]) -> np.ndarray:
        """Predicted embeddings of the answers, S^_Y: [B, N, D], B texts -> [B, E] unit vectors."""
        if len(visual) != len(queries):
            raise ValueError(f"{len(visual)} videos but {len(queries)} queries")
        query, mask = self._tokenizers[0].batch(queries, self._lengths[0])
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
        return self._batched(_embed_text, *self._tokenizers[1].batch(texts, self._lengths[1]))


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
        raise flags.UsageError(
            f"{path} is neither a work directory of a run (it has no checkpoints) nor converted weights"
        )
    return workdir, step


def run_config(workdir: pathlib.Path) -> Config:
    """The configuration of a run."""
    file = workdir / "config.json"
    return flags.config_from_json(file.read_text(), str(file))


def restore_run(workdir: pathlib.Path, step: int | None, config: Config, template: nnx.State) -> nnx.State:
    """The parameters of a run, of its last whole checkpoint or of one step.

    Args:
      template: shapes of all parameters, with their places.

    Raises:
      UsageError: there is no checkpoint, or none is whole.
    """
    checkpointer = Checkpointer(workdir / "checkpoints", config.checkpoint, read_only=True)
    with contextlib.closing(checkpointer), flags.as_usage_errors(DamagedCheckpointError):
        if step is not None:
            return checkpointer.restore({"params": template}, step)[0]["params"]
        found = checkpointer.restore_latest({"params": template})
        if found is None:
            raise flags.UsageError(f"{workdir} has no checkpoint yet")
        return found[1]["params"]


def load(directory: str | pathlib.Path):
    """The model of a run, or converted weights.

    Args:
      directory: a work directory of `python -m jepa_jax.train` (its last whole checkpoint is taken),
        one checkpoint in it, WORKDIR/checkpoints/STEP, or a folder that
        `python -m weights_conversion` wrote.

    Returns:
      A `Model`; for converted weights of one part, `part_models.XEncoderModel`, `YEncoderModel` or
      `LlamaModel`.

    Raises:
      UsageError: there is no checkpoint, or none is whole.
    """
    path = pathlib.Path(directory).absolute()
    mesh = make_mesh(devices=jax.local_devices()[:1])
    if parts.is_part(path):
        with flags.as_usage_errors(parts.NotAPartError, DamagedCheckpointError):
            part = parts.open_part(path)
            if part.name != "vl_jepa":
                return part_models.make(part)
            config = part.config
            graphdef, template = abstract_state(config, mesh)
            params = parts.filled(to_items(template)["params"], part.read())
    else:
        workdir, step = find_run(path)
        config = run_config(workdir)
        graphdef, template = abstract_state(config, mesh)
        params = restore_run(workdir, step, config, to_items(template)["params"])
    return Model(nnx.merge(graphdef, params), config)
