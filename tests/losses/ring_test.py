"""InfoNCE round the ring of devices, chunk by chunk, against the whole matrix of logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jepa_jax.losses import info_nce
from jepa_jax.sharding import batch_sharding, make_mesh
from tests import tiny

E, SCALE = 5, 1 / 0.07


def batch(size: int):
    """Embeddings, and ids of which one is there three times, far apart, and one twice side by side."""
    predicted, target = (tiny.normal(size, E, seed=s) for s in (1, 2))
    ids = np.arange(100, 100 + size, dtype=np.int32)
    ids[[1, size // 2, size - 1]] = -7
    ids[[4, 5]] = 2**31 - 1
    return *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (predicted, target)), ids, SCALE


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jax.value_and_grad, argnums=(0, 1, 3), has_aux=True)
def gradient(predicted, target, ids, scale, chunk):
    return info_nce(predicted, target, ids, scale, chunk=chunk)


def assert_same(actual, expected) -> None:
    (loss, metrics), grads = actual
    (expected_loss, expected_metrics), expected_grads = expected
    tiny.assert_close(loss, expected_loss, 1e-5)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for grad, value in zip(grads, expected_grads, strict=True):
        tiny.assert_close(grad, value, 1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 16, 47])
def test_chunks_that_do_and_do_not_divide_the_batch(chunk):
    """On one device; 48 rows at a time are all of them, and take the dense form."""
    arguments = batch(48)
    assert_same(gradient(*arguments, chunk), gradient(*arguments, 48))


@pytest.mark.parametrize("fsdp", [1, 4])
@pytest.mark.parametrize("chunk", [1, 4, 6, 1024])
@pytest.mark.parametrize("devices", [2, 8])
def test_the_ring_is_the_dense_form(devices, chunk, fsdp):
    """6 rows a device of 8: chunks of 4 do not divide them. The gradient of each embedding has a
    share from every device."""
    arguments = batch(48)
    mesh = make_mesh(min(fsdp, devices), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        split = [jax.device_put(x, batch_sharding(mesh)) for x in arguments[:3]]
        actual = gradient(*split, SCALE, chunk)
    assert_same(jax.device_get(actual), gradient(*arguments, 48))


def test_gradients_round_the_ring_are_those_of_finite_differences():
    predicted, target, ids, _ = batch(16)
    with jax.enable_x64(True), jax.set_mesh(make_mesh(1)):
        arguments = [jnp.asarray(x, jnp.float64) for x in (predicted, target, 3.0)]
        loss = jax.jit(lambda p, t, s: info_nce(p, t, ids, s, chunk=3)[0])
        check_grads(loss, arguments, order=1, modes=["rev"], rtol=2e-3, eps=1e-3)


def test_memory_does_not_hold_the_matrix_of_logits():
    """The compiler's plan for a device's temporary memory, at four times the batch: the dense form
    grows by 16, ours by 4."""

    def temporary(size: int, chunk: int) -> int:
        like = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
        lowered = gradient.lower(like(size, 8), like(size, 8), like(size, dtype=jnp.int32), like(), chunk)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(8192, 8192) / temporary(2048, 2048) > 12
    assert temporary(8192, 64) / temporary(2048, 64) < 5
    assert temporary(8192, 64) < temporary(8192, 8192) / 20


def test_no_device_is_sent_more_than_the_embeddings_of_the_others():
    """Under 8 devices the only things that travel are one device's targets, what belongs to them,
    and scalars."""
    mesh = make_mesh(1)
    with jax.set_mesh(mesh):
        split = [jax.device_put(x, batch_sharding(mesh)) for x in batch(48)[:3]]
        program = gradient.lower(*split, jnp.float32(SCALE), 2).compile().as_text()
    moved = [line for line in program.splitlines() if "-permute(" in line or "all-" in line.split("(")[0]]
    assert any("collective-permute(" in line for line in moved)
    assert not any("all-gather(" in line for line in moved)
    shapes = {line.split(" = ")[1].split(" ")[0].split("{")[0] for line in moved if "permute(" in line}
    assert shapes <= {"f32[2,5]", "s32[2]", "f32[2]"}, shapes
