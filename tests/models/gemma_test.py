"""EmbeddingGemma is bidirectional Gemma 3, a mean pool, Dense heads and a projection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.config import YEncoderConfig
from jepa_jax.models.attention import attention_mask
from jepa_jax.models.gemma import Block, Gemma
from jepa_jax.models.layers import rope_frequencies, rope_table
from tests import tiny

# Longer than a window of 4 to both sides, through the two sliding layers.
LENGTH, E = 23, 19


def make(config: YEncoderConfig):
    return lambda: Gemma(config, E, **tiny.options())


def tokens(length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 43, (tiny.BATCH, length), np.int32)


def hidden_states(model: Gemma, ids, mask):
    return np.asarray(jax.jit(lambda m, t, v: m.hidden_states(t, v))(model, ids, mask))


def reference_model(config: YEncoderConfig):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from tests.models import reference

    theirs = transformers.Gemma3TextModel(reference.to_gemma(config, attn_implementation="eager"))
    return reference, reference.randomise(theirs, gain=0.0)


def with_random_heads(config: YEncoderConfig, weights) -> Gemma:
    """The reference has neither Dense heads nor projection: those are random."""
    return tiny.build(make(config), lambda name, shape: weights.get(name, tiny.random_weight(name, shape)))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "layers", "full_every"), [(3, 1, 3, 3), (3, 3, 2, 6), (6, 2, 5, 2)]
)
def test_equals_the_reference(heads, kv_heads, layers, full_every):
    # The reference insists that heads divide the width.
    config = tiny.y_encoder(width=54, heads=heads, kv_heads=kv_heads, layers=layers, full_every=full_every)
    reference, theirs = reference_model(config)
    ours = with_random_heads(config, reference.gemma_weights(theirs))
    ids, mask = tokens(), tiny.right_padded([LENGTH, 17], LENGTH)
    expected = reference.forward(
        lambda t, m: theirs(input_ids=t, attention_mask=m).last_hidden_state,
        ids.astype(np.int64),
        mask.astype(np.int64),
    )
    tiny.assert_close(hidden_states(ours, ids, mask)[mask], expected[mask], 2e-5)


@pytest.mark.parametrize("change", [{"window": 22}, {"full_every": 2}, {"full_every": 1}])
def test_window_and_pattern_bite_at_the_tested_length(change):
    """Without this the parity test above could not see a wrong window or pattern."""
    ids, mask = tokens(), np.ones((tiny.BATCH, LENGTH), bool)
    base = hidden_states(tiny.filled(make(tiny.y_encoder())), ids, mask)
    other = hidden_states(tiny.filled(make(tiny.y_encoder(**change))), ids, mask)
    assert tiny.relative_error(other, base) > 0.01


@pytest.mark.parametrize("silent", ["attention", "mlp"])
@pytest.mark.parametrize("layer", [0, 2])
def test_each_sub_layer_equals_the_reference(layer, silent):
    """With the norm after the other sub-layer at zero gain, a block is one sub-layer alone. Layer 0
    slides and layer 2 sees everything."""
    config = tiny.y_encoder(width=54)
    reference, theirs = reference_model(config)
    weights = {
        path[2:]: x[layer] for path, x in reference.gemma_weights(theirs).items() if path[0] == "blocks"
    }
    norm = (f"norm_after_{silent}", "scale")
    weights[norm] = np.full_like(weights[norm], -1.0)
    block = tiny.build(lambda: Block(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), weights)
    x = tiny.normal(tiny.BATCH, LENGTH, config.width)
    masks = attention_mask(LENGTH, window=config.window), jnp.ones((1, LENGTH, LENGTH), bool)
    tables = tuple(
        rope_table(LENGTH, rope_frequencies(config.head_size, theta))
        for theta in (config.rope_theta_sliding, config.rope_theta_full)
    )
    part = theirs.layers[layer]
    hidden = np.where(masks[layer == 2], 0.0, np.finfo(np.float32).min).astype(np.float32)[:, None]

    def attend(h, cos, sin, mask):
        y = part.self_attn(part.input_layernorm(h), (cos[None], sin[None]), mask)[0]
        return h + part.post_attention_layernorm(y)

    def feed(h, *_):
        return h + part.post_feedforward_layernorm(part.mlp(part.pre_feedforward_layernorm(h)))

    function = feed if silent == "attention" else attend
    expected = reference.forward(function, x, *tables[layer == 2], hidden)
    actual = tiny.run(block, x, (None, tables), layer == 2)
    tiny.assert_close(actual, expected, 2e-5)


@pytest.mark.parametrize("dense_widths", [(), (29,), (29, 17)])
def test_pool_dense_heads_and_projection(dense_widths):
    """The mean over the tokens that are not padding, Dense heads without bias or activation."""
    model = tiny.filled(make(tiny.y_encoder(dense_widths=dense_widths)))
    ids, mask = tokens(), tiny.right_padded([19, 1], LENGTH)
    x = hidden_states(model, ids, mask).astype(np.float64)
    x = np.stack([states[m].mean(axis=0) for states, m in zip(x, mask, strict=True)])
    assert len(model.dense) == len(dense_widths)
    for dense in model.dense:
        assert dense.bias is None
        x = x @ np.asarray(dense.kernel[...])
    x = x @ np.asarray(model.output_projection.kernel[...]) + np.asarray(model.output_projection.bias[...])
    tiny.assert_close(tiny.run(model, ids, mask), x, 1e-5)


def test_padding_changes_nothing():
    model = tiny.filled(make(tiny.y_encoder()))
    ids, mask = tokens(), tiny.right_padded([5, 17], LENGTH)
    expected = tiny.run(model, ids, mask)
    wider = np.concatenate([ids, ids[:, :7]], axis=1)
    padded = np.concatenate([mask, np.zeros((tiny.BATCH, 7), bool)], axis=1)
    tiny.assert_close(tiny.run(model, wider, padded), expected, 1e-6)
    garbage = np.where(mask, ids, (ids + 5) % 43).astype(np.int32)
    tiny.assert_close(tiny.run(model, garbage, mask), expected, 1e-6)


def test_a_text_of_padding_alone_is_finite():
    """An empty text in a batch must not turn the others into NaN."""
    model = tiny.filled(make(tiny.y_encoder()))
    ids, mask = tokens(), tiny.right_padded([0, 17], LENGTH)
    both, alone = tiny.run(model, ids, mask), tiny.run(model, ids[1:], mask[1:])
    assert np.isfinite(both).all()
    tiny.assert_close(both[1:], alone, 1e-6)


@pytest.mark.parametrize(("full_every", "reach"), [(6, 4), (1, LENGTH)])
def test_one_layer_reaches_exactly_its_window(full_every, reach):
    """Sliding: |i - j| <= window, both ends included, on both sides. Full: everything."""
    model = tiny.filled(make(tiny.y_encoder(layers=1, full_every=full_every, window=4)))
    ids, mask = tokens()[:1], np.ones((1, LENGTH), bool)
    before = hidden_states(model, ids, mask)[0]
    for j in (0, 11, LENGTH - 1):
        changed = ids.copy()
        changed[0, j] = (changed[0, j] + 1) % 43
        after = hidden_states(model, changed, mask)[0]
        distance = np.abs(np.arange(LENGTH) - j)
        np.testing.assert_array_equal((after != before).any(axis=-1), distance <= reach)


def test_every_token_reaches_the_embedding():
    model = tiny.filled(make(tiny.y_encoder()))
    ids = np.arange(LENGTH, dtype=np.int32)[None]
    mask = tiny.right_padded([19], LENGTH)

    @jax.jit
    @functools.partial(jax.grad)
    def influence(model):
        return jnp.sum(model(ids, mask) ** 2)

    by_token = np.abs(influence(model).token_embedding[...]).sum(axis=-1)
    np.testing.assert_array_equal(by_token > 0, np.arange(43) < 19)


def test_the_embedding_is_scaled_by_the_root_of_the_width():
    """With every block silenced, the states are the scaled table after the final norm: the norm
    hides the scale from the result, but not from its epsilon."""
    config = tiny.y_encoder(norm_eps=1.0)
    silent = {"norm_after_attention", "norm_after_mlp"}
    model = tiny.build(
        make(config),
        lambda name, shape: np.full(shape, -1.0) if silent & set(name) else tiny.random_weight(name, shape),
    )
    ids = tokens()
    x = np.asarray(model.token_embedding[...], np.float64)[ids] * np.sqrt(config.width)
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps)
    expected = x * (1 + np.asarray(model.norm.scale[...]))
    tiny.assert_close(hidden_states(model, ids, np.ones(ids.shape, bool)), expected, 1e-6)
