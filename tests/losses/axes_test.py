"""Where a loss of the global batch may be taken."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jepa_jax import config as c
from jepa_jax.losses import objective
from jepa_jax.losses.axes import batch_axes
from jepa_jax.sharding import make_mesh
from tests import tiny


def test_a_batch_is_split_over_all_axes_of_the_mesh_in_context():
    assert batch_axes() == ()
    for devices, axes in ((1, ()), (4, ("data", "fsdp"))):
        with jax.set_mesh(make_mesh(devices=jax.devices()[:devices])):
            assert batch_axes() == axes


@pytest.mark.parametrize("rows", [PartitionSpec(), PartitionSpec("mine")])
@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_a_loss_inside_a_shard_map_is_refused_in_words(name, rows):
    """JAX would say that its compiler's program is not well formed."""
    config = c.LossConfig(objective=name)
    predicted, target = (tiny.normal(4, 5, seed=seed) for seed in (1, 2))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("mine",))
    loss = lambda *a: objective(*a, 1.0, None, config)[0]
    inside = jax.shard_map(loss, mesh=mesh, in_specs=(rows,) * 3, out_specs=PartitionSpec())
    with pytest.raises(ValueError, match="inside a shard_map: take it outside"):
        jax.jit(inside)(predicted, target, np.arange(4))
