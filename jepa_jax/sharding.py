"""The mesh, and where parameters and batches live on it."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Matrices below this many elements are cheaper to keep whole on every device than to gather.
_MIN_SHARDED_SIZE = 2**14
# Of what is on one device.
NO_MESH = Mesh(np.empty((), object), ())


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
    """Mesh ("data", "fsdp"): `fsdp` devices share each copy of the parameters.

    Neighbours on the torus share a copy. Of several TPU slices, which only the data centre's network
    joins, each holds whole copies: "data" alone runs across them. Of GPUs, JAX calls a slice what NVLink
    joins, a node as a rule.

    Raises:
      ValueError: `fsdp` does not divide the number of devices, or of those of a slice, or slices differ.
    """
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) % fsdp:
        raise ValueError(f"fsdp={fsdp} does not divide the {len(devices)} devices of this run")
    sizes = Counter(getattr(d, "slice_index", 0) for d in devices)
    slices, inside = len(sizes), max(sizes.values())
    if min(sizes.values()) < inside:
        raise ValueError(
            f"slices (on GPUs, nodes) of {sorted(sizes.values())} devices: all must have as many"
        )
    if inside % fsdp:
        raise ValueError(
            f"fsdp={fsdp} does not divide the {inside} devices of each of {slices} slices (on GPUs, nodes)"
        )
    shape, split = (inside // fsdp, fsdp), {"allow_split_physical_axes": True}
    if slices > 1:
        places = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices, **split)
    else:
        places = mesh_utils.create_device_mesh(shape, devices, **split)
    return Mesh(places, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(size: int, mesh: Mesh, micro_batches: int = 1, name: str = "batch_size") -> None:
    """Raise ValueError unless every device gets as many rows of a batch, in each of its pieces."""
    if size % (mesh.size * micro_batches):
        pieces = f" times micro_batches={micro_batches}" if micro_batches > 1 else ""
        raise ValueError(f"{name}={size} is not a multiple of the {mesh.size} devices{pieces}")


def parameter_spec(
    shape: tuple[int, ...], fsdp: int, *, stacked: bool = False, table: bool = False
) -> PartitionSpec:
    """The largest axis of a matrix that `fsdp` divides is split over it; small arrays stay whole.

    Args:
      stacked: the first axis counts the layers of a stack. It is not split: each layer runs on all.
      table: an embedding table, split by columns, so that a row is read where its columns are.
    """
    start = int(stacked)
    matrix = shape[start:]
    axes = [len(shape) - 1] if table else range(start, len(shape))
    candidates = [(shape[i], i) for i in axes if shape[i] % fsdp == 0]
    if fsdp == 1 or not candidates or len(matrix) < 2 or np.prod(matrix) < _MIN_SHARDED_SIZE:
        return PartitionSpec()
    return PartitionSpec(*[None] * max(candidates)[1], "fsdp")


def parameter_specs(tree, fsdp: int):
    """A PartitionSpec per array of a pytree of parameters, or of what an optimizer keeps of them."""

    def spec(path, x) -> PartitionSpec:
        names = {str(getattr(p, "key", getattr(p, "name", p))) for p in path}
        table = "token_embedding" in names
        return parameter_spec(x.shape, fsdp, stacked="stacked" in names, table=table)

    return jax.tree_util.tree_map_with_path(spec, tree)


def parameter_shardings(tree, mesh: Mesh):
    """A NamedSharding per array of a pytree of arrays or shape structs."""
    specs = parameter_specs(tree, mesh.shape["fsdp"])
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch to global arrays: `{name: [B / hosts, ...]}` -> `[B, ...]`."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def sum_over_hosts(values: np.ndarray, mesh: Mesh) -> jax.Array:
    """What each host gives, [n] int32, summed over all hosts and whole on each; it is not waited for. The
    mesh must be in context."""
    rows = np.zeros((len(mesh.local_devices), len(values)), np.int32)
    rows[0] = values
    return _sum(**shard_global_batch({"rows": rows}, mesh))


@jax.jit
def _sum(rows):
    return jax.lax.with_sharding_constraint(jnp.sum(rows, axis=0), PartitionSpec())


def local_rows(x: jax.Array) -> np.ndarray:
    """The inverse of `shard_global_batch`, of one array: this host's rows, [B, ...] -> [B / hosts, ...]."""
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array on every host, wherever its pieces are."""
    if isinstance(x, np.ndarray) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
