"""Gemma 3 text blocks, bidirectional: the Y-Encoder EmbeddingGemma (arXiv 2509.20354)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.config import Remat, YEncoderConfig
from jepa_jax.models.attention import attention
from jepa_jax.models.layers import (
    GatedMLP,
    RMSNorm,
    Stack,
    attention_inputs,
    linear,
    residual,
    residual_gain,
    rope_frequencies,
    rope_table,
    rotate_halves,
)
from jepa_jax.models.sharded import lookup
from jepa_jax.models.y_encoder import YEncoder


def _gelu(x: jax.Array) -> jax.Array:
    # A function of the module: two models of one configuration are then the same to `jax.jit`.
    return jax.nn.gelu(x, approximate=True)


class Block(nnx.Module):
    """Gemma 3 block: norms before and after attention and MLP, norms on queries and keys."""

    def __init__(self, config: YEncoderConfig, *, dtype, rngs: nnx.Rngs):
        make = functools.partial(linear, dtype=dtype, rngs=rngs)
        norm = functools.partial(RMSNorm, eps=config.norm_eps, unit_offset=True)
        self.norm_before_attention = norm(config.width)
        self.query = make(config.width, config.heads * config.head_size)
        self.key = make(config.width, config.kv_heads * config.head_size)
        self.value = make(config.width, config.kv_heads * config.head_size)
        self.query_norm = norm(config.head_size)
        self.key_norm = norm(config.head_size)
        self.out = make(config.heads * config.head_size, config.width)
        # The norms after attention and MLP decide how much a block adds.
        gain = residual_gain(config.layers)
        self.norm_after_attention = norm(config.width, gain=gain)
        self.norm_before_mlp = norm(config.width)
        self.mlp = GatedMLP(config.width, config.mlp_width, _gelu, dtype=dtype, rngs=rngs)
        self.norm_after_mlp = norm(config.width, gain=gain)
        self.head_size = config.head_size
        self.scale = config.query_scalar**-0.5
        self.window = config.window

    def __call__(self, x: jax.Array, context, is_full) -> jax.Array:
        """[B, L, D] -> [B, L, D]; `context` is (valid, rotary tables of sliding and full layers)."""
        valid, tables = context
        table = [jnp.where(is_full, full, sliding) for sliding, full in zip(*tables, strict=True)]
        y = self.norm_before_attention(x)
        q, k, v = (f(y).reshape(*y.shape[:2], -1, self.head_size) for f in (self.query, self.key, self.value))
        q, k = (rotate_halves(norm(y), table) for norm, y in ((self.query_norm, q), (self.key_norm, k)))
        q, k, v = attention_inputs(q, k, v)
        y = attention(q, k, v, valid=valid, window=self.window, everywhere=is_full, scale=self.scale)
        x = residual(x + self.norm_after_attention(self.out(y.reshape(*x.shape[:2], -1))))
        return x + self.norm_after_mlp(self.mlp(self.norm_before_mlp(x)))


class Gemma(YEncoder):
    """Bidirectional Gemma 3 text model, mean pool, Dense heads, projection to the shared space."""

    def __init__(
        self,
        config: YEncoderConfig,
        embedding_size: int | None,
        *,
        dtype,
        remat: Remat,
        scan: bool,
        rngs: nnx.Rngs,
    ):
        self.config = config
        init = jax.nn.initializers.normal(config.width**-0.5)
        self.token_embedding = nnx.Param(init(rngs.params(), (config.vocab_size, config.width), np.float32))
        self.blocks = Stack(
            lambda r: Block(config, dtype=dtype, rngs=r),
            config.layers,
            dtype=dtype,
            remat=remat,
            scan=scan,
            rngs=rngs,
        )
        self.norm = RMSNorm(config.width, eps=config.norm_eps, unit_offset=True)
        self._add_heads((config.width, *config.dense_widths), embedding_size, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def embed(self, tokens: jax.Array, mask: jax.Array):
        """What the blocks take: token embeddings [B, L, D], (mask, rotary tables), and per layer
        whether it sees everything."""
        config = self.config
        length = tokens.shape[1]
        # The factor is rounded to the compute type, as in the reference.
        factor = jnp.asarray(config.width**0.5, self.dtype)
        x = lookup(self.token_embedding[...], tokens, config.width, self.dtype) * factor
        tables = tuple(
            rope_table(length, rope_frequencies(config.head_size, theta))
            for theta in (config.rope_theta_sliding, config.rope_theta_full)
        )
        is_full = np.arange(1, config.layers + 1) % config.full_every == 0
        return x, (mask, tables), is_full

    def hidden_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states after the final norm: [B, L] int32, [B, L] bool -> [B, L, D]."""
        return self.norm(self.blocks(*self.embed(tokens, mask)))
