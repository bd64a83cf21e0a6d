"""Small configs and randomly filled models for tests.

Sizes are distinct primes, or distinct multiples where something has to divide, so that a swapped
axis cannot go unnoticed.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jepa_jax import config as c
from jepa_jax.state import TrainState, init_state

BATCH, FRAMES, HEIGHT, WIDTH = 2, 6, 20, 35
QUERY_LENGTH, TARGET_LENGTH = 7, 11


def x_encoder(**changes) -> c.XEncoderConfig:
    """3 heads of 22: three rotated slices of 6 and a rest of 4."""
    base = c.XEncoderConfig(
        width=66, layers=2, heads=3, mlp_width=79, image_size=35, patch_size=5, tubelet_size=2
    )
    return dataclasses.replace(base, **changes)


def llama(**changes) -> c.LlamaConfig:
    base = c.LlamaConfig(
        vocab_size=41,
        width=54,
        layers=2,
        heads=6,
        kv_heads=2,
        head_size=14,
        mlp_width=67,
        rope_theta=500.0,
        # Short, so that each of the 7 wavelengths is kept, blended or stretched by the scaling: 6
        # is below 31 / 4, 15 lies between, 37 and more are above 31.
        rope_scaling=c.RopeScaling(factor=8.0, original_length=31),
    )
    return dataclasses.replace(base, **changes)


def y_encoder(**changes) -> c.YEncoderConfig:
    """Layers: sliding, sliding, full."""
    base = c.YEncoderConfig(
        vocab_size=43,
        width=51,
        layers=3,
        heads=3,
        kv_heads=1,
        head_size=16,
        mlp_width=61,
        window=4,
        full_every=3,
        rope_theta_sliding=100.0,
        rope_theta_full=1000.0,
        query_scalar=13.0,
        dense_widths=(29, 17),
    )
    return dataclasses.replace(base, **changes)


def bert(**changes) -> c.BertConfig:
    base = c.BertConfig(vocab_size=43, width=57, layers=2, heads=3, mlp_width=61, max_length=29, types=2)
    return dataclasses.replace(base, **changes)


def model(**changes) -> c.ModelConfig:
    base = c.ModelConfig(
        x_encoder=x_encoder(),
        predictor=llama(),
        y_encoder=y_encoder(),
        embedding_size=23,
        compute_dtype="float32",
        remat="none",
        scan_layers=False,
    )
    return dataclasses.replace(base, **changes)


def options(**changes) -> dict:
    """How a part runs: float32, one layer after the other."""
    return {"dtype": jnp.float32, "remat": "none", "scan": False, "rngs": nnx.Rngs(0)} | changes


def names(path) -> tuple[str, ...]:
    """A pytree path of parameters as plain names."""
    return tuple(str(p.key) for p in path if hasattr(p, "key"))


def parameters(module) -> dict[tuple[str, ...], jax.Array]:
    """The parameters of a module or state by name."""
    state = nnx.state(module) if isinstance(module, nnx.Module) else module
    return {names(path): x for path, x in jax.tree_util.tree_flatten_with_path(state)[0]}


def build(make, weights):
    """The module that `make()` gives, holding `weights`: a dict by name, complete and of the right
    shapes, or a function of name and shape."""
    graphdef, state = nnx.split(nnx.eval_shape(make))
    wanted = parameters(state)
    if callable(weights):
        weights = {name: weights(name, x.shape) for name, x in wanted.items()}
    shapes = {name: np.shape(x) for name, x in weights.items()}
    assert shapes == {name: x.shape for name, x in wanted.items()}
    leaves = [jnp.asarray(np.asarray(weights[name], np.float32)) for name in wanted]
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


def random_weight(name: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A weight that keeps activations near 1, with gains and biases that all differ: with those of
    a fresh model (all 1, all 0) a test could not see where they go."""
    noise = np.random.default_rng(zlib.crc32("/".join(name).encode())).normal(size=shape)
    if name[-1] == "kernel":
        return noise / np.sqrt(shape[-2])
    if name[-1].endswith("_embedding"):
        return noise / np.sqrt(shape[-1])
    if name[-1] == "scale":
        # Inside Gemma's blocks gains are stored as offsets from 1.
        offset = name[-2].startswith("norm_") or name[-2] in ("query_norm", "key_norm")
        return 0.3 * noise + (not offset)
    if name[-1] == "log_logit_scale":
        return np.log(1 / 0.07)
    assert name[-1] == "bias", name
    return 0.3 * noise


def filled(make):
    """The module that `make()` gives with random weights, the same for the same names."""
    return build(make, random_weight)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def right_padded(lengths, width: int) -> np.ndarray:
    """[B, L] bool, True at the first `lengths[b]` positions."""
    return np.arange(width) < np.asarray(lengths)[:, None]


def batch(size: int = BATCH, config: c.ModelConfig | None = None, pairs: int = 1) -> dict[str, np.ndarray]:
    """A batch as the pipeline makes it: `size` texts, `pairs` of them on each clip, two of the
    targets equal."""
    config = model() if config is None else config
    rng = np.random.default_rng(5)
    target_id = np.arange(size, dtype=np.int32)
    target_id[-1] = target_id[size // 3]
    query = rng.integers(0, config.predictor.vocab_size, (size, QUERY_LENGTH), np.int32)
    target = rng.integers(0, config.y_encoder.vocab_size, (size, TARGET_LENGTH), np.int32)
    query_length = rng.integers(0, QUERY_LENGTH + 1, size)
    target_length = rng.integers(1, TARGET_LENGTH + 1, size)
    return {
        "frames": rng.integers(0, 256, (size // pairs, 2, 10, 15, 3), np.uint8),
        "query": query,
        "query_mask": right_padded(query_length, QUERY_LENGTH),
        "target": target[target_id],
        "target_mask": right_padded(target_length[target_id], TARGET_LENGTH),
        "target_id": target_id,
    }


def relative_error(actual, expected) -> float:
    """Largest difference over the largest expected value."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def assert_close(actual, expected, tolerance: float) -> None:
    """The largest difference is at most `tolerance` of the largest expected value."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.2e} exceeds {tolerance:.0e}"


def operations(jaxpr):
    """All equations of a program, those of the functions it calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


def run(module, *arguments):
    """Call a module under jit: faster to compile than operation by operation."""
    return jax.jit(lambda m, *a: m(*a))(module, *arguments)


def run_config(**changes) -> c.Config:
    """A whole run of the small model, everything trained."""
    base = c.Config(
        name="tiny",
        model=model(),
        optim=c.OptimConfig(
            learning_rate=0.01, factors=c.LearningRateFactors(x_encoder=1.0, token_embedding=1.0)
        ),
        steps=10,
        batch_size=BATCH,
    )
    return dataclasses.replace(base, **changes)


def state(config: c.Config) -> tuple[nnx.GraphDef, TrainState]:
    """A model's structure and the state of a run that starts from random weights."""
    graphdef, empty = jax.eval_shape(functools.partial(init_state, config))

    # Made by NumPy: JAX would compile a program for each shape.
    def fill(path, x):
        return jnp.asarray(np.asarray(random_weight(names(path), x.shape), x.dtype))

    return graphdef, dataclasses.replace(
        empty,
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(config.seed),
        trained=jax.tree_util.tree_map_with_path(fill, empty.trained),
        frozen=jax.tree_util.tree_map_with_path(fill, empty.frozen),
        optimizer=jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), empty.optimizer),
    )
