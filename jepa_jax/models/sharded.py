"""Where activations and parameters are while a model runs over several devices.

A training step runs the model under `shard_map`: every device sees its own rows of the batch and its
own share of each parameter, and the collectives are those written here. Elsewhere (evaluation, one
device) arrays are whole to the program, and the compiler moves what it must; attention's kernels are for what
one device holds there too.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

# The axis of the mesh over which parameters are split.
AXIS = "fsdp"


def _under_shard_map(mesh) -> bool:
    return not mesh.empty and AxisType.Manual in mesh.axis_types


def is_local() -> bool:
    """Whether arrays are what one device holds."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1 or _under_shard_map(mesh)


def device_platform() -> str:
    """ "tpu", "gpu" or "cpu": of the mesh in context, which may be one that is only compiled for."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def device_kind() -> str:
    """What JAX calls the devices of the mesh in context, "TPU v5 lite" for one, as `device_platform`."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def rows_divide(rows: int) -> bool:
    """Whether every device of the mesh in context gets as many rows of a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or rows % mesh.size == 0


def on_own_rows(function, *whole):
    """A function of trees of arrays with the batch as their first axis, of which each device computes its own
    rows, where arrays are whole to the program; what has no axis is whole on all of them, and so are the
    trees `whole`, which `function` takes first."""
    if is_local():
        return functools.partial(function, *whole)
    rows = PartitionSpec(jax.sharding.get_abstract_mesh().axis_names)

    def call(*trees):
        specs = jax.tree.map(lambda x: rows if jnp.ndim(x) else PartitionSpec(), trees)
        specs = *jax.tree.map(lambda _: PartitionSpec(), whole), *specs
        return jax.shard_map(function, in_specs=specs, out_specs=rows, check_vma=False)(*whole, *trees)

    return call


def shard_batch(x: jax.Array) -> jax.Array:
    """Pin the first axis of an activation to every axis of the mesh in context.

    Without the pin the compiler may choose to replicate activations, which at the paper's batch
    costs hundreds of gigabytes a chip. With no mesh in context, or under `shard_map`, this does
    nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or _under_shard_map(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def whole(x: jax.Array, shape: tuple[int, ...], dtype=None) -> jax.Array:
    """The whole of a parameter of a given shape, from this device's share of it.

    Its gradient is the share of the sum over the devices that gathered it: a reduce-scatter.

    Args:
      x: the parameter, or under `shard_map` the share, shorter along one axis.
      dtype: what it will be computed in; a matrix is cast before it travels.
    """
    if dtype is not None and x.ndim > 1:
        x = x.astype(dtype)
    if x.shape != shape:
        axis = next(i for i, size in enumerate(shape) if x.shape[i] != size)
        return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or _under_shard_map(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def lookup(table: jax.Array, tokens: jax.Array, width: int, dtype) -> jax.Array:
    """Rows of an embedding table: [V, D] or its share [V, D / devices], [B, L] int -> [B, L, D].

    The table stays where it is: token ids go to every device that has a share, and each sends back its
    columns. Rows are cast after they are read, so that gradients of equal tokens add up in float32.
    """
    if table.shape[1] == width:
        return table[tokens].astype(dtype)
    ids = jax.lax.all_gather(tokens, AXIS, axis=0, tiled=True)
    rows = table[ids].astype(dtype)
    return jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=2, tiled=True)
