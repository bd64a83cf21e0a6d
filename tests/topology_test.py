"""A checkpoint goes on where there are other devices than it was saved on."""

import contextlib
import functools

import jax
import numpy as np
import pytest

from jepa_jax import config as c
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.sharding import make_mesh, shard_global_batch
from jepa_jax.state import abstract_state, from_items, to_items
from jepa_jax.step import jit_train_step
from tests import tiny
from tests.sharding_test import BATCH, CONFIG, MODEL, PAIRS


@functools.cache
def place(devices: int, fsdp: int):
    """A mesh, the state's structure and shapes there, and the step, which is compiled once."""
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    graphdef, template = abstract_state(CONFIG, mesh)
    return mesh, graphdef, template, jit_train_step(template, CONFIG)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saved after a step on 8 devices, with the loss of the next step there: (folder, params, loss)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    mesh, graphdef, template, step = place(8, 4)
    with jax.set_mesh(mesh), contextlib.closing(Checkpointer(folder, c.CheckpointConfig())) as checkpointer:
        batch = shard_global_batch(tiny.batch(BATCH, MODEL, PAIRS), mesh)
        state = jax.device_put(tiny.state(CONFIG)[1], jax.tree.map(lambda x: x.sharding, template))
        state, _ = step(state, batch, graphdef=graphdef, config=CONFIG)
        checkpointer.save(1, to_items(state), {"next": 1}, {"recall_at_1": 0.5})
        kept = jax.device_get(jax.tree.leaves((state.trained, state.frozen, state.optimizer)))
        _, metrics = step(state, batch, graphdef=graphdef, config=CONFIG)
        return folder, kept, jax.device_get(metrics)


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 2), (2, 1), (1, 1)])
def test_it_is_the_same_state_and_the_next_step_is_the_same(saved, devices, fsdp):
    folder, kept, expected = saved
    mesh, graphdef, template, step_there = place(devices, fsdp)
    reader = Checkpointer(folder, c.CheckpointConfig(), read_only=True)
    with jax.set_mesh(mesh), contextlib.closing(reader):
        step, items, data = reader.restore_latest(to_items(template))
        state = from_items(items, CONFIG)
        assert (step, data) == (1, {"next": 1})
        found = jax.tree.leaves((state.trained, state.frozen, state.optimizer))
        for x, before, like in zip(
            found,
            kept,
            jax.tree.leaves((template.trained, template.frozen, template.optimizer)),
            strict=True,
        ):
            np.testing.assert_array_equal(x, before)
            assert x.sharding == like.sharding
        batch = shard_global_batch(tiny.batch(BATCH, MODEL, PAIRS), mesh)
        _, metrics = step_there(state, batch, graphdef=graphdef, config=CONFIG)
    for name, value in expected.items():
        atol = 1e-5 * abs(expected["loss"])
        np.testing.assert_allclose(metrics[name], value, 1e-5, atol, err_msg=name)


def test_frames_travel_as_bytes_and_nothing_else_travels_in_a_steady_loop():
    """Under JAX's guard: what is not put on the devices by name is refused."""
    mesh, graphdef, template, step = place(4, 2)
    with jax.set_mesh(mesh):
        state = jax.device_put(tiny.state(CONFIG)[1], jax.tree.map(lambda x: x.sharding, template))
        rows = tiny.batch(BATCH, MODEL, PAIRS)
        # The first step compiles, and takes the program's constants with it.
        state, metrics = step(state, shard_global_batch(rows, mesh), graphdef=graphdef, config=CONFIG)
        with jax.transfer_guard("disallow"):
            for _ in range(3):
                batch = shard_global_batch(rows, mesh)
                assert batch["frames"].dtype == np.uint8
                state, metrics = step(state, batch, graphdef=graphdef, config=CONFIG)
                assert np.isfinite(jax.device_get(metrics)["loss"])
        # A step would be refused its rows as well, after it was compiled for them.
        with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device"):
            jax.jit(lambda rows: rows)(rows)
