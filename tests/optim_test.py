"""The optimizer: what it does to each part at each step, by formula."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.config import LearningRateFactors, OptimConfig
from jepa_jax.models.vl_jepa import part_of
from jepa_jax.optim import learning_rate_schedule, make_optimizer
from jepa_jax.step import compiler_options
from tests import tiny

PARTS = tuple(f.name for f in dataclasses.fields(LearningRateFactors))
ALL_ONE = LearningRateFactors(**dict.fromkeys(PARTS, 1.0))
# Plain: no clipping, no decay, no warm-up, every part at the same rate.
PLAIN = OptimConfig(learning_rate=0.1, clip_norm=None, factors=ALL_ONE)


def small_tree() -> dict:
    """A parameter or two of every part, under the model's own names."""
    return {
        "x_encoder": {"patch_embedding": {"kernel": tiny.normal(3, 5), "bias": tiny.normal(5)}},
        "predictor": {
            "token_embedding": tiny.normal(7, 3),
            "llama": {
                "blocks": {"stacked": {"norm1": {"scale": tiny.normal(2, 3)}}},
                "norm": {"scale": tiny.normal(3)},
            },
            "output_projection": {"kernel": tiny.normal(3, 2), "bias": tiny.normal(2)},
        },
        "y_encoder": {
            "token_embedding": tiny.normal(7, 5),
            "position_embedding": tiny.normal(11, 5),
            "blocks": {"stacked": {"query": {"kernel": tiny.normal(2, 5, 5)}}},
        },
        "log_logit_scale": np.float32(2.7),
    }


def gradients(step: int) -> dict:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), small_tree())


def updates(config: OptimConfig, steps: int = 1, total: int = 100, given=None) -> list[dict]:
    """The change of every parameter, step by step, the parameters held where they are."""
    optimizer, params = make_optimizer(config, total), small_tree()
    state, found = optimizer.init(params), []
    for grads in map(gradients, range(steps)) if given is None else given:
        change, state = optimizer.update(grads, state, params)
        found.append(change)
    return found


def replace(**changes) -> OptimConfig:
    return dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize("step", [0, 1, 6, 7, 8, 50, 100, 1000])
def test_constant_schedule(step):
    schedule = learning_rate_schedule(replace(warmup_steps=7), 100)
    np.testing.assert_allclose(schedule(step), 0.1 * min(step / 7, 1), rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.1])
@pytest.mark.parametrize("step", [0, 3, 7, 8, 31, 99, 100, 1000])
def test_cosine_schedule(step, fraction):
    schedule = learning_rate_schedule(
        replace(schedule="cosine", warmup_steps=7, final_fraction=fraction), 100
    )
    if step < 7:
        expected = step / 7
    else:
        done = min((step - 7) / 93, 1)
        expected = fraction + (1 - fraction) * (1 + math.cos(math.pi * done)) / 2
    np.testing.assert_allclose(schedule(step), 0.1 * expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_without_warm_up_the_first_step_has_the_whole_rate(schedule):
    assert learning_rate_schedule(replace(schedule=schedule), 100)(0) == np.float32(0.1)


def test_is_adam():
    config = replace(b1=0.8, b2=0.9, eps=0.03)
    first = second = 0.0
    for step, change in enumerate(updates(config, steps=3)):
        grad = gradients(step)["predictor"]["token_embedding"].astype(np.float64)
        first = 0.8 * first + 0.2 * grad
        second = 0.9 * second + 0.1 * grad**2
        mean, square = first / (1 - 0.8 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
        expected = -0.1 * mean / (np.sqrt(square) + 0.03)
        tiny.assert_close(change["predictor"]["token_embedding"], expected, 1e-6)


def test_the_rate_follows_the_schedule():
    config = replace(schedule="cosine", warmup_steps=2)
    schedule = learning_rate_schedule(config, 5)
    for step, (change, plain) in enumerate(
        zip(
            updates(config, steps=5, total=5),
            updates(PLAIN, steps=5, total=5),
            strict=True,
        )
    ):
        ratio = float(schedule(step)) / 0.1
        for a, b in zip(jax.tree.leaves(change), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, ratio * b, rtol=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_a_factor_scales_the_update_of_its_part_and_no_other(part):
    factors = dataclasses.replace(ALL_ONE, **{part: 0.25})
    config = replace(weight_decay=0.3)
    (change,), (plain,) = updates(dataclasses.replace(config, factors=factors)), updates(config)
    touched = set()
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(change)[0], jax.tree.leaves(plain), strict=True
    ):
        inside = part_of(path) == part
        # A power of two, so the product is exact.
        np.testing.assert_array_equal(a, b * (0.25 if inside else 1.0))
        touched.add(inside)
    assert touched == {True, False}


def test_weight_decay_is_for_matrices_only():
    """Not for gains, biases and the temperature, even where a stack gives a gain two axes."""
    (change,), (plain,) = updates(replace(weight_decay=0.3)), updates(PLAIN)
    flat = jax.tree_util.tree_flatten_with_path(small_tree())[0]
    decayed = set()
    for (path, x), a, b in zip(flat, jax.tree.leaves(change), jax.tree.leaves(plain), strict=True):
        if tiny.names(path)[-1] in ("kernel", "token_embedding", "position_embedding"):
            np.testing.assert_allclose(a, b - 0.1 * 0.3 * x, rtol=1e-5, atol=1e-7)
            decayed.add(tiny.names(path)[-1])
        else:
            np.testing.assert_array_equal(a, b)
    assert decayed == {"kernel", "token_embedding", "position_embedding"}


def test_clipping_scales_the_whole_gradient_to_the_norm():
    """Adam forgets the size of its gradients, unless its epsilon is large."""
    norm = math.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients(0))))
    large_eps = replace(eps=1e4)
    (plain,), (clipped,), (loose,) = (
        updates(dataclasses.replace(large_eps, clip_norm=clip)) for clip in (None, 0.1, 1e3)
    )
    for a, b, c in zip(*map(jax.tree.leaves, (plain, clipped, loose)), strict=True):
        np.testing.assert_allclose(b, a * 0.1 / norm, rtol=1e-3)
        np.testing.assert_array_equal(c, a)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(OptimConfig)])
def test_every_field_changes_the_updates(name):
    """A field without an entry here fails."""
    base = OptimConfig(
        name="muon" if name.startswith("muon") else "adamw",
        learning_rate=0.1,
        schedule="cosine",
        warmup_steps=2,
        final_fraction=0.1,
        weight_decay=0.1,
        factors=ALL_ONE,
    )
    changes = {
        "name": "muon",
        "muon_decay": 0.5,
        "muon_steps": 3,
        "learning_rate": 0.2,
        "schedule": "constant",
        "warmup_steps": 1,
        "final_fraction": 0.5,
        "b1": 0.5,
        "b2": 0.5,
        "eps": 0.1,
        "weight_decay": 0.2,
        "clip_norm": None,
        "factors": LearningRateFactors(),
    }
    changed = dataclasses.replace(base, **{name: changes[name]})
    # Clipping shows where gradients differ in size from step to step, so the first is small.
    small_first = [jax.tree.map(lambda g: 0.01 * g, gradients(0)), *map(gradients, range(1, 4))]
    before, after = (updates(config, given=small_first, total=5)[-1] for config in (base, changed))
    errors = jax.tree.map(tiny.relative_error, after, before)
    assert max(jax.tree.leaves(errors)) > 1e-3


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_weights_and_moments_are_float32_whatever_computes(compute_dtype):
    config = tiny.run_config(model=tiny.model(compute_dtype=compute_dtype))
    _, state = tiny.state(config)
    for tree in (state.trained, state.frozen, state.optimizer):
        kinds = {x.dtype for x in jax.tree.leaves(tree)}
        assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32")}
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}


def test_the_paper_s_smallest_rate_moves_a_float32_weight():
    """5e-5 x 0.05 = 2.5e-6: a bfloat16 weight of 1 would not move."""
    config = replace(learning_rate=5e-5, factors=LearningRateFactors())
    (change,) = updates(config)
    step = np.asarray(change["y_encoder"]["token_embedding"])
    np.testing.assert_allclose(np.abs(step), 2.5e-6, rtol=1e-3)
    one = np.ones_like(step)
    assert (one + step != one).all()
    assert (jnp.asarray(one + step, jnp.bfloat16) == 1).all()


def kernels(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): x for path, x in leaves if "'kernel'" in jax.tree_util.keystr(path)}


def test_muon_s_updates_of_matrices_are_nearly_orthogonal_and_as_large_as_adam_s():
    """Of a stack, each layer's on its own. Newton-Schulz brings singular values to within 0.7 and 1.2."""
    wide = {"predictor": {"blocks": {"stacked": {"out": {"kernel": tiny.normal(2, 40, 24)}}}}}
    rng = np.random.default_rng(0)
    # A gradient of one large direction and many small ones: Adam's update would keep that shape.
    given = [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), wide)]
    given[0]["predictor"]["blocks"]["stacked"]["out"]["kernel"][:, 0] *= 20
    optimizer = make_optimizer(replace(name="muon"), 100)
    change, _ = optimizer.update(given[0], optimizer.init(wide), wide)
    for layer, grad in zip(*(kernels(t).popitem()[1] for t in (change, given[0])), strict=True):
        values = np.linalg.svd(layer, compute_uv=False) / (0.1 * 0.2 * np.sqrt(40))
        assert values.min() > 0.6
        assert values.max() < 1.3
        assert np.sum(layer * grad) < 0


def newton_schulz(x: np.ndarray, steps: int) -> np.ndarray:
    """Muon's iteration written out in double precision: [D, E] with D > E -> [D, E]."""
    x = x.T / np.linalg.norm(x)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T


def test_muon_follows_its_momentum():
    momentum = 0.0
    config = replace(name="muon", muon_decay=0.8, muon_steps=3)
    for step, change in enumerate(updates(config, steps=3)):
        (grad,) = [x for name, x in kernels(gradients(step)).items() if "output_projection" in name]
        momentum = 0.8 * momentum + 0.2 * grad.astype(np.float64)
        # Nesterov's: the gradient once more, both without their bias towards zero.
        x = 0.8 * momentum / (1 - 0.8 ** (step + 2)) + 0.2 * grad / (1 - 0.8 ** (step + 1))
        found = change["predictor"]["output_projection"]["kernel"]
        tiny.assert_close(found, -0.1 * 0.2 * np.sqrt(3) * newton_schulz(x, 3), 1e-4)


@pytest.mark.parametrize("shape", [(1536, 24), (1536, 32), (768, 256)])
def test_muon_is_right_as_a_step_is_compiled(shape):
    """XLA's kernel library read matrices of some narrow shapes after it had written over them."""
    kernel = {"x_encoder": {"patch_embedding": {"kernel": tiny.normal(*shape)}}}
    optimizer = make_optimizer(replace(name="muon", muon_steps=3), 100)
    state = optimizer.init(kernel)
    update = jax.jit(optimizer.update, compiler_options=compiler_options(tiny.run_config()))
    for _ in range(5):
        ((found,), _) = (jax.tree.leaves(x) for x in update(kernel, state, kernel))
        expected = newton_schulz(tiny.normal(*shape).astype(np.float64), 3)
        tiny.assert_close(found, -0.1 * 0.2 * np.sqrt(max(shape)) * expected, 1e-4)


def test_muon_leaves_all_but_matrices_to_adam():
    config = replace(b1=0.8, weight_decay=0.1)
    found = zip(updates(dataclasses.replace(config, name="muon"), 3), updates(config, 3), strict=True)
    for muon, adam in found:
        same = jax.tree_util.tree_map_with_path(
            lambda path, a, b: bool(np.array_equal(a, b)) != ("'kernel'" in jax.tree_util.keystr(path)),
            muon,
            adam,
        )
        assert all(jax.tree.leaves(same))
