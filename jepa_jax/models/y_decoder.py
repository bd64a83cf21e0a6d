"""Y-Decoder: an embedding to the text it stands for (arXiv 2512.10942, section 3.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.config import DecoderConfig
from jepa_jax.models.layers import linear
from jepa_jax.models.llama import LanguageModel


class YDecoder(nnx.Module):
    """A causal Llama that reads an embedding as P prefix tokens and goes on with the text."""

    def __init__(self, config: DecoderConfig, embedding_size: int, *, rngs: nnx.Rngs):
        self.prefix_tokens = config.prefix_tokens
        self.dtype = jnp.dtype(config.compute_dtype)
        width = config.llama.width * config.prefix_tokens
        self.prefix_projection = linear(embedding_size, width, bias=True, dtype=self.dtype, rngs=rngs)
        self.language_model = LanguageModel(
            config.llama,
            config.head,
            dtype=self.dtype,
            remat=config.remat,
            scan=config.scan_layers,
            rngs=rngs,
        )

    def prefix(self, embedding: jax.Array) -> jax.Array:
        """What stands before the text: [B, E] -> [B, P, D]."""
        x = self.prefix_projection(embedding.astype(self.dtype))
        return x.reshape(len(x), self.prefix_tokens, -1)

    def __call__(self, embedding: jax.Array, tokens: jax.Array) -> jax.Array:
        """Logits of each token of a text, given the embedding and the tokens before it.

        Padding stands on the right, where the causal mask hides it from the text.

        Args:
          embedding: [B, E] unit vectors.
          tokens: [B, L] int32.

        Returns:
          [B, L, V] float32.
        """
        model = self.language_model
        x = jnp.concatenate([self.prefix(embedding), model.embed(tokens[:, :-1])], axis=1)
        x = model.llama(x, jnp.ones(x.shape[:2], bool))
        return model.logits(x[:, self.prefix_tokens - 1 :])
