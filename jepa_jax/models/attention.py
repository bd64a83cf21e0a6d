"""Scaled dot-product attention: one entry point for every part of the model, and its back ends."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.models.attention_cpu import blockwise_attention, dense_attention
from jepa_jax.models.attention_tpu import splash_attention
from jepa_jax.models.sharded import (
    device_kind,
    device_platform,
    is_local,
    on_own_rows,
    rows_divide,
)

# From so many positions on, a kernel that keeps the logits in fast memory is worth its set-up.
_MIN_LENGTH = {"tpu": 128, "gpu": 128, "cpu": 512}
# cuDNN works through so many keys at a time.
_CUDNN_TILE = 128
# TPUs on which Pallas' compiler refuses splash's products of bfloat16.
_WITHOUT_BFLOAT16 = ("TPU v2", "TPU v3")


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    valid: jax.Array | None = None,
    window: int | None = None,
    everywhere: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """Grouped-query attention with a float32 softmax.

    Args:
      q: [B, L, K, A]. k, v: [B, L, G, A] with G dividing K.
      valid: [B, L] bool, False where a key is padding. What comes out at padding is finite and for
        the caller to ignore.
      window: see only |i - j| <= window positions.
      everywhere: scalar bool, traced: the window does not hold in this layer.
      causal: see only keys j <= i.
      scale: factor on the logits, by default A ** -0.5.

    Returns:
      [B, L, K, A] in the type of `q`.
    """
    length = q.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if window is not None and length <= window + 1:
        window = everywhere = None  # it holds all there is
    looks_ahead = window is not None and not causal
    backend = choose_backend(length, q.shape[-1], q.dtype, rows=q.shape[0], looks_ahead=looks_ahead)
    if backend in ("xla", "dense"):
        mask = attention_mask(length, valid=valid, window=window, everywhere=everywhere, causal=causal)
        kernel = dense_attention if backend == "dense" else _xla_attention
        return checkpoint_name(kernel(q, k, v, mask, scale=scale), "attention")
    kernel = {"splash": splash_attention, "blockwise": blockwise_attention, "cudnn": _cudnn_attention}[
        backend
    ]

    traced = {"valid": valid, "everywhere": everywhere}

    def attend(q, k, v, traced):
        def run(window):
            masked = {"window": window, "causal": causal, "scale": scale}
            return lambda q, k, v: kernel(q, k, v, traced.get("valid"), **masked)

        # Kernels are built for one mask: a stack whose layers differ runs one of two.
        if "everywhere" in traced:
            return jax.lax.cond(traced["everywhere"], run(None), run(window), q, k, v)
        return run(window)(q, k, v)

    out = on_own_rows(attend)(q, k, v, {name: x for name, x in traced.items() if x is not None})
    # Splash names its own results, of which the log-sum-exp is one.
    return out if backend == "splash" else checkpoint_name(out, "attention")


def attention_to_cache(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of a few new positions to all that a cache has room for.

    Args:
      q: [B, L, K, A]. k, v: [B, C, G, A], C the room of the cache.
      visible: [L, C] bool, which places of the cache each new position sees; the same in all rows.

    Returns:
      [B, L, K, A] in the type of `q`.
    """
    return _xla_attention(q, k, v, visible[None], scale=q.shape[-1] ** -0.5)


def choose_backend(length: int, head_size: int, dtype, *, rows: int, looks_ahead: bool = False) -> str:
    """The one place that decides: "splash", "cudnn", "blockwise", "dense" or "xla".

    Short sequences are XLA's own but on a CPU. Of arrays that the compiler splits over devices each runs the
    kernel on its own rows, for which they must divide; on CPUs they are XLA's own.

    Args:
      rows: of the batch.
      looks_ahead: through a window with positions on both sides, which cuDNN has not.
    """
    platform = device_platform()
    if not is_local() and (platform == "cpu" or not rows_divide(rows)):
        return "xla"
    long = length >= _MIN_LENGTH.get(platform, length + 1)
    if platform == "cpu":
        return "blockwise" if long else "dense"
    if not long:
        return "xla"
    if platform == "tpu":
        return "splash" if _has_splash(dtype) else "xla"
    taken = dtype in (jnp.bfloat16, jnp.float16) and head_size % 8 == 0 and head_size <= 128
    return "cudnn" if taken and not looks_ahead and _has_cudnn() else "xla"


def _has_splash(dtype) -> bool:
    """Whether Pallas' compiler takes splash's products in the precision that JAX is set to. One in between it
    never does, and that of float32 (JAX_DEFAULT_MATMUL_PRECISION=highest) not of bfloat16."""
    precision = jax.config.jax_default_matmul_precision
    if precision in (None, "default", "bfloat16"):
        return dtype != jnp.bfloat16 or device_kind() not in _WITHOUT_BFLOAT16
    return dtype == jnp.float32 and precision in ("highest", "float32")


def _has_cudnn() -> bool:
    """Whether the GPU here runs cuDNN's kernel: NVIDIA's do from Ampere on (a T4 does not); AMD's call what
    they can "gfx90a". Where there is none, the program is for one that does."""
    capability = getattr(jax.local_devices()[0], "compute_capability", "8.0")
    return capability.replace(".", "", 1).isdigit() and float(capability) >= 8.0


def attention_mask(
    length: int,
    *,
    valid: jax.Array | None = None,
    window: int | None = None,
    everywhere: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array | None:
    """Which keys each query may see: bool, broadcastable to [B, L, L] (queries, keys); None where
    everything is visible. The arguments are `attention`'s."""
    mask = None
    if causal or window is not None:
        distance = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
        mask = jnp.ones((length, length), bool)
        if window is not None:
            mask = jnp.abs(distance) <= window
            mask = mask if everywhere is None else mask | everywhere
        if causal:
            mask &= distance >= 0
        mask = mask[None]
    if valid is not None:
        mask = valid[:, None, :] if mask is None else mask & valid[:, None, :]
    return mask


def _xla_attention(q, k, v, mask, *, scale: float) -> jax.Array:
    """Query heads are folded into the rows of one matrix product per key-value head: keys and values
    are never repeated. A query that may see nothing gets the mean of all values."""
    b, length, heads, a = q.shape
    places, groups = k.shape[1:3]
    fold = heads // groups
    q = (q * scale).reshape(b, length, groups, fold, a).transpose(0, 2, 3, 1, 4)
    q = q.reshape(b, groups, fold * length, a)
    logits = jnp.einsum("BGRA,BGLA->BGRL", q, k.transpose(0, 2, 1, 3)).astype(jnp.float32)
    if mask is not None:
        logits = logits.reshape(b, groups, fold, length, places)
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
        logits = logits.reshape(b, groups, fold * length, places)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("BGRL,BGLA->BGRA", weights, v.transpose(0, 2, 1, 3))
    return out.reshape(b, groups, fold, length, a).transpose(0, 3, 1, 2, 4).reshape(b, length, heads, a)


def _cudnn_attention(q, k, v, valid, *, window: int | None, causal: bool, scale: float) -> jax.Array:
    """cuDNN's fused kernel, through JAX; keys that are padding stand on the right. There is no window but
    a causal one."""
    b, length = q.shape[:2]
    lengths = None if valid is None else jnp.sum(valid, axis=1, dtype=jnp.int32)
    if lengths is None and length % _CUDNN_TILE:
        # Untold, its backward pass may take what is behind the last key for keys: NaN, on an H100 for one
        # (NVIDIA/cudnn-frontend, issue 160 and pull request 628).
        lengths = jnp.full((b,), length, jnp.int32)
    if length % 2:  # JAX trains with even lengths alone
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window, 0),
        key_value_seq_lengths=lengths,
        query_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, :length]
