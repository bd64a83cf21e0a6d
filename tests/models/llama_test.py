"""Llama blocks are Llama's, with the causal mask on or off."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.config import LlamaConfig
from jepa_jax.models.layers import RMSNorm, rope_frequencies
from jepa_jax.models.llama import Block, Llama
from tests import tiny

LENGTH = 23


def make(config: LlamaConfig):
    return lambda: Llama(config, **tiny.options())


def reference_model(config: LlamaConfig):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from tests.models import reference

    theirs = transformers.LlamaModel(reference.to_llama(config, attn_implementation="eager"))
    return reference, reference.randomise(theirs)


def everything_visible(valid: np.ndarray) -> np.ndarray:
    """The reference's four-dimensional mask, added to the logits: only padding is hidden."""
    mask = np.where(valid[:, None, None, :], 0.0, np.finfo(np.float32).min).astype(np.float32)
    return np.broadcast_to(mask, (len(valid), 1, valid.shape[1], valid.shape[1])).copy()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 6), (6, 1)])
def test_equals_the_reference(heads, kv_heads, causal):
    config = tiny.llama(heads=heads, kv_heads=kv_heads, causal=causal)
    reference, theirs = reference_model(config)
    ours = tiny.build(make(config), reference.llama_weights(theirs))
    x = tiny.normal(tiny.BATCH, LENGTH, config.width)
    valid = tiny.right_padded([LENGTH, 13], LENGTH)
    mask = valid.astype(np.int64) if causal else everything_visible(valid)
    expected = reference.forward(
        lambda x, m: theirs(inputs_embeds=x, attention_mask=m).last_hidden_state, x, mask
    )
    actual = np.asarray(tiny.run(ours, x, valid))
    tiny.assert_close(actual[valid], expected[valid], 2e-5)


def test_the_scaling_of_positions_bites_at_the_tested_length():
    """Without this the parity test above could not see a wrong scaling."""
    config = tiny.llama()
    x = tiny.normal(tiny.BATCH, LENGTH, config.width)
    valid = np.ones(x.shape[:2], bool)
    scaled = tiny.run(tiny.filled(make(config)), x, valid)
    plain = tiny.run(tiny.filled(make(tiny.llama(rope_scaling=None))), x, valid)
    assert tiny.relative_error(scaled, plain) > 0.01


def test_frequencies_of_the_released_model():
    pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from tests.models import reference

    config = LlamaConfig.llama_3_2_1b()
    expected = LlamaRotaryEmbedding(reference.to_llama(config)).inv_freq.numpy()
    actual = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    plain = rope_frequencies(config.head_size, config.rope_theta)
    # Theta 500,000, 64 dimensions, 8,192 positions: 15 pairs turn at least 4 times, 14 less than
    # once, and 3 lie between.
    kept, stretched = np.isclose(actual, plain, rtol=1e-12), np.isclose(actual * 32, plain, rtol=1e-12)
    assert (kept.sum(), stretched.sum()) == (15, 14)


@pytest.mark.parametrize("silent", ["attention", "mlp"])
def test_each_sub_layer_equals_the_reference(silent):
    """With the other sub-layer's last product at zero, a block is one sub-layer alone."""
    config = tiny.llama(rope_scaling=None)
    reference, theirs = reference_model(config)
    weights = {path[2:]: x[0] for path, x in reference.llama_weights(theirs).items() if path[0] == "blocks"}
    last = ("out", "kernel") if silent == "attention" else ("mlp", "down", "kernel")
    weights[last] = np.zeros_like(weights[last])
    block = tiny.build(lambda: Block(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), weights)
    x = tiny.normal(tiny.BATCH, LENGTH, config.width)
    angles = np.arange(LENGTH)[:, None] * rope_frequencies(config.head_size, config.rope_theta)
    table = [f(np.tile(angles, 2)).astype(np.float32) for f in (np.cos, np.sin)]
    layer = theirs.layers[0]

    def attend(h, cos, sin):
        return h + layer.self_attn(layer.input_layernorm(h), (cos[None], sin[None]), None)[0]

    def feed(h, *_):
        return h + layer.mlp(layer.post_attention_layernorm(h))

    expected = reference.forward(feed if silent == "attention" else attend, x, *table)
    tiny.assert_close(tiny.run(block, x, (None, table), 0), expected, 2e-5)


@pytest.mark.parametrize("unit_offset", [False, True])
def test_norms_round_as_the_reference_in_bfloat16(unit_offset):
    """Llama casts before the gain and Gemma after it; in bfloat16 the two differ."""
    torch = pytest.importorskip("torch")
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    width = 257
    theirs = (Gemma3RMSNorm if unit_offset else LlamaRMSNorm)(width, eps=1e-5)
    gain = tiny.normal(width, seed=1)
    x = 3 * tiny.normal(5, 31, width)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(gain))
        theirs.weight.data = theirs.weight.bfloat16()
        expected = theirs(torch.from_numpy(x).bfloat16()).float().numpy()
    gain = jnp.asarray(gain, jnp.bfloat16).astype(jnp.float32)
    ours = tiny.build(
        lambda: RMSNorm(width, eps=1e-5, unit_offset=unit_offset), {("scale",): np.asarray(gain)}
    )
    actual = np.asarray(ours(jnp.asarray(x, jnp.bfloat16)).astype(jnp.float32))
    # The order of the sum of squares may round one value in many thousands to its neighbour; the
    # other order of cast and gain changes a quarter of them.
    assert np.mean(actual != expected) < 1e-4
