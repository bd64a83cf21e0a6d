"""VL-JEPA: X-Encoder, predictor and Y-Encoder together, and which of their parameters train."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.config import BertConfig, LearningRateFactors, LossConfig, ModelConfig, YEncoderConfig
from jepa_jax.models.bert import Bert
from jepa_jax.models.gemma import Gemma
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.x_encoder import XEncoder
from jepa_jax.models.y_encoder import YEncoder

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise_frames(frames: jax.Array, dtype=jnp.float32) -> jax.Array:
    """uint8 RGB [..., C] to ImageNet-normalised floats, on the device: the host sends bytes."""
    x = (frames.astype(jnp.float32) / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    return x.astype(dtype)


def unit(x: jax.Array) -> jax.Array:
    """L2-normalise the last axis in float32. A zero vector stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    # Beyond 1e19 the squares overflow, and every vector would be zero. A factor changes no direction, so it
    # has no gradient; its square may have no digits left.
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    shrink = jax.lax.stop_gradient(jax.lax.rsqrt(jnp.maximum(largest, 1.0)))
    x = x * shrink * shrink
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))


def make_y_encoder(config: YEncoderConfig | BertConfig, embedding_size: int | None, **options) -> YEncoder:
    """The text encoder a configuration asks for; without `embedding_size`, one that ends before the
    projection to the shared space."""
    return (Bert if isinstance(config, BertConfig) else Gemma)(config, embedding_size, **options)


class VLJEPA(nnx.Module):
    """The model of arXiv 2512.10942: both methods give unit vectors in the shared space."""

    def __init__(self, config: ModelConfig, loss: LossConfig, *, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(config.compute_dtype)
        shared = {
            "dtype": self.dtype,
            "remat": config.remat,
            "scan": config.scan_layers,
            "rngs": rngs,
        }
        self.x_encoder = XEncoder(config.x_encoder, **shared)
        self.predictor = Predictor(config.predictor, config.x_encoder.width, config.embedding_size, **shared)
        projected = config.embedding_size if config.y_projection else None
        self.y_encoder = make_y_encoder(config.y_encoder, projected, **shared)
        # The temperature is learned as log(1 / tau), so that it stays positive.
        self.log_logit_scale = nnx.Param(jnp.asarray(-math.log(loss.temperature), jnp.float32))

    @jax.named_scope("x_encoder")
    def encode_frames(self, frames: jax.Array) -> jax.Array:
        """Visual tokens S_V: [B, T, H, W, C] uint8 RGB -> [B, N, D of the X-Encoder]."""
        return self.x_encoder(normalise_frames(frames, self.dtype))

    def predict(self, visual: jax.Array, query: jax.Array, query_mask: jax.Array) -> jax.Array:
        """Predicted embedding of the answer, S^_Y.

        Args:
          visual: [B, N, D of the X-Encoder], from `encode_frames`.
          query: [B, L] int32; `query_mask`: [B, L] bool, False on padding.

        Returns:
          [B, E] float32 unit vectors.
        """
        return unit(self.predictor(visual, query, query_mask))

    def embed_text(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Embedding of a text, S_Y: [B, L] int32, [B, L] bool -> [B, E] float32 unit vectors."""
        return unit(self.y_encoder(tokens, mask))


def names_of(path: tuple) -> list[str]:
    """A pytree path as plain names."""
    return [str(getattr(p, "key", getattr(p, "name", p))) for p in path]


def part_of(path: tuple) -> str:
    """The part, a field of `LearningRateFactors`, that a parameter belongs to."""
    names = names_of(path)
    if names[0] == "x_encoder":
        return "x_encoder"
    if names[0] == "log_logit_scale" or names[1].endswith("_projection"):
        return "heads"
    if names[0] == "predictor":
        return "token_embedding" if names[1] == "token_embedding" else "predictor"
    return "y_encoder"


def is_trained(factors: LearningRateFactors, loss: LossConfig):
    """An NNX filter that is True for the parameters that train under a configuration."""

    def trained(path, _) -> bool:
        if path[0] == "log_logit_scale" and not (loss.learnable_temperature and loss.has_temperature):
            return False
        return getattr(factors, part_of(path)) > 0

    return trained
