"""The predictor reads [visual; query], sees all of it, and never sees padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa_jax.models.predictor import Predictor
from tests import tiny

VISUAL, VISUAL_WIDTH, E = 13, 19, 23
LENGTHS = [3, 7]


def predictor(**changes) -> Predictor:
    config = tiny.llama(**changes)
    return tiny.filled(lambda: Predictor(config, VISUAL_WIDTH, E, **tiny.options()))


def inputs():
    visual = tiny.normal(tiny.BATCH, VISUAL, VISUAL_WIDTH)
    query = np.random.default_rng(1).integers(0, 41, (tiny.BATCH, tiny.QUERY_LENGTH), np.int32)
    return visual, query, tiny.right_padded(LENGTHS, tiny.QUERY_LENGTH)


def by_hand(model: Predictor, parts: list[np.ndarray]) -> np.ndarray:
    """Llama over one sample's parts in order, mean over positions, projection; no padding."""
    x = np.concatenate(parts)[None].astype(np.float32)
    hidden = np.asarray(tiny.run(model.llama, x, np.ones(x.shape[:2], bool)), np.float64)
    projection = model.output_projection
    return hidden[0].mean(axis=0) @ np.asarray(projection.kernel[...]) + np.asarray(projection.bias[...])


def visual_part(model: Predictor, visual: np.ndarray) -> np.ndarray:
    projection = model.visual_projection
    return visual @ np.asarray(projection.kernel[...]) + np.asarray(projection.bias[...])


def test_is_the_mean_of_the_final_states_of_visual_then_query():
    model = predictor()
    visual, query, mask = inputs()
    table = np.asarray(model.token_embedding[...])
    actual = tiny.run(model, visual, query, mask)
    for b, length in enumerate(LENGTHS):
        parts = [visual_part(model, visual[b]), table[query[b, :length]]]
        tiny.assert_close(actual[b], by_hand(model, parts), 1e-5)
        swapped = by_hand(model, parts[::-1])
        assert tiny.relative_error(actual[b], swapped) > 1e-3, "the order cannot be told apart"


def test_more_padding_changes_nothing():
    model = predictor()
    visual, query, mask = inputs()
    wider = np.concatenate([query, np.full((tiny.BATCH, 6), 40, np.int32)], axis=1)
    garbage = np.where(mask, query, 17).astype(np.int32)
    expected = tiny.run(model, visual, query, mask)
    padded = np.concatenate([mask, np.zeros((tiny.BATCH, 6), bool)], axis=1)
    tiny.assert_close(tiny.run(model, visual, wider, padded), expected, 1e-6)
    tiny.assert_close(tiny.run(model, visual, garbage, mask), expected, 1e-6)


@pytest.mark.parametrize("length", [0, 5])
def test_no_query_is_the_visual_part_alone(length):
    model = predictor()
    visual, query, mask = inputs()
    query, mask = query[:, :length], np.zeros_like(mask)[:, :length]
    actual = tiny.run(model, visual, query, mask)
    for b in range(tiny.BATCH):
        tiny.assert_close(actual[b], by_hand(model, [visual_part(model, visual[b])]), 1e-5)


def test_another_query_gives_another_embedding():
    model = predictor()
    visual, query, mask = inputs()
    other = query.copy()
    other[:, 1] = (other[:, 1] + 1) % 41
    first, second = tiny.run(model, visual, query, mask), tiny.run(model, visual, other, mask)
    assert (np.abs(first - second).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("causal", [False, True])
def test_every_position_sees_every_other_unless_causal(causal):
    """What the first and the last position make of every other, padding aside."""
    model = predictor(causal=causal)
    x = tiny.normal(1, 11, model.llama.config.width)
    valid = np.array([[True] * 9 + [False] * 2])

    @jax.jit
    @functools.partial(jax.grad, argnums=1)
    def influence(model, x, position):
        return jnp.sum(model.llama(x, valid)[0, position] ** 2)

    seen = {i: np.abs(influence(model, x, i)[0]).sum(axis=-1) > 0 for i in (0, 4, 8)}
    for i, by in seen.items():
        visible = np.arange(11) <= i if causal else np.arange(11) < 9
        np.testing.assert_array_equal(by, visible)


def test_every_visual_token_and_every_query_token_reaches_the_embedding():
    model = predictor()
    visual, query, mask = inputs()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def influence(model, visual):
        return jnp.sum(model(visual, query, mask) ** 2)

    by_model, by_visual = influence(model, visual)
    assert (np.abs(by_visual).sum(axis=-1) > 0).all()
    read = np.zeros(41, bool)
    read[query[mask]] = True
    by_token = np.abs(by_model.token_embedding[...]).sum(axis=-1)
    np.testing.assert_array_equal(by_token > 0, read)
