"""A model for use, trained or converted: NumPy in, NumPy out, compiled once per shape."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jepa_jax import distributed, flags, part_models, parts
from jepa_jax.checkpoint import sha256
from jepa_jax.config import Config
from jepa_jax.data.tokenizer import Tokenizer, identity_of, load_tokenizers
from jepa_jax.decoder import Decoder, is_decoder, load_decoder, read_config
from jepa_jax.evaluation.classification import class_embeddings, phrased
from jepa_jax.evaluation.frames import loader
from jepa_jax.evaluation.retrieval import nearest
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.part_models import (
    checked_frames,
    checked_texts,
    in_batches,
    one_array,
    padded_length,
)
from jepa_jax.places import PlaceError, place
from jepa_jax.runs import compare_tokenizers, find_run, restore_run, run_config
from jepa_jax.sharding import NO_MESH, make_mesh
from jepa_jax.state import abstract_state, to_items
from jepa_jax.streaming.frames import from_arrays
from jepa_jax.streaming.online import OnlineConfig, OnlineDecoder
from jepa_jax.streaming.texts import NearestText, Written
from jepa_jax.streaming.windows import look


@functools.partial(jax.jit, static_argnames="graphdef")
def _encode(state, frames, graphdef):
    return nnx.merge(graphdef, state).encode_frames(frames)


@functools.partial(jax.jit, static_argnames="graphdef")
def _predict(state, visual, query, query_mask, graphdef):
    return nnx.merge(graphdef, state).predict(visual, query, query_mask)


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed_text(state, tokens, mask, graphdef):
    return nnx.merge(graphdef, state).embed_text(tokens, mask)


# What the default data ask for a caption, and what they ask for a name.
CAPTION_QUERY, NAME_QUERY = "describe the clip", "what is it?"
# Texts that the decoder offers for an embedding, and what the logarithm of their probability counts beside
# the cosine of their own embedding: docs/decoding.md has the figures that both were chosen by.
CANDIDATES = 8
LIKELIHOOD_WEIGHT = 0.0025


class Model:
    """VL-JEPA with its tokenizers and, where one was trained, its Y-Decoder.

    Inputs are computed in batches of at most `config.eval.batch_size` rows, padded to few sizes in rows
    and text positions, so that few programs are compiled and one clip costs one row.

    A video is [B, T, H, W, C] uint8 RGB frames or, where many questions are asked about it, what
    `encode_video` made of them. A query is one text for all videos, or a list of one for each; None stands
    for `default_query`.

    Attributes:
      home: the folder it was loaded from, a run's work directory or converted weights; None without.
      step: the checkpoint of the run; None where there is no run.

    Args:
      decoder: the folder of its decoder (default: `home`/decoder).
      mesh: whose devices share the rows of each batch (default: the mesh in context).
      learned_with: `identity_of` the tokenizers that its texts were split with; None where nobody knows.
      only_query: that which all of its run's data have, "" where they are captions alone; None where they
        have several, or nobody knows.
    """

    def __init__(
        self,
        model: VLJEPA,
        config: Config,
        tokenizers: tuple[Tokenizer, Tokenizer] | None = None,
        *,
        home: epath.Path | None = None,
        step: int | None = None,
        decoder: epath.Path | None = None,
        mesh: Mesh | None = None,
        learned_with: str | None = None,
        only_query: str | None = None,
    ):
        self.config = config
        self.home = home
        self.step = step
        self._decoder = home / "decoder" if decoder is None and home is not None else decoder
        self._given_tokenizers = tokenizers
        self._learned_with = learned_with
        self._only_query = only_query
        self._origin: Model | None = None
        self._lengths = config.data.length_buckets[-1]
        self._graphdef, self._state = nnx.split(model)
        self._mesh = jax.sharding.get_mesh() if mesh is None else mesh
        devices = max(self._mesh.size, 1)
        self._batch_size = -(-config.eval.batch_size // devices) * devices

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mesh": NO_MESH}  # what is unpickled is on one device

    def with_weights(self, model: VLJEPA) -> "Model":
        """The same configuration, tokenizers and decoder around other weights of the same architecture."""
        known = {"home": self.home, "step": self.step, "decoder": self._decoder, "mesh": self._mesh}
        known |= {"learned_with": self._learned_with, "only_query": self._only_query}
        other = Model(model, self.config, self._given_tokenizers, **known)
        other._origin = self
        return other

    @functools.cached_property
    def _tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The query's and the target's, loaded when the first text comes: a model whose tokenizers
        are out of reach still sees.

        Raises:
          UsageError: one cannot be loaded, as a folder named from another one than we are in.
        """
        if self._given_tokenizers is not None:
            return self._given_tokenizers
        with flags.as_usage_errors(ValueError):
            found = load_tokenizers(self.config)
        compare_tokenizers(self._learned_with, identity_of(found), self.home)
        return found

    @property
    def module(self) -> VLJEPA:
        """The Flax module with its parameters."""
        return nnx.merge(self._graphdef, self._state)

    @property
    def has_decoder(self) -> bool:
        """Whether `python -m jepa_jax.train_decoder` made a decoder for it."""
        return self._decoder is not None and is_decoder(self._decoder)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The Y-Decoder, loaded when the first text is asked for.

        Raises:
          UsageError: there is none, or it is that of another checkpoint or run.
        """
        if not self.has_decoder:
            raise flags.UsageError(
                f"this model has no decoder to write text with: train one with python -m "
                f"jepa_jax.train_decoder --checkpoint={self.home or 'RUN'}, or give candidate texts"
            )
        if self._origin is not None:
            return self._origin.decoder
        options = {
            "run_step": self.step,
            "y_encoder": sha256(nnx.state(self.module.y_encoder)),
            "batch_size": self._batch_size,
            "mesh": self._mesh,
        }
        return load_decoder(self._decoder, self.config.model.embedding_size, **options)

    def _batched(self, function, *arrays: np.ndarray) -> np.ndarray:
        places = self._state, self._graphdef, self._batch_size
        return in_batches(function, *places, *arrays, mesh=self._mesh)

    def read(
        self, file: str | os.PathLike, start: float | None = None, end: float | None = None
    ) -> np.ndarray:
        """A video, or the seconds from `start` to `end` of it, or an image, as training takes them:
        [1, T, H, W, C] uint8.

        Raises:
          ValueError: it is neither, or damaged; says how. Or it is a URL.
          OSError: it cannot be opened.
        """
        try:
            path = epath.Path(os.path.expanduser(file))
        except KeyError as error:  # of a scheme that is no file system's
            raise ValueError(f"{file} is no file, of a disk or a bucket: download it first") from error
        return loader(self.config)(path, start, end)[None]

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        """Visual tokens S_V, to ask about as often as one likes: [B, T, H, W, C] uint8 -> [B, N, D]."""
        return self._batched(_encode, checked_frames(frames))

    def default_query(self, otherwise: str = CAPTION_QUERY) -> str:
        """What is asked where nothing is said: the only query that the model has learnt or, of those of the
        default data, `otherwise`. Under one that it has never seen, it answers far worse."""
        return otherwise if self._only_query is None else self._only_query

    def check_query(self, query: str) -> None:
        """Raise ValueError if a query is longer than the model takes, or no text."""
        if not isinstance(query, str):
            raise ValueError(f"the query {query!r} is no text")
        tokens, limit = self._tokenizers[0].count(query), self._lengths[0]
        if tokens > limit:
            raise ValueError(
                f"the query {query!r} has {tokens} tokens and the model takes {limit} "
                "(data.length_buckets of its run): shorten it"
            )

    def predict(self, video: np.ndarray, query: str | list[str], *, cut: bool = False) -> np.ndarray:
        """Predicted embedding of the answer to a query about each video, S^_Y: [B, E] float32 unit
        vectors.

        Args:
          cut: whether a query longer than the model takes is cut, as in training, and not refused.

        Raises:
          ValueError: not as many queries as videos, a query longer than the model takes, or what is
            neither frames nor finite visual tokens.
        """
        visual, width = one_array(video, "frames"), self.config.model.x_encoder.width
        if visual.dtype == np.dtype("V2"):  # what NumPy reads of bfloat16 that it saved
            visual = visual.view(jnp.bfloat16)
        if visual.ndim != 3:
            visual = self.encode_video(visual)
        elif visual.shape[-1] != width or not visual.size or not jnp.issubdtype(visual.dtype, jnp.floating):
            raise ValueError(
                f"visual tokens must be [B, N, {width}] floats, as of encode_video: got {visual.shape} "
                f"{visual.dtype}"
            )
        queries = checked_texts([query] * len(visual) if isinstance(query, str) else query, "list of queries")
        if len(visual) != len(queries):
            raise ValueError(f"{len(visual)} videos but {len(queries)} queries")
        if not cut:
            for text in set(queries):
                self.check_query(text)
        tokenizer = self._tokenizers[0]
        tokens = tokenizer.batch(queries, padded_length(tokenizer, queries, self._lengths[0]))
        embeddings = self._batched(_predict, visual, *tokens)
        # One such token spoils its clip's embedding: the tokens, which are many, are looked at only then.
        if not np.isfinite(embeddings).all() and not np.isfinite(visual).all():
            raise ValueError("visual tokens must be finite, and some of these are NaN or infinite")
        return embeddings

    def embed_video(self, frames: np.ndarray, query: str | list[str]) -> np.ndarray:
        """`predict` of frames: [B, T, H, W, C] uint8 RGB -> [B, E] float32 unit vectors."""
        return self.predict(self.encode_video(frames), query)

    def embed_image(self, images: np.ndarray, query: str | list[str] | None = None) -> np.ndarray:
        """The same of still images: [B, H, W, C] uint8 RGB -> [B, E] float32 unit vectors."""
        images = one_array(images, "images")
        if images.ndim != 4:
            raise ValueError(f"images must be [B, H, W, 3] uint8, got {images.shape} {images.dtype}")
        return self.embed_video(images[:, None], self.default_query() if query is None else query)

    def embed_text(self, texts: list[str]) -> np.ndarray:
        """Embeddings of texts, S_Y: B texts -> [B, E] float32 unit vectors. A text longer than the last
        of the run's `data.length_buckets` is cut, as in training."""
        texts, tokenizer = checked_texts(texts), self._tokenizers[1]
        length = padded_length(tokenizer, texts, self._lengths[1])
        return self._batched(_embed_text, *tokenizer.batch(texts, length))

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than `embed_text` takes."""
        return self._tokenizers[1].count(text) > self._lengths[1]

    def classify(
        self,
        video: np.ndarray,
        labels: list[str],
        query: str | list[str] | None = None,
        templates: tuple[str, ...] = ("{}",),
    ) -> np.ndarray:
        """How near each label is to the answer: cosines [B, labels] float32; the nearest is the class.

        Args:
          query: None stands for `default_query("what is it?")`.
          templates: a label's embedding is the mean of those of its phrasings, "{}" being the label.

        Raises:
          ValueError: as `predict` and `embed_text`, or a template has no "{}".
        """
        labels, templates = (
            checked_texts(labels, "list of labels"),
            checked_texts(templates, "list of templates"),
        )
        phrasings = [phrased(label, templates) for label in labels]
        query = self.default_query(NAME_QUERY) if query is None else query
        return self.predict(video, query) @ class_embeddings(self.embed_text, phrasings).T

    def answer(
        self, video: np.ndarray, question: str | list[str], candidates: list[str] | None = None, **how
    ) -> list[str]:
        """An answer for each video: the nearest of the candidates or, without any, what the decoder
        writes; `how` is `decode`'s."""
        return self.decode(self.predict(video, question), bank=candidates, **how)

    def caption(self, video: np.ndarray, query: str | list[str] | None = None, **how) -> list[str]:
        """A caption for each video, written by the decoder; `how` is `decode`'s."""
        return self.answer(video, self.default_query() if query is None else query, **how)

    def decode(self, embeddings: np.ndarray, *, bank: list[str] | None = None, **how) -> list[str]:
        """The texts that embeddings stand for: [B, E], of any length but 0 -> B texts.

        Args:
          bank: the nearest of these texts is taken; without, the decoder writes one.
          how: `beams`, `temperature`, `top_k`, `top_p`, `seed` of `decoder.Decoder`: `beams=1` is its
            likeliest token each time. Without any, of the likeliest few texts that it finds the one whose
            own embedding is nearest, the likelier of two that are as near: the decoder knows how texts go,
            the Y-Encoder what they mean.

        Raises:
          ValueError: an empty bank, embeddings of another form, or settings out of range.
          UsageError: the model has no decoder, or its embeddings of the bank are not numbers.
        """
        size = self.config.model.embedding_size
        embeddings = one_array(embeddings, "embeddings", np.float32)
        if embeddings.ndim != 2 or embeddings.shape[1] != size:
            raise ValueError(f"embeddings must be [B, {size}], got {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings must be finite, and some of these are NaN or infinite")
        # In float64, where no square of a float32 is lost. What is not of length 1, a mean for one, would
        # weigh cosines otherwise than the decoder's probabilities are weighed beside them.
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            raise ValueError("embeddings must point somewhere, and some of these are all zeros")
        embeddings = (embeddings / lengths).astype(np.float32)
        if bank is None:
            return self.decoder(embeddings, **how) if how else self._write(embeddings)
        bank = checked_texts(bank, "bank of texts")
        if how:
            raise ValueError(f"{', '.join(how)}: settings of the decoder, which a bank of texts replaces")
        return [bank[i] for i in nearest(embeddings, self.embed_text(bank))]

    def _write(self, embeddings: np.ndarray) -> list[str]:
        """`decode` without a bank or settings."""
        candidates = self.decoder.candidates(embeddings, CANDIDATES)
        texts = list(dict.fromkeys(text for row in candidates for text, _ in row))
        own = dict(zip(texts, self.embed_text(texts), strict=True))
        pairs = zip(candidates, embeddings, strict=True)
        return [
            max(row, key=lambda c: own[c[0]] @ embedding + LIKELIHOOD_WEIGHT * c[1])[0]
            for row, embedding in pairs
        ]

    def stream(
        self,
        frames: Iterable[np.ndarray],
        rate: float,
        query: str | None = None,
        *,
        window: float = 2.0,
        bank: Sequence[str] | None = None,
        **when,
    ) -> Iterator[tuple[float, str, float]]:
        """Watch frames as they come and speak only when something changed (selective decoding).

        Args:
          frames: any iterable of [H, W, C] uint8 RGB, however long.
          rate: frames a second.
          window: seconds that one look takes in; looks are half of it apart.
          bank: texts to choose from; None lets the decoder write.
          when: fields of `streaming.online.OnlineConfig`.

        Yields:
          (seconds at which it began, text, score: the cosine of text and embedding).

        Raises:
          NoVideoError: fewer frames than one window takes.
          ValueError: frames of another form, a rate or window that is not above 0, a query that is too
            long, no text in the bank.
          UsageError: there is no decoder and no bank, or the model's embeddings are not numbers.
        """
        query = self.default_query() if query is None else query
        self.check_query(query)
        speak = Written(self) if bank is None else NearestText(self, checked_texts(bank, "bank of texts"))
        windows, renewal = look(self, from_arrays(frames, rate), query, window=window)
        decoder = OnlineDecoder(OnlineConfig(**when), renewal)

        def decodes():
            for found in windows:
                yield decoder(found)
            yield decoder.finish()

        for decode in filter(None, decodes()):
            text, score = speak(decode.embedding[None])[0]
            yield decode.start, text, score


def load(
    directory: str | os.PathLike,
    decoder: str | os.PathLike | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
):
    """The model of a run, or converted weights.

    Args:
      directory: a work directory of `python -m jepa_jax.train` (its last whole checkpoint is taken),
        one checkpoint in it, WORKDIR/checkpoints/STEP, or a folder that
        `python -m weights_conversion` wrote.
      decoder: where `python -m jepa_jax.train_decoder` wrote a decoder, if not to DIR/decoder.
      devices: that have the whole model each and share the rows of each batch, of this host
        (`jax.local_devices()`; default: the first of them). A converted part takes the first.
      batch_size: rows at a time over all devices, at most (default: the run's `eval.batch_size`); fewer
        take less memory. A converted part has its own.

    Returns:
      A `Model`; for one converted part, `part_models.XEncoderModel`, `YEncoderModel` or `LlamaModel`.

    Raises:
      UsageError: there is no checkpoint, or none is whole; weights that are damaged or of another form; no
        decoder in its folder; no device, or none is named; or no row to a batch.
    """
    distributed.check_devices()
    if devices is not None and not len(devices):
        raise flags.UsageError("devices names none: jax.local_devices() are this host's")
    if batch_size is not None and batch_size < 1:
        raise flags.UsageError(f"batch_size={batch_size} must be at least 1")
    with flags.as_usage_errors(PlaceError):
        path = place(directory)
        folder = None if decoder is None else place(decoder)
    if folder is not None:
        read_config(folder)  # what is no decoder is said now, not when the first text is asked for
    mesh = make_mesh(devices=jax.local_devices()[:1] if devices is None else devices)
    if parts.is_part(path):
        with flags.as_usage_errors(ValueError):  # also of arrays that are not those of its configuration
            part = parts.open_part(path)
            if part.name != "vl_jepa":
                return part_models.make(part)
            config = part.config
            graphdef, template = abstract_state(config, mesh)
            home, step, data = path, None, {}
            params = to_items(template)["params"]
            everywhere = dict.fromkeys(part.shapes, NamedSharding(mesh, PartitionSpec()))
            params = parts.filled(params, part.read(everywhere))
    else:
        home, step = find_run(path)
        config = run_config(home)
        graphdef, template = abstract_state(config, mesh)
        step, params, data = restore_run(home, step, config, to_items(template)["params"])
    if batch_size is not None:
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=batch_size))
    known = {"learned_with": data.get("tokenizers"), "only_query": data.get("query")}
    known |= {"home": home, "step": step, "decoder": folder, "mesh": mesh}
    return Model(nnx.merge(graphdef, params), config, **known)
