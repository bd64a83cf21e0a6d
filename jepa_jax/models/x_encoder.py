"""X-Encoder: V-JEPA 2's vision transformer, frames to visual tokens (arXiv 2506.09985)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.config import Remat, XEncoderConfig
from jepa_jax.models.attention import attention
from jepa_jax.models.layers import (
    Stack,
    attention_inputs,
    gelu,
    layer_norm,
    linear,
    residual,
    residual_gain,
    rope_frequencies,
    rotate_neighbours,
)


def position_table(
    grid: tuple[int, int, int], head_size: int, theta: float, tiled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the 3-D rotary positions of a grid of tubelets.

    Each head is cut into three equal slices, rotated by the token's time, row and column; what
    remains of the head is not rotated (20 + 20 + 20 of 64 for ViT-L).

    Args:
      grid: tubelets along time, rows, columns; their product is N.
      tiled: the released V-JEPA 2 weights were trained with frequencies laid out f0 f1 .. f0 f1 ..
        over dimensions whose rotated pairs are neighbours, so the two members of a pair turn at
        different rates. It is a quirk of those weights and must be kept for them. False lays them
        out f0 f0 f1 f1 .. as V-JEPA 2.1 does.

    Returns:
      Two [N, A] float32 arrays.
    """
    size = 2 * (head_size // 3 // 2)
    frequencies = rope_frequencies(size, theta)
    frequencies = np.tile(frequencies, 2) if tiled else np.repeat(frequencies, 2)
    positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)
    angles = np.zeros((len(positions), head_size))
    for axis in range(3):
        angles[:, axis * size : (axis + 1) * size] = positions[:, axis, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Block(nnx.Module):
    """Pre-norm transformer block with rotary attention and a GELU MLP."""

    def __init__(self, config: XEncoderConfig, *, dtype, rngs: nnx.Rngs):
        norm = functools.partial(layer_norm, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        make = functools.partial(linear, bias=True, dtype=dtype, rngs=rngs)
        self.norm1 = norm(config.width)
        self.query = make(config.width, config.width)
        self.key = make(config.width, config.width)
        self.value = make(config.width, config.width)
        gain = residual_gain(config.layers)
        self.out = make(config.width, config.width, gain=gain)
        self.norm2 = norm(config.width)
        self.up = make(config.width, config.mlp_width)
        self.down = make(config.mlp_width, config.width, gain=gain)
        self.head_size = config.head_size

    def __call__(self, x: jax.Array, table, _) -> jax.Array:
        """[B, N, D] -> [B, N, D]; `table` is `position_table`'s."""
        y = self.norm1(x)
        q, k, v = (f(y).reshape(*y.shape[:2], -1, self.head_size) for f in (self.query, self.key, self.value))
        q, k, v = attention_inputs(rotate_neighbours(q, table), rotate_neighbours(k, table), v)
        x = residual(x + self.out(attention(q, k, v).reshape(x.shape)))
        y = checkpoint_name(self.up(self.norm2(x)), "mlp")
        return x + self.down(gelu(y))


class XEncoder(nnx.Module):
    """V-JEPA 2 encoder."""

    def __init__(self, config: XEncoderConfig, *, dtype, remat: Remat, scan: bool, rngs: nnx.Rngs):
        self.config = config
        patch = config.tubelet_size * config.patch_size**2 * 3
        self.patch_embedding = linear(patch, config.width, bias=True, dtype=dtype, rngs=rngs)
        self.blocks = Stack(
            lambda r: Block(config, dtype=dtype, rngs=r),
            config.layers,
            dtype=dtype,
            remat=remat,
            scan=scan,
            rngs=rngs,
        )
        self.norm = layer_norm(config.width, eps=config.norm_eps, dtype=dtype, rngs=rngs)

    def embed(self, frames_BTHWC: jax.Array):
        """What the blocks take: patch embeddings [B, N, D] and the rotary table of their grid."""
        t, p = self.config.tubelet_size, self.config.patch_size
        x = frames_BTHWC
        if x.shape[1] < t:
            if t % x.shape[1]:
                raise ValueError(f"{x.shape[1]} frames do not repeat evenly into a tubelet of {t}")
            x = jnp.tile(x, (1, t // x.shape[1], 1, 1, 1))
        b, frames, height, width, channels = x.shape
        if frames % t or height % p or width % p:
            raise ValueError(
                f"{frames} frames of {height} x {width} pixels: frames must be a multiple of the "
                f"tubelet ({t}), height and width of the patch ({p})"
            )
        grid = (frames // t, height // p, width // p)
        x = x.reshape(b, grid[0], t, grid[1], p, grid[2], p, channels)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, np.prod(grid), -1)
        table = position_table(grid, self.config.head_size, self.config.rope_theta, self.config.tiled_rope)
        return self.patch_embedding(x), table

    def __call__(self, frames_BTHWC: jax.Array) -> jax.Array:
        """Normalised frames to visual tokens S_V.

        Args:
          frames_BTHWC: float, ImageNet-normalised. Fewer frames than one tubelet (a still image)
            are repeated to fill it. The position grid is that of the frames given, whatever size
            the checkpoint was trained at.

        Returns:
          [B, N, D] with N = T/tubelet_size * H/patch_size * W/patch_size, time slowest.

        Raises:
          ValueError: T is not a multiple of the tubelet, or H or W of the patch.
        """
        return self.norm(self.blocks(*self.embed(frames_BTHWC)))
