"""BERT, a sentence encoder as Y-Encoder: all-MiniLM-L6-v2, BGE and their family (arXiv 1810.04805)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.config import BertConfig, Remat
from jepa_jax.models.attention import attention
from jepa_jax.models.layers import Stack, attention_inputs, gelu, layer_norm, linear, residual, residual_gain
from jepa_jax.models.sharded import lookup
from jepa_jax.models.y_encoder import YEncoder


class Block(nnx.Module):
    """Post-norm block: the norm comes after each residual sum."""

    def __init__(self, config: BertConfig, *, dtype, rngs: nnx.Rngs):
        norm = functools.partial(layer_norm, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        make = functools.partial(linear, bias=True, dtype=dtype, rngs=rngs)
        self.query = make(config.width, config.width)
        self.key = make(config.width, config.width)
        self.value = make(config.width, config.width)
        gain = residual_gain(config.layers)
        self.out = make(config.width, config.width, gain=gain)
        self.norm1 = norm(config.width)
        self.up = make(config.width, config.mlp_width)
        self.down = make(config.mlp_width, config.width, gain=gain)
        self.norm2 = norm(config.width)
        self.heads = config.heads

    def __call__(self, x: jax.Array, mask, _) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value))
        x = residual(
            self.norm1(x + self.out(attention(*attention_inputs(q, k, v), valid=mask).reshape(x.shape)))
        )
        y = checkpoint_name(self.up(x), "mlp")
        return self.norm2(x + self.down(gelu(y)))


class Bert(YEncoder):
    """BERT, its pool, and the projection to the shared space."""

    def __init__(
        self,
        config: BertConfig,
        embedding_size: int | None,
        *,
        dtype,
        remat: Remat,
        scan: bool,
        rngs: nnx.Rngs,
    ):
        self.config = config
        init = jax.nn.initializers.normal(config.width**-0.5)
        table = lambda rows: nnx.Param(init(rngs.params(), (rows, config.width), np.float32))
        self.token_embedding = table(config.vocab_size)
        self.position_embedding = table(config.max_length)
        self.type_embedding = table(config.types)
        self.embedding_norm = layer_norm(config.width, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.blocks = Stack(
            lambda r: Block(config, dtype=dtype, rngs=r),
            config.layers,
            dtype=dtype,
            remat=remat,
            scan=scan,
            rngs=rngs,
        )
        self._add_heads((config.width,), embedding_size, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def embed(self, tokens: jax.Array, mask: jax.Array):
        """What the blocks take: the normed sum of token, position and type embeddings [B, L, D], and
        the mask.

        Raises:
          ValueError: more positions than the table has.
        """
        length = tokens.shape[1]
        if length > self.config.max_length:
            raise ValueError(
                f"{length} tokens, but this BERT has positions for {self.config.max_length}: cut the texts"
            )
        # The three are added in float32, as in the reference.
        x = lookup(self.token_embedding[...], tokens, self.config.width, jnp.float32)
        x = x + self.position_embedding[...][:length] + self.type_embedding[...][0]
        x = self.embedding_norm(x.astype(self.dtype))
        return x, mask

    def hidden_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states of the last block: [B, L] int32, [B, L] bool -> [B, L, D]."""
        return self.blocks(*self.embed(tokens, mask))

    def pool(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """The mean over tokens, or the first token's state: [B, L, D], [B, L] -> [B, D]."""
        return x[:, 0] if self.config.pool == "first" else super().pool(x, mask)
