"""One device is the same program as eight, however the parameters are split."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jepa_jax.config import LearningRateFactors, OptimConfig
from jepa_jax.optim import make_optimizer
from jepa_jax.sharding import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    parameter_spec,
    shard_global_batch,
)
from jepa_jax.state import abstract_state, from_items, to_items
from jepa_jax.step import train_step
from tests import tiny

# Two texts a clip, one clip a device.
BATCH, PAIRS = 16, 2
# Wide enough that matrices and the token embedding are split over 2, 4 and 8 devices.
MODEL = tiny.model(
    x_encoder=tiny.x_encoder(width=48, mlp_width=192),
    predictor=tiny.llama(width=64, mlp_width=136, vocab_size=264),
    y_encoder=tiny.y_encoder(width=56, mlp_width=152, vocab_size=304),
    remat="layer",
    scan_layers=True,
)
CONFIG = tiny.run_config(
    model=MODEL,
    batch_size=BATCH,
    optim=OptimConfig(
        learning_rate=0.02,
        # At its usual 1e-8, Adam's first steps keep only the sign of a gradient, and one that is
        # zero but for rounding would move a weight by the whole rate either way.
        eps=1e-3,
        weight_decay=0.1,
        factors=LearningRateFactors(x_encoder=1.0, predictor=0.5, y_encoder=0.25),
    ),
)


def step_on(devices: int, fsdp: int):
    """The jitted step on a mesh as training makes it: state -> (state there, next, metrics)."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    graphdef, template = abstract_state(CONFIG, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, template)
    jitted = jax.jit(train_step, static_argnames=("graphdef", "config"), out_shardings=(shardings, None))

    def step(state):
        with jax.set_mesh(mesh):
            state = jax.device_put(state, shardings)
            batch = shard_global_batch(tiny.batch(BATCH, MODEL, PAIRS), mesh)
            return state, *jitted(state, batch, graphdef=graphdef, config=CONFIG)

    return step


@functools.cache
def on_one_device():
    """Two steps: the first from empty moments, the second from those it left."""
    step = step_on(1, 1)
    first = step(jax.device_get(tiny.state(CONFIG)[1]))
    return first, step(first[1])


def moments(optimizer) -> list[np.ndarray]:
    """Adam's two moments, the second by its root, which is of the gradient's order."""
    first, second = (optax.tree_utils.tree_get(optimizer, name) for name in ("mu", "nu"))
    return [*map(np.asarray, jax.tree.leaves(first)), *map(np.sqrt, jax.tree.leaves(second))]


def assert_frozen(before, after) -> None:
    before, after = tiny.parameters(before.frozen), tiny.parameters(after.frozen)
    assert before.keys() == {("predictor", "token_embedding")}
    for name, x in before.items():
        np.testing.assert_array_equal(np.asarray(after[name]), np.asarray(x))


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_one_device_and_eight_agree_on_the_training_step(fsdp):
    """Both steps start from the same state on both, so that each is compared by itself."""
    step = step_on(8, fsdp)
    for before, expected, expected_metrics in on_one_device():
        start, state, metrics = step(jax.device_get(before))
        split = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
        assert bool(split) == (fsdp > 1)
        assert metrics.keys() == expected_metrics.keys()
        for name, value in metrics.items():
            # Alignment is a sum of terms of either sign that may cancel to almost nothing: what
            # bounds its rounding is the loss that it is a part of.
            atol = 1e-5 * abs(expected_metrics["loss"]) if name == "alignment" else 0.0
            np.testing.assert_allclose(value, expected_metrics[name], 1e-5, atol, err_msg=name)
        trained, started = tiny.parameters(state.trained), tiny.parameters(start.trained)
        for name, x in tiny.parameters(expected.trained).items():
            tiny.assert_close(trained[name], x, 1e-5)
            assert tiny.relative_error(started[name], x) > 1e-3, f"{name} hardly moved"
        # The moments are the gradients, before Adam divides them by their own size.
        for a, b in zip(*map(moments, (state.optimizer, expected.optimizer)), strict=True):
            tiny.assert_close(a, b, 1e-5)
        assert_frozen(start, state)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What a mesh asks of a device."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H200"

    @property
    def process_index(self) -> int:
        return self.slice_index


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_a_copy_of_the_parameters_stays_inside_a_node(fsdp):
    """As JAX lists them, and in disorder: "data" alone runs across nodes."""
    devices = [Gpu(i, i // 8) for i in range(24)]
    for given in (devices, devices[::-1], devices[::2] + devices[1::2]):
        places = make_mesh(fsdp, given).devices
        assert places.shape == (24 // fsdp, fsdp)
        assert set(places.ravel()) == set(devices)
        nodes = [[d.slice_index for d in copy] for copy in places]
        assert all(len(set(copy)) == 1 for copy in nodes)
        order = [copy[0] for copy in nodes]
        assert sum(a != b for a, b in zip(order, order[1:] + order[:1], strict=True)) == 3


def test_nodes_that_no_mesh_fits_are_said():
    with pytest.raises(ValueError, match=r"fsdp=16 does not divide the 8 devices of each of 2 .*nodes"):
        make_mesh(16, [Gpu(i, i // 8) for i in range(16)])
    with pytest.raises(ValueError, match=r"nodes\) of \[6, 10\] devices"):
        make_mesh(2, [Gpu(i, i // 10) for i in range(16)])


MUON = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, name="muon"))


@functools.cache
def muon_on_one_device():
    """Muon's update, its inputs after a first one, and what it makes of them."""
    state = tiny.state(MUON)[1]
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.trained)
    update = jax.jit(make_optimizer(MUON.optim, 10).update)
    _, moved = update(grads, state.optimizer, state.trained)
    inputs = (grads, moved, state.trained)
    return update, inputs, update(*inputs)[0]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_muon_s_matrices_may_be_split(fsdp):
    """Its update needs the whole of a matrix, of which a device has a share."""
    update, inputs, expected = muon_on_one_device()
    mesh = make_mesh(fsdp, jax.devices()[:8])
    places = jax.tree.map(lambda x: x.sharding, abstract_state(MUON, mesh)[1])
    inputs = jax.device_put(inputs, (places.trained, places.optimizer, places.trained))
    found, kept = update(*inputs)
    for name, x in tiny.parameters(expected).items():
        tiny.assert_close(tiny.parameters(found)[name], x, 1e-4)
    split = [x for x in jax.tree.leaves(kept) if not x.sharding.is_fully_replicated]
    assert bool(split) == (fsdp > 1)


def test_frozen_parameters_stay_as_they_were_on_one_device():
    for start, state, _ in on_one_device():
        assert_frozen(start, state)


def test_a_checkpoint_s_items_are_the_whole_state():
    state = on_one_device()[0][1]
    again = from_items(to_items(state), CONFIG)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert a is b
    # What was frozen may train in another use, and the other way round.
    factors = LearningRateFactors(x_encoder=0.0, predictor=0.0, token_embedding=1.0)
    other = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, factors=factors))
    params = to_items(state)["params"]
    split = from_items({**to_items(state), "params": params}, other)
    assert ("predictor", "token_embedding") in tiny.parameters(split.trained)
    assert ("x_encoder", "norm", "scale") in tiny.parameters(split.frozen)


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((256, 128), 4, ("fsdp",)),
        ((128, 256), 4, (None, "fsdp")),
        ((24, 1024, 4096), 8, (None, None, "fsdp")),
        ((24, 4096, 1024), 8, (None, "fsdp")),
        # The largest axis does not divide: the largest that does.
        ((257, 128), 4, (None, "fsdp")),
        # Equal axes: the last.
        ((128, 128), 4, (None, "fsdp")),
        # None divides.
        ((257, 131), 4, ()),
        # 2 ** 14 elements are split, fewer are not worth it; vectors never are.
        ((128, 128), 2, (None, "fsdp")),
        ((128, 126), 2, ()),
        ((2**16,), 2, ()),
        # One device for each copy, scalars.
        ((256, 128), 1, ()),
        ((), 8, ()),
    ],
)
def test_the_largest_axis_that_divides_is_split(shape, fsdp, spec):
    assert parameter_spec(shape, fsdp) == PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        # The stack's own axis, however large, is not one to split, and its layers count singly.
        ((512, 128, 256), 4, (None, None, "fsdp")),
        ((512, 256, 129), 4, (None, "fsdp")),
        ((512, 64, 128), 4, ()),
        ((4, 2**16), 4, ()),
    ],
)
def test_layers_of_a_stack_are_split_singly(shape, fsdp, spec):
    assert parameter_spec(shape, fsdp, stacked=True) == PartitionSpec(*spec)


def test_embedding_tables_are_split_by_columns():
    assert parameter_spec((2048, 64), 4, table=True) == PartitionSpec(None, "fsdp")
    assert parameter_spec((2048, 65), 5, table=True) == PartitionSpec(None, "fsdp")
    assert parameter_spec((2048, 65), 4, table=True) == PartitionSpec()


def test_parameters_are_split_over_fsdp_and_batches_over_everything():
    mesh = make_mesh(2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    sharding = parameter_shardings({"x": jax.ShapeDtypeStruct((256, 96), np.float32)}, mesh)["x"]
    assert sharding.shard_shape((256, 96)) == (128, 96)
    assert batch_sharding(mesh).shard_shape((24, 5)) == (3, 5)


def test_a_batch_becomes_global_arrays_with_its_rows_in_order():
    mesh = make_mesh(4)
    batch = {"x": np.arange(48, dtype=np.int32).reshape(16, 3), "id": np.arange(16)}
    arrays = shard_global_batch(batch, mesh)
    assert arrays.keys() == batch.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, batch[name])
        assert len({shard.device for shard in x.addressable_shards}) == 8
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}


@pytest.mark.parametrize("fsdp", [3, 16])
def test_devices_that_fsdp_does_not_divide_are_refused(fsdp):
    with pytest.raises(ValueError, match=f"fsdp={fsdp} does not divide the 8 devices"):
        make_mesh(fsdp)
