"""Over which devices a batch is split."""

import jax
from jax.sharding import AxisType


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh in context, over all of which a global batch is split; none for one device.

    Raises:
      ValueError: the caller is inside a `shard_map`, where arrays may be the rows of one device or whole,
        and nothing tells which.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return ()
    if AxisType.Manual in mesh.axis_types:
        raise ValueError(
            "a loss of the batch of all devices was taken inside a shard_map: take it outside, of the global "
            "arrays; it splits them over the mesh in context (jax.set_mesh) itself"
        )
    return tuple(mesh.axis_names)
