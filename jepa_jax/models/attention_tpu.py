"""Attention for a TPU: Pallas' splash kernels, which never write the matrix of logits to memory."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

# The kernels work on tiles of so many positions, and on at most so many at a time.
_LANES, _LARGEST_BLOCK = 128, 512


def blocks(length: int) -> tuple[int, int]:
    """How many positions a sequence is filled up to, and in blocks of how many it is worked through.

    The fewest positions of which a block is not one tile: where a row of blocks is only filled up to the
    next tile, 2,049 positions would be 17 blocks of 128. Every block of keys keeps a gradient of all
    queries, and takes its time whatever its size.
    """
    if length <= _LARGEST_BLOCK:
        padded = length + -length % _LANES
        return padded, padded
    sizes = range(_LARGEST_BLOCK, _LANES, -_LANES)
    return min(((length + -length % size, size) for size in sizes), key=lambda found: found[0])


def _mask(length: int, window: int | None, causal: bool) -> splash.Mask:
    reach = (window, 0 if causal else window)
    if window is not None:
        return splash.LocalMask((length, length), window_size=reach, offset=0)
    return splash.CausalMask((length, length)) if causal else splash.FullMask((length, length))


def splash_attention(
    q, k, v, valid, *, window: int | None, causal: bool, scale: float, interpret: bool = False
) -> jax.Array:
    """As `attention.attention`: [B, L, K, A], two [B, L, G, A], [B, L] or None -> [B, L, K, A].

    Padding, the caller's and that which fills up the last tile, is a segment of its own: it sees
    itself and nothing else sees it.

    Args:
      interpret: run on any machine, slowly, for tests.
    """
    b, length, heads, _ = q.shape
    padded, block = blocks(length)
    missing = padded - length
    if missing:
        q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q, k, v))
        valid = jnp.ones((b, length), bool) if valid is None else valid
        valid = jnp.pad(valid, ((0, 0), (0, missing)))
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        use_fused_bwd_kernel=True,
    )
    mask = splash.MultiHeadMask([_mask(padded, window, causal)] * heads)
    kernel = splash.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    heads_first = [x.swapaxes(1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v)]
    if valid is None:
        out = jax.vmap(kernel)(*heads_first)
    else:
        segment = valid.astype(jnp.int32)
        out = jax.vmap(kernel)(*heads_first, splash.SegmentIds(q=segment, kv=segment))
    return out.swapaxes(1, 2)[:, :length]
