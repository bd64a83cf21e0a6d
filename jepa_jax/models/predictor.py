"""Predictor: visual tokens and a textual query to the embedding of the answer."""

import jax
import jax.numpy as jnp
from flax import nnx

from jepa_jax.config import LlamaConfig, Remat
from jepa_jax.models.layers import linear, masked_mean
from jepa_jax.models.llama import Llama, token_embedding
from jepa_jax.models.sharded import lookup


class Predictor(nnx.Module):
    """Llama blocks over [visual; query], without a causal mask (arXiv 2512.10942, section 3.1)."""

    def __init__(
        self,
        config: LlamaConfig,
        visual_width: int,
        embedding_size: int,
        *,
        dtype,
        remat: Remat,
        scan: bool,
        rngs: nnx.Rngs,
    ):
        self.token_embedding = token_embedding(config, rngs=rngs)
        self.width = config.width
        self.visual_projection = linear(visual_width, config.width, bias=True, dtype=dtype, rngs=rngs)
        self.llama = Llama(config, dtype=dtype, remat=remat, scan=scan, rngs=rngs)
        self.output_projection = linear(config.width, embedding_size, bias=True, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    @jax.named_scope("predictor")
    def __call__(self, visual: jax.Array, query: jax.Array, query_mask: jax.Array) -> jax.Array:
        """Predicted embedding S^_Y, before normalisation.

        Positions run over [visual; query], 0..N+L-1. Padding sits on the right, is never attended
        to, and is left out of the mean that pools visual and query positions after the final norm.

        Args:
          visual: [B, N, D of the X-Encoder] visual tokens S_V.
          query: [B, L] int32 token ids; `query_mask`: [B, L] bool, False on padding.

        Returns:
          [B, E].
        """
        tokens = lookup(self.token_embedding[...], query, self.width, self.dtype)
        x = jnp.concatenate([self.visual_projection(visual), tokens], axis=1)
        seen = jnp.ones(visual.shape[:2], bool)
        valid = jnp.concatenate([seen, query_mask], axis=1)
        return self.output_projection(masked_mean(self.llama(x, valid), valid))
