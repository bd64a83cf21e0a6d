"""The BERT Y-Encoder is BERT, with the pool that its sentence encoder was trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.config import BertConfig
from jepa_jax.models.bert import Bert, Block
from tests import tiny

LENGTH, E = 23, 19


def make(config: BertConfig, embedding_size: int | None = None):
    return lambda: Bert(config, embedding_size, **tiny.options())


def inputs(lengths=(LENGTH, 13)):
    ids = np.random.default_rng(2).integers(0, 43, (tiny.BATCH, LENGTH), np.int32)
    return ids, tiny.right_padded(lengths, LENGTH)


def reference_model():
    pytest.importorskip("torch", reason="the reference is PyTorch's, of the extra `convert`")
    from tests.models import reference
    from tests.weights_conversion import folders

    theirs = folders.bert()
    return reference, theirs, reference.bert_weights(theirs)


def hidden_states(model: Bert, ids, mask) -> np.ndarray:
    return np.asarray(jax.jit(lambda m, t, v: m.hidden_states(t, v))(model, ids, mask))


def test_equals_the_reference():
    reference, theirs, weights = reference_model()
    ids, mask = inputs()
    expected = reference.forward(
        lambda t, m: theirs(input_ids=t, attention_mask=m).last_hidden_state,
        ids.astype(np.int64),
        mask.astype(np.int64),
    )
    ours = tiny.build(make(tiny.bert()), weights)
    tiny.assert_close(hidden_states(ours, ids, mask)[mask], expected[mask], 2e-5)


@pytest.mark.parametrize("part", ["embeddings", "attention", "mlp"])
def test_each_sub_layer_equals_the_reference(part):
    reference, theirs, weights = reference_model()
    config, layer = tiny.bert(), theirs.encoder.layer[1]
    if part == "embeddings":
        ids, mask = inputs()
        expected = reference.forward(theirs.embeddings, ids.astype(np.int64))
        model = tiny.build(make(config), weights)
        actual = jax.jit(lambda m, t, v: m.embed(t, v)[0])(model, ids, mask)
        tiny.assert_close(actual, expected, 2e-5)
        return
    inner = {path[2:]: np.array(x[1]) for path, x in weights.items() if path[0] == "blocks"}
    x, mask = tiny.normal(tiny.BATCH, LENGTH, config.width), inputs()[1]
    hidden = np.where(mask[:, None, None, :], 0.0, np.finfo(np.float32).min).astype(np.float32)
    hidden = np.broadcast_to(hidden, (tiny.BATCH, 1, LENGTH, LENGTH)).copy()
    build = lambda: tiny.build(lambda: Block(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), inner)
    if part == "attention":
        # With the MLP's last product at zero and its norm that of the attention, the norm comes twice.
        inner |= {("down", name): np.zeros_like(inner["down", name]) for name in ("kernel", "bias")}
        attended = lambda h, m: layer.output.LayerNorm(layer.attention(h, m)[0])
        expected = reference.forward(attended, x, hidden)
    else:
        inner |= {("out", name): np.zeros_like(inner["out", name]) for name in ("kernel", "bias")}

        def feed(h):
            y = layer.attention.output.LayerNorm(h)
            return layer.output(layer.intermediate(y), y)

        expected = reference.forward(feed, x)
    tiny.assert_close(tiny.run(build(), x, mask, 0), expected, 2e-5)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_pool_and_projection(pool):
    model = tiny.filled(make(tiny.bert(pool=pool), E))
    ids, mask = inputs((19, 1))
    states = hidden_states(model, ids, mask).astype(np.float64)
    pooled = states[:, 0]
    if pool == "mean":
        pooled = np.stack([row[m].mean(axis=0) for row, m in zip(states, mask, strict=True)])
    projection = model.output_projection
    expected = pooled @ np.asarray(projection.kernel[...]) + np.asarray(projection.bias[...])
    tiny.assert_close(tiny.run(model, ids, mask), expected, 1e-5)


def test_without_a_projection_it_gives_the_sentence_encoder_s_embedding():
    model = tiny.filled(make(tiny.bert()))
    assert tiny.run(model, *inputs()).shape == (tiny.BATCH, 57)
    assert not [name for name in tiny.parameters(model) if "output_projection" in name]


def test_padding_changes_nothing():
    model = tiny.filled(make(tiny.bert(), E))
    ids, mask = inputs((5, 17))
    expected = tiny.run(model, ids, mask)
    wider = np.concatenate([ids, ids[:, :6]], axis=1)
    padded = np.concatenate([mask, np.zeros((tiny.BATCH, 6), bool)], axis=1)
    tiny.assert_close(tiny.run(model, wider, padded), expected, 1e-6)
    garbage = np.where(mask, ids, (ids + 5) % 43).astype(np.int32)
    tiny.assert_close(tiny.run(model, garbage, mask), expected, 1e-6)


def test_more_tokens_than_positions_are_refused():
    model = nnx.eval_shape(make(tiny.bert(max_length=11)))
    with pytest.raises(ValueError, match="23 tokens, but this BERT has positions for 11"):
        jax.eval_shape(lambda m, *a: m(*a), model, *inputs())


def test_the_released_size():
    model = nnx.eval_shape(make(BertConfig.all_minilm_l6_v2()))
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(model)))
    # 22,713,216 with BERT's pooler of 384 x 384 + 384.
    assert count == 22_713_216 - 384 * 385
