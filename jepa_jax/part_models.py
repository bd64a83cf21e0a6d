"""One converted part for use: NumPy in, NumPy out."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jepa_jax import flags
from jepa_jax.data.tokenizer import Tokenizer, has_vocabulary
from jepa_jax.errors import first_line
from jepa_jax.models.vl_jepa import normalise_frames, unit
from jepa_jax.parts import Part, abstract_module, filled
from jepa_jax.sharding import NO_MESH, to_host

_BATCH_SIZE = 16


def one_array(given: Any, name: str, dtype=None) -> np.ndarray:
    """NumPy's array of whatever it makes one of; `name` is what a message calls it.

    Raises:
      ValueError: its parts differ in shape, as clips of several lengths do, or are no numbers.
    """
    try:
        return np.asarray(given, dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the {name} make no array: all need one shape, and numbers alone") from error


def checked_frames(frames: np.ndarray) -> np.ndarray:
    """Frames [B, T, H, W, C] uint8 RGB, of whatever NumPy makes an array of.

    Raises:
      ValueError: they are of another shape or type, or there are none.
    """
    frames = one_array(frames, "frames")
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames must be [B, T, H, W, 3] uint8, got {frames.shape} {frames.dtype}")
    if not frames.size:
        raise ValueError(f"nothing to embed: the input is empty, frames {frames.shape}")
    return frames


def checked_texts(texts: Iterable[str], name: str = "list of texts") -> list[str]:
    """Texts as a list; `name` is what a message calls it.

    Raises:
      ValueError: there are none, or some are no texts, or it is one text, whose letters would be taken, or
        nothing that holds texts.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(f"the {name} is one text, {texts!r}: put it into a list")
    if texts is not None and not isinstance(texts, Iterable):
        raise ValueError(f"the {name} is {texts!r}, which holds no texts")
    texts = [] if texts is None else list(texts)
    if not texts:
        raise ValueError(f"nothing to take: the {name} is empty")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"the {name} holds {text!r}, which is no text")
    return texts


def checked_numbers(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings, or scores of them, as they are. What is not a number compares as neither near nor far, and
    would be scored as an answer.

    Raises:
      UsageError: some are not numbers.
    """
    if not np.isfinite(embeddings).all():
        raise flags.UsageError("the model's answers are not numbers: its weights are broken")
    return embeddings


def padded_rows(rows: int, size: int, devices: int = 1) -> int:
    """The rows of a batch that holds so many: a power of two for each device, at most `size` in all.
    One clip costs one row, and few shapes are compiled."""
    return min(devices << (-(-rows // devices) - 1).bit_length(), size)


def in_batches(function, state, graphdef, size: int, *arrays: np.ndarray, mesh: Mesh = NO_MESH):
    """`function` over the rows of arrays, `size` at a time, the last batch filled up to `padded_rows`.

    Args:
      size: a multiple of the devices of the mesh, which get as many rows each.
      mesh: where the state is, in context while the function runs.

    Returns:
      An array, or a tuple of them as `function` gives.

    Raises:
      ValueError: there are no rows.
    """
    count = len(arrays[0])
    if not count:
        raise ValueError("nothing to embed: the input is empty")
    results, under_way = [], None
    for start in range(0, count, size):
        rows = [a[start : start + size] for a in arrays]
        missing = padded_rows(len(rows[0]), size, max(mesh.size, 1)) - len(rows[0])
        if missing:
            rows = [np.concatenate([r, np.repeat(r[-1:], missing, axis=0)]) for r in rows]
        with jax.set_mesh(mesh):
            result = function(state, *rows, graphdef=graphdef)
        # Not on several CPU hosts: each execution holds threads while it waits for the other hosts, and where
        # many are under way none is left for the one that all wait for.
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(result)
        # A batch is under way while the result of the one before is copied back. No more than these two are
        # on the devices, however many rows there are: tokens of a thousand clips are gigabytes.
        if under_way is not None:
            results.append(jax.tree.map(to_host, under_way))
        under_way = result
    results.append(jax.tree.map(to_host, under_way))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def padded_length(tokenizer: Tokenizer, texts: list[str], limit: int) -> int:
    """The positions that texts are padded to: a power of two from 8 on, so that few shapes are compiled,
    and at most `limit`."""
    longest = max(tokenizer.counts(texts))
    return min(1 << max(longest - 1, 7).bit_length(), limit)


@functools.partial(jax.jit, static_argnames="graphdef")
def _encode_frames(state, frames, graphdef):
    return nnx.merge(graphdef, state)(normalise_frames(frames))


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed(state, tokens, mask, graphdef):
    return unit(nnx.merge(graphdef, state)(tokens, mask))


@functools.partial(jax.jit, static_argnames="graphdef")
def _hidden_states(state, tokens, mask, graphdef):
    return nnx.merge(graphdef, state).hidden_states(tokens, mask)


@functools.partial(jax.jit, static_argnames="graphdef")
def _logits(state, tokens, mask, graphdef):
    return nnx.merge(graphdef, state)(tokens, mask)


class PartModel:
    """A part's module with its parameters.

    Attributes:
      config: the part's configuration.
      provenance: where its weights came from.
    """

    def __init__(self, part: Part):
        self.config = part.config
        self.provenance: dict[str, Any] = part.provenance
        self._directory = part.directory
        self._max_length = part.max_length
        self._graphdef, template = nnx.split(abstract_module(part.name, part.config))
        self._state = filled(template, part.read())

    @property
    def module(self) -> nnx.Module:
        """The Flax module with its parameters."""
        return nnx.merge(self._graphdef, self._state)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer converted with the weights.

        Raises:
          UsageError: the source had none beside it, or it is damaged.
        """
        try:
            return Tokenizer(str(self._directory), vocab_size=self._rows)
        except ValueError as error:
            if has_vocabulary(self._directory):
                raise flags.UsageError(first_line(error)) from error
            raise flags.UsageError(
                f"{self._directory} has no tokenizer, for its source had none beside it: put the source's "
                "tokenizer files (tokenizer.json, tokenizer_config.json) into that folder"
            ) from error

    @property
    def _rows(self) -> int | None:
        """Of the token table; None without one."""
        return getattr(getattr(self.config, "llama", self.config), "vocab_size", None)

    def _batched(self, function, *arrays: np.ndarray) -> np.ndarray:
        return in_batches(function, self._state, self._graphdef, _BATCH_SIZE, *arrays)


class XEncoderModel(PartModel):
    """A converted V-JEPA 2."""

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """Visual tokens S_V: [B, T, H, W, C] uint8 RGB -> [B, N, D] float32."""
        return self._batched(_encode_frames, checked_frames(frames))


class YEncoderModel(PartModel):
    """A converted text encoder, without the projection to a shared space."""

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Embeddings of texts: B texts -> [B, D] float32 unit vectors."""
        texts = checked_texts(texts)
        length = padded_length(self.tokenizer, texts, self._max_length or 512)
        return self._batched(_embed, *self.tokenizer.batch(texts, length))


class LlamaModel(PartModel):
    """A converted Llama: the predictor's layers, or a whole language model."""

    def hidden_states(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """States after the final norm: [B, L] int32, [B, L] bool -> [B, L, D] float32.

        Raises:
          ValueError: a token that the table has no row for, no tokens, or tokens or a mask of another form.
        """
        return self._batched(_hidden_states, *self._checked(tokens, mask))

    def logits(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Scores of the next token, of a whole language model: [B, L], [B, L] -> [B, L, V] float32.

        Raises:
          ValueError: as `hidden_states`, or a predictor, which has no head.
        """
        if not hasattr(self.config, "llama"):
            raise ValueError("a predictor has no logits: convert its source with --part=y_decoder")
        return self._batched(_logits, *self._checked(tokens, mask))

    def _checked(self, tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens, mask = np.asarray(tokens), np.asarray(mask)
        if tokens.ndim != 2 or tokens.shape != mask.shape:
            raise ValueError(f"tokens and mask must both be [B, L], got {tokens.shape} and {mask.shape}")
        if not tokens.size:
            raise ValueError(f"nothing to embed: the input is empty, tokens {tokens.shape}")
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens must be whole numbers, got {tokens.dtype}")
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(f"mask must be bool, or of zeros and ones, got other values of {mask.dtype}")
        if not (tokens.min() >= 0 and tokens.max() < self._rows):
            raise ValueError(
                f"tokens must be from 0 to {self._rows - 1}, got some from {tokens.min()} to {tokens.max()}"
            )
        return tokens, mask.astype(bool)


def make(part: Part) -> PartModel:
    """The model of one part."""
    kinds = {"x_encoder": XEncoderModel, "y_encoder": YEncoderModel}
    return kinds.get(part.name, LlamaModel)(part)
