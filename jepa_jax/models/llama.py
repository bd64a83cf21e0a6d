"""Llama 3 blocks, shared by the predictor and the Y-Decoder."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax.config import LlamaConfig, Remat
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
        self.mlp = GatedMLP(config.width, config.mlp_width, jax.nn.silu, gain=gain, dtype=dtype, rngs=rngs)
        self.head_size = config.head_size
        self.causal = config.causal

    def __call__(self, x: jax.Array, context, _) -> jax.Array:
        """[B, L, D] -> [B, L, D]; `context` is (valid, rotary table)."""
        valid, table = context
        y = self.norm1(x)
        q, k, v = (f(y).reshape(*y.shape[:2], -1, self.head_size) for f in (self.query, self.key, self.value))
        q, k, v = attention_inputs(rotate_halves(q, table), rotate_halves(k, table), v)
        y = attention(q, k, v, valid=valid, causal=self.causal)
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

    def context(self, length: int, valid: jax.Array):
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

    def hidden_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """States after the final norm: [B, L] int32, [B, L] bool -> [B, L, D]."""
        x = lookup(self.token_embedding[...], tokens, self.width, self.dtype)
        return self.llama(x, mask)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits of the next token: [B, L] int32, [B, L] bool -> [B, L, V] float32."""
        x = self.hidden_states(tokens, mask)
        if self.output is not None:
            return self.output(x).astype(jnp.float32)
        table = self.token_embedding[...].astype(self.dtype)
        return jnp.einsum("BLD,VD->BLV", x, table, preferred_element_type=jnp.float32)
