"""The mesh, and where parameters and batches live on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Arrays below this many elements are cheaper to keep whole on every device than to gather.
_MIN_SHARDED_SIZE = 2**14


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
    """Mesh ("data", "fsdp"): `fsdp` devices share each copy of the parameters.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise ValueError(f"fsdp={fsdp} does not divide the {len(devices)} devices of this run")
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The largest axis that `fsdp` divides is split over it; small arrays stay whole."""
    candidates = [size for size in shape if size % fsdp == 0]
    if fsdp == 1 or not candidates or np.prod(shape) < _MIN_SHARDED_SIZE:
        return PartitionSpec()
    axis = max((size, i) for i, size in enumerate(shape) if size % fsdp == 0)[1]
    return PartitionSpec(*[None] * axis, "fsdp")


def parameter_shardings(tree, mesh: Mesh):
    """A NamedSharding per array of a pytree of arrays or shape structs."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(x.shape, fsdp)), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over both axes of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def shard_global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch to global arrays: `{name: [B / hosts, ...]}` -> `[B, ...]`."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
