"""A trained Y-Decoder for use: embeddings in, texts out."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jepa_jax import flags
from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError
from jepa_jax.config import DecoderConfig
from jepa_jax.data.tokenizer import Tokenizer, load_decoder_tokenizer
from jepa_jax.models import generation
from jepa_jax.models.sharded import on_own_rows
from jepa_jax.models.vl_jepa import unit
from jepa_jax.models.y_decoder import YDecoder
from jepa_jax.part_models import in_batches
from jepa_jax.sharding import NO_MESH


def _prefix(state, graphdef, embedding):
    decoder = nnx.merge(graphdef, state)
    return decoder.language_model, decoder.prefix(unit(embedding))


@functools.partial(jax.jit, static_argnames=("graphdef", "length", "end"))
def _greedy(state, embedding, graphdef, length, end):
    def write(state, embedding):
        return generation.greedy(*_prefix(state, graphdef, embedding), length=length, end=end)

    return on_own_rows(write, state)(embedding)


@functools.partial(jax.jit, static_argnames=("graphdef", "length", "end"))
def _sample(state, embedding, row, graphdef, seed, temperature, top_k, top_p, length, end):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}

    def write(state, seed, options, embedding, row):
        # A row's draws depend on its number, not on the batch it comes in.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), row)
        prefix = _prefix(state, graphdef, embedding)
        return generation.sample(*prefix, keys, **options, length=length, end=end)

    return on_own_rows(write, state, seed, options)(embedding, row)


@functools.partial(jax.jit, static_argnames=("graphdef", "beams", "length", "end"))
def _beam_search(state, embedding, graphdef, beams, length, end):
    options = {"beams": beams, "length": length, "end": end}

    def write(state, embedding):
        return generation.beam_search(*_prefix(state, graphdef, embedding), **options)

    return on_own_rows(write, state)(embedding)


class Decoder:
    """A Y-Decoder with its tokenizer.

    Args:
      batch_size: the most rows that are decoded at a time, a multiple of the devices of the mesh.
      mesh: whose devices share the rows.
    """

    def __init__(
        self,
        module: YDecoder,
        config: DecoderConfig,
        tokenizer: Tokenizer,
        batch_size: int,
        mesh: Mesh = NO_MESH,
    ):
        self.config = config
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._mesh = mesh
        self._graphdef, self._state = nnx.split(module)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mesh": NO_MESH}  # what is unpickled is on one device

    @property
    def module(self) -> YDecoder:
        """The Flax module with its parameters."""
        return nnx.merge(self._graphdef, self._state)

    def __call__(
        self,
        embeddings: np.ndarray,
        *,
        beams: int = 1,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """The texts that embeddings stand for: [B, E] -> B texts.

        Args:
          beams: over 1, beam search; else the likeliest token each time.
          temperature: over 0, tokens are drawn at random from the logits divided by it.
          top_k, top_p: only of so many of the likeliest, and of those that together have so much of
            the probability.
          seed: of what is drawn; row b of one seed is always the same text.

        Raises:
          ValueError: values out of range, or that contradict each other.
        """
        vocabulary = self.config.llama.vocab_size
        self._check_beams(beams)
        if not 0 <= temperature <= float(np.finfo(np.float32).max):
            raise ValueError(f"temperature={temperature} must be 0 or more, and no more than a float32 holds")
        if top_k is not None and not (isinstance(top_k, int | np.integer) and top_k >= 1):
            raise ValueError(f"top_k={top_k} must be a whole number from 1 on")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p} must be over 0 and at most 1")
        if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**32):
            raise ValueError(f"seed={seed} must be a whole number between 0 and {2**32 - 1}")
        if beams > 1 and temperature:
            raise ValueError(
                f"beams={beams} and temperature={temperature}: give one, beam search draws nothing"
            )
        if not temperature and (top_k is not None or top_p is not None):
            raise ValueError("top_k and top_p are for what is drawn at random: give a temperature over 0")
        if beams > 1:
            return self._texts(self._tokens(_beam_search, embeddings, beams=beams)[0][:, 0])
        if not temperature:
            return self._texts(self._tokens(_greedy, embeddings))
        options = {
            "seed": np.uint32(seed),
            "temperature": np.float32(temperature),
            "top_k": np.int32(vocabulary if top_k is None else min(top_k, vocabulary)),
            "top_p": np.float32(1.0 if top_p is None else top_p),
        }
        rows = np.arange(len(embeddings), dtype=np.int32)
        return self._texts(self._tokens(_sample, embeddings, rows, **options))

    def candidates(self, embeddings: np.ndarray, beams: int) -> list[list[tuple[str, float]]]:
        """What a beam search finds for each embedding: [B, E] -> B lists of 1 to `beams` texts, those of
        the highest mean log-probability per token first, none twice, and none empty unless it is the only
        one; with the natural logarithm of each text's probability.

        Raises:
          ValueError: `beams` is out of range.
        """
        self._check_beams(beams)
        tokens, means = self._tokens(_beam_search, embeddings, beams=beams)
        lengths = np.minimum((tokens != self._tokenizer.end_id).sum(axis=2) + 1, tokens.shape[2])
        offered = []
        for row, scores in zip(tokens, means * lengths, strict=True):
            found: dict[str, float] = {}
            for text, score in zip(self._texts(row), scores.tolist(), strict=True):
                found.setdefault(text, score)
            offered.append([pair for pair in found.items() if pair[0]] or [("", found[""])])
        return offered

    def _check_beams(self, beams: int) -> None:
        most = self.config.llama.vocab_size // 2
        if not isinstance(beams, int | np.integer) or not 1 <= beams <= most:
            raise ValueError(
                f"beams={beams} must be a whole number between 1 and half the vocabulary, {most}"
            )

    def _tokens(self, function, *arrays: np.ndarray, **options):
        run = functools.partial(
            function, length=self.config.max_length, end=self._tokenizer.end_id, **options
        )
        return in_batches(run, self._state, self._graphdef, self._batch_size, *arrays, mesh=self._mesh)

    def _texts(self, tokens: np.ndarray) -> list[str]:
        return [self._tokenizer.text(row) for row in tokens]


def is_decoder(directory: epath.Path) -> bool:
    """Whether a folder holds a decoder, trained or in training."""
    return (directory / "config.json").is_file() and (directory / "checkpoints").is_dir()


def read_config(directory: epath.Path) -> DecoderConfig:
    """The configuration of a decoder.

    Raises:
      UsageError: the folder holds none.
    """
    if not is_decoder(directory):
        raise flags.UsageError(
            f"{directory} holds no decoder: give the --workdir of a python -m jepa_jax.train_decoder"
        )
    file = directory / "config.json"
    return flags.config_from_json(file.read_bytes(), str(file), DecoderConfig)


def check_weights(directory: epath.Path, data: dict[str, Any], y_encoder: str) -> None:
    """Raise UsageError where a decoder was trained for a Y-Encoder of another SHA-256 than this.

    Args:
      data: what its checkpoint keeps beside the arrays; earlier ones do not say it.
    """
    if data.get("y_encoder", y_encoder) != y_encoder:
        raise flags.UsageError(
            f"{directory} decodes the embeddings of another run: its Y-Encoder had other weights than this "
            "model's; train another decoder, in another --workdir"
        )


def load_decoder(
    directory: epath.Path,
    embedding_size: int,
    *,
    run_step: int | None,
    y_encoder: str,
    batch_size: int,
    mesh: Mesh = NO_MESH,
) -> Decoder:
    """The decoder that `python -m jepa_jax.train_decoder` wrote: its last whole checkpoint.

    Args:
      embedding_size, run_step, y_encoder: of the model whose embeddings it shall decode; the last is the
        SHA-256 of its Y-Encoder's weights.
      batch_size, mesh: as `Decoder` has them.

    Raises:
      UsageError: there is none, it has no whole checkpoint, or is another model's.
    """
    config = read_config(directory)
    if config.run_step != run_step:
        raise flags.UsageError(
            f"{directory} decodes the embeddings of step {config.run_step}, and the model is that of step "
            f"{run_step}: load WORKDIR/checkpoints/{config.run_step}, or train another decoder"
        )
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: YDecoder(config, embedding_size, rngs=nnx.Rngs(0))))
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh.size else first
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
    checkpointer = Checkpointer(directory / "checkpoints", config.checkpoint, read_only=True)
    with contextlib.closing(checkpointer), flags.as_usage_errors(DamagedCheckpointError, ValueError):
        found = checkpointer.restore_latest({"params": template})
        tokenizer = load_decoder_tokenizer(config)
    if found is None:
        raise flags.UsageError(f"{directory} has no checkpoint yet")
    check_weights(directory, found[2], y_encoder)
    return Decoder(nnx.merge(graphdef, found[1]["params"]), config, tokenizer, batch_size, mesh)
