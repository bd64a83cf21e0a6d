"""The Y-Decoder: what it is given of the embedding, and that training and writing are one model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.models import generation
from jepa_jax.models.y_decoder import YDecoder
from tests import tiny
from tests.tiny_decoder import config as base

BATCH, LENGTH, SIZE = 3, 11, 23
CONFIG = dataclasses.replace(base, llama=tiny.llama(causal=True), prefix_tokens=5, scan_layers=False)


@pytest.fixture(scope="module")
def decoder():
    return tiny.filled(lambda: YDecoder(CONFIG, SIZE, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def embedding():
    return tiny.normal(BATCH, SIZE)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, CONFIG.llama.vocab_size, (BATCH, LENGTH))


def test_a_token_is_told_from_the_embedding_and_those_before_it(decoder, embedding, tokens):
    """Which logits change when one token, or the embedding, does."""
    logits = np.asarray(tiny.run(decoder, embedding, tokens))
    assert logits.shape == (BATCH, LENGTH, CONFIG.llama.vocab_size)
    for place in (0, 6, LENGTH - 1):
        changed = tokens.copy()
        changed[:, place] = (changed[:, place] + 1) % CONFIG.llama.vocab_size
        moved = np.abs(np.asarray(tiny.run(decoder, embedding, changed)) - logits).max(axis=(0, 2)) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(LENGTH) > place)
    other = np.asarray(tiny.run(decoder, embedding[::-1].copy(), tokens))
    assert (np.abs(other[0] - logits[0]).max(axis=1) > 1e-3).all()


def test_every_prefix_token_takes_its_own_part_of_the_embedding(decoder, embedding):
    prefix = np.asarray(decoder.prefix(embedding))
    assert prefix.shape == (BATCH, CONFIG.prefix_tokens, CONFIG.llama.width)
    width, projection = CONFIG.llama.width, decoder.prefix_projection
    own = slice(2 * width, 3 * width)
    third = embedding @ np.asarray(projection.kernel[:, own]) + np.asarray(projection.bias[own])
    tiny.assert_close(prefix[:, 2], third, 1e-5)


def test_it_writes_what_it_was_taught_to_score(decoder, embedding):
    """Every token of a greedy text has the highest of the logits that training sees."""
    options = {"length": LENGTH, "end": -1}
    write = lambda d, x: generation.greedy(d.language_model, d.prefix(x), **options)
    written = jax.jit(write)(decoder, embedding)
    logits = tiny.run(decoder, embedding, written)
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), written)
    assert len(np.unique(written)) > 3
