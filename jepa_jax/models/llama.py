"""Llama 3 blocks, shared by the predictor and the Y-Decoder."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.config import LlamaConfig, Remat
from jepa_jax.models.attention import attention, attention_to_cache
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

# Rotated keys, and values, of the positions so far: [S, B, C, G, A] each, C the room there is.
Cache = tuple[jax.Array, jax.Array]


def _silu(x: jax.Array) -> jax.Array:
    # JAX's own is compiled by itself, and what it then is cannot be pickled.
    return jax.nn.silu(x)


class Block(nnx.Module):
    """Pre-norm block: grouped-query rotary attention, then a gated SiLU MLP; no biases."""

    def __init__(self, config: LlamaConfig, *, dtype, rngs: nnx.Rngs):
        make = functools.partial(linear, dtype=dtype, rngs=rngs)
        self.norm1 = RMSNorm(config.width, eps=config.norm_eps)
        self.query = make(config.width, config.heads * config.head_size)
        self.key = make(config.width, config.kv_heads * config.head_size)
        self.value = make(config.width, config.kv_heads * config.head_size)
        gain = residual_gain(config.layers)
        self.out = make(config.heads * config.head_size, config.width, gain=gain)
        self.norm2 = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_width, _silu, gain=gain, dtype=dtype, rngs=rngs)
        self.head_size = config.head_size
        self.causal = config.causal

    def __call__(self, x: jax.Array, context, _) -> jax.Array:
        """[B, L, D] -> [B, L, D]; `context` is (valid, rotary table)."""
        valid, table = context
        return self._after_attention(x, attention(*self._heads(x, table), valid=valid, causal=self.causal))

    def extend(self, x: jax.Array, cache: Cache, context) -> tuple[jax.Array, Cache]:
        """New positions that see themselves and those before: [B, L, D] -> [B, L, D] and the longer
        cache of this layer, [B, C, G, A] twice; `context` is (first new position, rotary table of the
        new ones, visible [L, C])."""
        start, table, visible = context
        q, *new = self._heads(x, table)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), start, axis=1)
            for old, x in zip(cache, new, strict=True)
        )
        return self._after_attention(x, attention_to_cache(q, keys, values, visible)), (keys, values)

    def _heads(self, x, table) -> list[jax.Array]:
        """Rotated queries and keys, and values: [B, L, K, A], [B, L, G, A], [B, L, G, A]."""
        y = self.norm1(x)
        q, k, v = (f(y).reshape(*y.shape[:2], -1, self.head_size) for f in (self.query, self.key, self.value))
        return attention_inputs(rotate_halves(q, table), rotate_halves(k, table), v)

    def _after_attention(self, x, y):
        x = residual(x + self.out(y.reshape(*x.shape[:2], -1)))
        return x + self.mlp(self.norm2(x))


class Llama(nnx.Module):
    """A stack of Llama blocks and the final norm: embeddings in, hidden states out."""

    def __init__(self, config: LlamaConfig, *, dtype, remat: Remat, scan: bool, rngs: nnx.Rngs):
        self.config = config
        self.blocks = Stack(
            lambda r: Block(config, dtype=dtype, rngs=r),
            config.layers,
            dtype=dtype,
            remat=remat,
            scan=scan,
            rngs=rngs,
        )
        self.norm = RMSNorm(config.width, eps=config.norm_eps)

    def context(self, length: int, valid: jax.Array | None):
        """What every block is given: `valid`, and the rotary table of positions 0..L-1."""
        config = self.config
        frequencies = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
        return valid, rope_table(length, frequencies)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Hidden states after the final norm.

        Args:
          x: [B, L, D] input embeddings at positions 0..L-1.
          valid: [B, L] bool, False where a position is padding and must not be seen.

        Returns:
          [B, L, D].
        """
        return self.norm(self.blocks(x, self.context(x.shape[1], valid)))

    def extend(self, x: jax.Array, cache: Cache, start: jax.Array | int) -> tuple[jax.Array, Cache]:
        """Hidden states of new positions, causally: each sees itself and those before.

        Args:
          x: [B, L, D] input embeddings at positions start..start+L-1.
          cache: of positions 0..start-1.

        Returns:
          [B, L, D], and the cache of positions 0..start+L-1.
        """
        length, room = x.shape[1], cache[0].shape[2]
        _, whole_table = self.context(room, None)
        table = [jax.lax.dynamic_slice_in_dim(jnp.asarray(t), start, length) for t in whole_table]
        visible = jnp.arange(room) <= start + jnp.arange(length)[:, None]
        x, cache = self.blocks.extend(x, cache, (start, table, visible))
        return self.norm(x), cache


def token_embedding(config: LlamaConfig, *, rngs: nnx.Rngs) -> nnx.Param:
    """Token embedding table: [V, D] float32."""
    init = jax.nn.initializers.normal(config.width**-0.5)
    return nnx.Param(init(rngs.params(), (config.vocab_size, config.width), np.float32))


class LanguageModel(nnx.Module):
    """Token embedding, Llama blocks and, where `head` says so, scores of the next token.

    Args:
      head: "tied" to the token embedding, "own" weights, or None for hidden states alone.
    """

    def __init__(
        self,
        config: LlamaConfig,
        head: Literal["tied", "own"] | None,
        *,
        dtype,
        remat: Remat,
        scan: bool,
        rngs: nnx.Rngs,
    ):
        self.token_embedding = token_embedding(config, rngs=rngs)
        self.width = config.width
        self.llama = Llama(config, dtype=dtype, remat=remat, scan=scan, rngs=rngs)
        self.output = (
            linear(config.width, config.vocab_size, dtype=dtype, rngs=rngs) if head == "own" else None
        )
        self.dtype = dtype

    def embed(self, tokens: jax.Array) -> jax.Array:
        """What the blocks take: [B, L] int32 -> [B, L, D]."""
        return lookup(self.token_embedding[...], tokens, self.width, self.dtype)

    def hidden_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """States after the final norm: [B, L] int32, [B, L] bool -> [B, L, D]."""
        return self.llama(self.embed(tokens), mask)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits of the next token: [B, L] int32, [B, L] bool -> [B, L, V] float32."""
        return self.logits(self.hidden_states(tokens, mask))

    def empty_cache(self, batch: int, room: int) -> Cache:
        """A cache for `room` positions of `batch` texts."""
        config = self.llama.config
        shape = (config.layers, batch, room, config.kv_heads, config.head_size)
        return jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)

    def extend(self, x: jax.Array, cache: Cache, start: jax.Array | int) -> tuple[jax.Array, Cache]:
        """Logits of the token after new positions: [B, L, D] -> [B, V] float32, and the longer cache;
        the arguments are `Llama.extend`'s."""
        x, cache = self.llama.extend(x, cache, start)
        return self.logits(x[:, -1:])[:, 0], cache

    def logits(self, x: jax.Array) -> jax.Array:
        """Scores of the token after each hidden state: [B, L, D] -> [B, L, V] float32."""
        if self.output is not None:
            return self.output(x).astype(jnp.float32)
        table = self.token_embedding[...].astype(self.dtype)
        return jnp.einsum("BLD,VD->BLV", x, table, preferred_element_type=jnp.float32)
