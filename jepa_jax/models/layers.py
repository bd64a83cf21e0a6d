"""Layers shared by the parts: norms, linear maps, rotary positions, the run over a stack."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jepa_jax.config import Remat, RopeScaling
from jepa_jax.models.sharded import device_platform, shard_batch, whole


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32.

    `unit_offset` stores the gain as an offset from 1, and multiplies before the cast back to the
    activations' type, as Gemma does; Llama casts first, and so rounds once more. `gain` is where training
    from scratch starts.
    """

    def __init__(self, width: int, *, eps: float, unit_offset: bool = False, gain: float = 1.0):
        self.scale = nnx.Param(jnp.full((width,), gain - unit_offset, jnp.float32))
        self.eps = eps
        self.unit_offset = unit_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D] in the type of `x`."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        if self.unit_offset:
            return (y * (1.0 + self.scale[...])).astype(x.dtype)
        # In float32 again: the gradient of the gain is a sum over all positions.
        return (y.astype(x.dtype).astype(jnp.float32) * self.scale[...]).astype(x.dtype)


def layer_norm(width: int, *, eps: float, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the two-pass variance: the one-pass form loses digits at float32."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Linear(nnx.Linear):
    """Linear map with float32 weights that multiplies in `dtype` and adds its bias in float32: in
    bfloat16 the gradient of a bias, a sum over all positions, would stop growing after a few hundred."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., E] in `dtype`."""
        y = _product(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else (y.astype(jnp.float32) + self.bias[...]).astype(self.dtype)


def linear(d_in: int, d_out: int, *, dtype, rngs: nnx.Rngs, bias: bool = False, gain: float = 1.0) -> Linear:
    """A new `Linear`; `gain` scales its initial output."""
    init = jax.nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal")
    return Linear(d_in, d_out, use_bias=bias, dtype=dtype, kernel_init=init, rngs=rngs)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., D] by [D, E], in the form that suits XLA on a CPU: there the gradient of the kernel, a sum
    over several axes, would make transposed copies."""
    if device_platform() != "cpu":
        return jnp.dot(x, kernel)
    rows = x.reshape(-1, x.shape[-1])
    out = _bfloat16_product(rows, kernel) if x.dtype == jnp.bfloat16 else rows @ kernel
    return out.reshape(*x.shape[:-1], kernel.shape[1])


@jax.custom_vjp
def _bfloat16_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, D] by [D, E], all bfloat16, summed in float32.

    XLA uses a CPU's bfloat16 instructions for a product with a float32 result, over the last axis of
    its left side and the first of its right: a gradient in that form takes a third of the time.
    """
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(jnp.bfloat16)


def _bfloat16_product_backward(kept, d_out):
    x, kernel = kept
    return _bfloat16_product(d_out, _transposed(kernel)), _bfloat16_product(_transposed(x), d_out)


_bfloat16_product.defvjp(
    lambda x, kernel: (_bfloat16_product(x, kernel), (x, kernel)), _bfloat16_product_backward
)


def _transposed(x: jax.Array) -> jax.Array:
    """[B, D] -> [D, B], by tiles where they fit: a plain transpose XLA would make part of the product."""
    (b, d), tile = x.shape, 16
    if b % tile or d % tile:
        return x.T
    return x.reshape(b // tile, tile, d // tile, tile).transpose(2, 3, 0, 1).reshape(d, b)


def attention_inputs(*arrays: jax.Array) -> list[jax.Array]:
    """Queries, keys and values, named for what a remat policy may keep."""
    return [checkpoint_name(x, "attention_inputs") for x in arrays]


def residual(x: jax.Array) -> jax.Array:
    """The stream between attention and MLP, named for what a remat policy may keep."""
    return checkpoint_name(x, "residual")


def residual_gain(layers: int) -> float:
    """Initial gain of what a block adds to the residual stream, two additions a layer: the sum then
    starts as large as its input, however deep the stack (GPT-2's rule)."""
    return (2 * layers) ** -0.5


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), the exact form, in float32: [...] -> [...] in the type of `x`, all its backward pass keeps.

    By the error function, as PyTorch does. JAX's own goes by its complement, which keeps more digits of
    what is nearly zero (below -5) and takes three times as long on a CPU.
    """
    y = x.astype(jnp.float32)
    return (y * _normal_share(y)).astype(x.dtype)


def _normal_share(y: jax.Array) -> jax.Array:
    """Phi(y), the share of a standard normal distribution below `y`."""
    return 0.5 * (1.0 + jax.lax.erf(y * 0.5**0.5))


def _gelu_backward(x, d_out):
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * y * y) * (2 * np.pi) ** -0.5
    return (((_normal_share(y) + y * density) * d_out.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)): Llama's (SiLU) and Gemma's (tanh GELU)."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        activation: Callable,
        *,
        dtype,
        rngs: nnx.Rngs,
        gain: float = 1.0,
    ):
        make = functools.partial(linear, dtype=dtype, rngs=rngs)
        self.gate = make(width, mlp_width)
        self.up = make(width, mlp_width)
        self.down = make(mlp_width, width, gain=gain)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] -> [B, L, D]."""
        gate, up = (checkpoint_name(f(x), "mlp") for f in (self.gate, self.up))
        return self.down(self.activation(gate) * up)


def rope_frequencies(head_size: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians per position of each rotary pair: [A / 2] float64.

    With `scaling`, Llama 3's: wavelengths beyond `original_length / low_frequency_factor` are
    stretched by `factor`, those below `original_length / high_frequency_factor` kept, and those
    between blended linearly.
    """
    frequencies = theta ** -(np.arange(0, head_size, 2) / head_size)
    if scaling is None:
        return frequencies
    turns = scaling.original_length * frequencies / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1.0 - keep) / scaling.factor)


def rope_table(length: int, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine for positions 0..L-1, laid out for `rotate_halves`: two [L, A] float32."""
    angles = np.arange(length)[:, None] * frequencies[None, :]
    angles = np.concatenate([angles, angles], axis=-1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotate(x, table, partner_of, *, heads_first: bool):
    """x * cos + partner * sin over heads, in float32: [B, L, K, A].

    On a TPU the partner comes from a product with a matrix of 0, 1 and -1, which is exact: moving
    single lanes about costs several passes over memory, a small product none beyond its own. With
    `heads_first` it is done in the order of axes that attention's kernel takes.
    """
    if device_platform() != "tpu":
        cos, sin = (jnp.asarray(t)[:, None, :] for t in table)
        return (x.astype(jnp.float32) * cos + partner_of(x).astype(jnp.float32) * sin).astype(x.dtype)
    x = x.swapaxes(1, 2) if heads_first else x
    cos, sin = (jnp.asarray(t if heads_first else t[:, None, :]) for t in table)
    matrix = jnp.asarray(partner_of(np.eye(x.shape[-1], dtype=np.float32)), x.dtype)
    exact = "highest" if x.dtype == jnp.float32 else None
    partner = jnp.einsum("...A,AC->...C", x, matrix, precision=exact, preferred_element_type=jnp.float32)
    y = (x.astype(jnp.float32) * cos + partner * sin).astype(x.dtype)
    return y.swapaxes(1, 2) if heads_first else y


def rotate_halves(x: jax.Array, table) -> jax.Array:
    """Rotary positions with pairs (i, i + A/2), as Llama and Gemma: [B, L, K, A] -> the same."""

    def partner(x):
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([-second, first], axis=-1)

    return _rotate(x, table, partner, heads_first=False)


def rotate_neighbours(x: jax.Array, table) -> jax.Array:
    """Rotary positions with pairs (2i, 2i + 1), as V-JEPA 2: [B, L, K, A] -> the same."""

    def partner(x):
        even = np.arange(x.shape[-1]) % 2 == 0
        return jnp.where(even, -jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))

    # It copies less: up to 2% of what a step moves in memory. In the other parts some stages would copy more.
    return _rotate(x, table, partner, heads_first=True)


# What a layer keeps for its backward pass, by the names given with `checkpoint_name`. "attention" are
# the results of attention, "attention_inputs" its rotated queries, keys and values, "residual" the
# stream between attention and MLP, "mlp" the wide products of the MLP.
_KEPT = {
    "elementwise": ("attention", "attention_inputs", "residual", "mlp"),
    "mlp": ("attention", "attention_inputs", "residual"),
    "layer": (),
}


class Stack(nnx.Module):
    """S layers of one kind, their parameters stacked along a new first axis."""

    def __init__(
        self,
        make_layer: Callable[[nnx.Rngs], nnx.Module],
        layers: int,
        *,
        dtype,
        remat: Remat,
        scan: bool,
        rngs: nnx.Rngs,
    ):
        create = nnx.vmap(make_layer, in_axes=0, out_axes=0)
        self.stacked = create(nnx.Rngs(params=jax.random.split(rngs.params(), layers)))
        # Of one whole layer: under `shard_map` the arrays are shares.
        self.shapes = tuple(x.shape[1:] for x in jax.tree.leaves(self.stacked))
        self.layers = layers
        self.dtype = dtype
        self.remat = remat
        self.scan = scan

    def _gather(self, layer):
        """The whole of one layer's parameters, inside the rematerialised body: the gathered copy
        lives only while that layer runs."""
        leaves, treedef = jax.tree.flatten(layer)
        pairs = zip(leaves, self.shapes, strict=True)
        return jax.tree.unflatten(treedef, [whole(x, shape, self.dtype) for x, shape in pairs])

    def __call__(self, x: jax.Array, context=None, per_layer: np.ndarray | None = None):
        """Run all layers in order.

        Args:
          x: [B, L, D].
          context: a pytree every layer is given (masks, rotary tables).
          per_layer: [S] what differs from layer to layer, given to layer s as `per_layer[s]`.

        Returns:
          [B, L, D].
        """
        per_layer = np.zeros(self.layers) if per_layer is None else np.asarray(per_layer)

        def body(x, layer, flag):
            return shard_batch(self._gather(layer)(x, context, flag))

        if self.remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*_KEPT[self.remat])
            # Under a scan nothing could merge the two passes; the barrier would only hinder fusion.
            body = jax.checkpoint(body, policy=policy, prevent_cse=not self.scan)
        if self.scan:
            step = lambda x, inputs: (body(x, *inputs), None)
            return jax.lax.scan(step, shard_batch(x), (self.stacked, per_layer))[0]
        # `unstack` is one split whose gradient is one concatenation; indexing layer by layer would
        # add S arrays of the whole stack's size in the backward pass.
        leaves, treedef = jax.tree.flatten(self.stacked)
        x = shard_batch(x)
        for s, layer in enumerate(zip(*map(jnp.unstack, leaves), strict=True)):
            x = body(x, jax.tree.unflatten(treedef, layer), per_layer[s])
        return x

    def extend(self, x: jax.Array, cache, context):
        """Run all layers over new positions; each reads and extends its own part of a cache.

        Args:
          x: [B, L, D].
          cache: a pytree with leading axis S, given to layer s as its `extend`'s second argument.
          context: a pytree every layer is given.

        Returns:
          [B, L, D], and the cache.
        """

        def body(x, inputs):
            layer, part = inputs
            return self._gather(layer).extend(x, part, context)

        if self.scan:
            return jax.lax.scan(body, x, (self.stacked, cache))
        leaves, treedef = jax.tree.flatten((self.stacked, cache))
        parts = []
        for layer in zip(*map(jnp.unstack, leaves), strict=True):
            x, part = body(x, jax.tree.unflatten(treedef, layer))
            parts.append(part)
        return x, jax.tree.map(lambda *p: jnp.stack(p), *parts)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the positions where `mask` holds, in float32: [B, L, D], [B, L] -> [B, D]."""
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("BLD,BL->BD", x, weights, preferred_element_type=jnp.float32)
    return (total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)).astype(x.dtype)
