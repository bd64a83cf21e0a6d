"""InfoNCE by its definition, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jepa_jax.losses import info_nce
from jepa_jax.sharding import batch_sharding, make_mesh
from tests import tiny

B, E = 16, 5
SCALE = 1 / 0.07
ALL_DIFFER = np.arange(100, 100 + B, dtype=np.int32)
# One text three times, two texts twice; the places are on different devices when 8 share the batch.
WITH_DUPLICATES = ALL_DIFFER.copy()
WITH_DUPLICATES[[3, 8, 14]] = -7
WITH_DUPLICATES[[0, 15]] = 5
WITH_DUPLICATES[[6, 7]] = 2**31 - 1


def embeddings(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors. Equal texts get different ones here: if they did not, the loss would be the same
    with and without knowing that they are equal (a test below)."""
    predicted, target = tiny.normal(len(ids), E, seed=1), tiny.normal(len(ids), E, seed=2)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (predicted, target))


def by_definition(predicted, target, ids, scale) -> tuple[float, float, float]:
    """Loss, alignment and uniformity, one pair at a time in float64."""
    logits = scale * predicted.astype(np.float64) @ target.astype(np.float64).T
    alignment = uniformity = 0.0
    for one_way in (logits, logits.T):
        for i, row in enumerate(one_way):
            positives = [row[j] for j in range(len(ids)) if ids[j] == ids[i]]
            alignment -= np.mean(positives) / (2 * len(ids))
            uniformity += np.log(np.sum(np.exp(row))) / (2 * len(ids))
    return alignment + uniformity, alignment, uniformity


@pytest.mark.parametrize("ids", [ALL_DIFFER, WITH_DUPLICATES])
def test_equals_the_definition(ids):
    loss, metrics = info_nce(*embeddings(ids), ids, SCALE)
    expected = by_definition(*embeddings(ids), ids, SCALE)
    for actual, value in zip((loss, metrics["alignment"], metrics["uniformity"]), expected):
        np.testing.assert_allclose(actual, value, rtol=1e-6)
    np.testing.assert_allclose(metrics["alignment"] + metrics["uniformity"], loss, rtol=1e-6)


def test_ids_of_numpy_are_taken_under_jit():
    """As a loop of one's own closes over them."""
    found = jax.jit(lambda *pair: info_nce(*pair, WITH_DUPLICATES, SCALE))(*embeddings(WITH_DUPLICATES))
    expected = info_nce(*embeddings(WITH_DUPLICATES), WITH_DUPLICATES, SCALE)
    jax.tree.map(lambda *both: np.testing.assert_allclose(*both, rtol=1e-6), found, expected)


def test_is_the_paper_s_symmetric_cross_entropy_where_all_targets_differ():
    torch = pytest.importorskip("torch")
    predicted, target = embeddings(ALL_DIFFER)
    logits = SCALE * torch.from_numpy(predicted).double() @ torch.from_numpy(target).double().T
    labels = torch.arange(B)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    loss, _ = info_nce(predicted, target, ALL_DIFFER, SCALE)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)


def test_equal_targets_are_uniform_positives():
    """Cross-entropy against soft labels, value and gradients, in the reference library."""
    torch = pytest.importorskip("torch")
    predicted, target = (torch.from_numpy(x).double() for x in embeddings(WITH_DUPLICATES))
    predicted.requires_grad_()
    target.requires_grad_()
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    ids = torch.from_numpy(WITH_DUPLICATES)
    labels = (ids[:, None] == ids[None, :]).double()
    labels = labels / labels.sum(dim=1, keepdim=True)
    logits = scale * predicted @ target.T
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    expected.backward()
    actual, grads = jax.value_and_grad(lambda *a: info_nce(*a[:2], WITH_DUPLICATES, a[2])[0], (0, 1, 2))(
        *embeddings(WITH_DUPLICATES), SCALE
    )
    np.testing.assert_allclose(actual, expected.item(), rtol=1e-6)
    for grad, x in zip(grads, (predicted, target, scale), strict=True):
        tiny.assert_close(grad, x.grad.numpy(), 1e-5)


def test_equal_targets_do_not_repel_each_other():
    """Two samples with one text, both at that text: no better place, so nothing pulls at either."""
    e = np.eye(2, dtype=np.float32)[[0, 0]]
    together = np.array([4, 4], np.int32)
    loss, metrics = info_nce(e, e, together, SCALE)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    assert metrics["accuracy"] == 1
    grad = jax.grad(lambda x: info_nce(x, e, together, SCALE)[0])(e)
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_where_equal_texts_embed_equally_it_is_the_paper_s_loss():
    """All the positives of a sample then have one logit, so their mean is the sample's own."""
    predicted, target = embeddings(ALL_DIFFER)
    target = target[np.unique(WITH_DUPLICATES, return_inverse=True)[1]]
    soft, metrics = info_nce(predicted, target, WITH_DUPLICATES, SCALE)
    plain, plain_metrics = info_nce(predicted, target, ALL_DIFFER, SCALE)
    np.testing.assert_allclose(soft, plain, rtol=1e-6)
    assert metrics["accuracy"] >= plain_metrics["accuracy"]


@pytest.mark.parametrize("ids", [ALL_DIFFER, WITH_DUPLICATES])
def test_gradients_are_those_of_finite_differences(ids):
    with jax.enable_x64(True):
        arguments = [jnp.asarray(x, jnp.float64) for x in (*embeddings(ids), 3.0)]
        check_grads(lambda p, t, s: info_nce(p, t, ids, s)[0], arguments, order=1, modes=["rev"], rtol=1e-3)


@pytest.mark.parametrize("ids", [ALL_DIFFER, WITH_DUPLICATES])
def test_the_order_of_the_batch_does_not_matter(ids):
    order = np.random.default_rng(0).permutation(B)
    predicted, target = embeddings(ids)
    loss, metrics = info_nce(predicted, target, ids, SCALE)
    other, other_metrics = info_nce(predicted[order], target[order], ids[order], SCALE)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=1e-6)


def test_accuracy_counts_predictions_whose_nearest_target_is_a_positive():
    """Rows find targets 0, 0 and 2. The nearest predictions of the columns would be 1, 0 and 2."""
    predicted = np.array([[2, 1, 0], [3, 1, 0], [0, 0, 5]], np.float32)
    target = np.eye(3, dtype=np.float32)
    for ids, right in (([7, 8, 9], 2 / 3), ([7, 7, 9], 1), ([7, 8, 7], 2 / 3)):
        accuracy = info_nce(predicted, target, np.array(ids, np.int32), SCALE)[1]["accuracy"]
        np.testing.assert_allclose(accuracy, right, rtol=1e-6)


def test_bfloat16_embeddings_give_a_float32_loss():
    predicted, target = (jnp.asarray(x, jnp.bfloat16) for x in embeddings(ALL_DIFFER))
    loss, metrics = info_nce(predicted, target, ALL_DIFFER, jnp.float32(SCALE))
    assert {loss.dtype, *(m.dtype for m in metrics.values())} == {jnp.dtype("float32")}
    rounded = [np.asarray(x, np.float32) for x in (predicted, target)]
    np.testing.assert_allclose(loss, by_definition(*rounded, ALL_DIFFER, SCALE)[0], rtol=1e-6)


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_one_device_and_eight_agree(fsdp):
    """Value and gradients, the embeddings split over every device. The negatives of a row sit on
    other devices, so their gradients have to come back from there."""
    gradient = jax.value_and_grad(lambda p, t, i, s: info_nce(p, t, i, s)[0], (0, 1, 3))
    arguments = (*embeddings(WITH_DUPLICATES), WITH_DUPLICATES, np.float32(SCALE))
    expected, expected_grads = gradient(*arguments)
    mesh = make_mesh(fsdp)
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    shardings = (rows, rows, rows, whole)
    split = [jax.device_put(x, s) for x, s in zip(arguments, shardings, strict=True)]
    assert len(split[0].addressable_shards) == 8
    assert split[0].addressable_shards[0].data.shape == (2, E)
    step = jax.jit(gradient, in_shardings=shardings, out_shardings=(whole, (rows, rows, whole)))
    actual, grads = step(*split)
    tiny.assert_close(actual, expected, 1e-5)
    for grad, value in zip(grads, expected_grads, strict=True):
        tiny.assert_close(grad, value, 1e-5)


def test_a_gather_that_drops_gradients_would_be_noticed():
    """Each of 8 devices against the others' embeddings, held constant: the same value, another
    gradient. The test above would see it."""
    predicted, target = embeddings(ALL_DIFFER)
    device = np.arange(B) // 2
    here = device[:, None] == device[None, :]

    def detached(p, t):
        constant_p, constant_t = map(jax.lax.stop_gradient, (p, t))
        rows = SCALE * jnp.where(here, p @ t.T, p @ constant_t.T)
        columns = SCALE * jnp.where(here, p @ t.T, constant_p @ t.T)
        matched = jnp.diag(rows)
        return jnp.mean(jax.nn.logsumexp(rows, 1) + jax.nn.logsumexp(columns, 0)) / 2 - jnp.mean(matched)

    value, grads = jax.value_and_grad(detached, (0, 1))(predicted, target)
    loss, right = jax.value_and_grad(lambda p, t: info_nce(p, t, ALL_DIFFER, SCALE)[0], (0, 1))(
        predicted, target
    )
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    for grad, expected in zip(grads, right, strict=True):
        assert tiny.relative_error(grad, expected) > 0.1
