"""The X-Encoder is V-JEPA 2's, at any input shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.config import XEncoderConfig
from jepa_jax.models.layers import rotate_neighbours
from jepa_jax.models.x_encoder import Block, XEncoder, position_table
from tests import tiny

# Head sizes whose three slices leave 4, 0 and 2 dimensions that are not rotated, and the released 64.
HEADS = [(66, 3), (36, 3), (40, 2), (64, 1)]
GRID = (2, 3, 5)


def make(config: XEncoderConfig):
    return lambda: XEncoder(config, **tiny.options())


def frames(count: int, height: int, width: int) -> np.ndarray:
    return tiny.normal(tiny.BATCH, count, height, width, 3)


def reference_model(config: XEncoderConfig):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from tests.models import reference

    small = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    model = transformers.VJEPA2Model(
        reference.to_vjepa2(config, attn_implementation="eager", frames_per_clip=4, **small)
    )
    return reference, reference.randomise(model)


@pytest.mark.parametrize(("width", "heads"), HEADS)
def test_equals_the_reference(width, heads):
    config = tiny.x_encoder(width=width, heads=heads)
    reference, theirs = reference_model(config)
    ours = tiny.build(make(config), reference.x_encoder_weights(theirs))
    x = frames(tiny.FRAMES, config.image_size, config.image_size)
    channels_first = np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))
    expected = reference.forward(lambda v: theirs(v, skip_predictor=True).last_hidden_state, channels_first)
    assert expected.shape == (tiny.BATCH, 3 * 7 * 7, width)
    tiny.assert_close(tiny.run(ours, x), expected, 2e-5)


@pytest.mark.parametrize("size", [(20, 35), (35, 15), (10, 10)])
def test_equals_the_reference_at_a_shape_that_is_not_the_config_s(size):
    """The reference counts positions on the square of its crop, so it is told which places of that
    square a smaller rectangle covers."""
    config = tiny.x_encoder()
    reference, theirs = reference_model(config)
    ours = tiny.build(make(config), reference.x_encoder_weights(theirs))
    x = frames(4, *size)
    square = config.image_size // config.patch_size
    places = np.arange(2 * square * square).reshape(2, square, square)
    places = places[:, : size[0] // config.patch_size, : size[1] // config.patch_size].reshape(1, -1)

    def encode(video, places):
        hidden = theirs.encoder.embeddings(video)
        for layer in theirs.encoder.layer:
            hidden = layer(hidden, position_mask=places.expand(len(video), -1))[0]
        return theirs.encoder.layernorm(hidden)

    channels_first = np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3))
    expected = reference.forward(encode, channels_first, places)
    assert expected.shape[1] == places.size
    tiny.assert_close(tiny.run(ours, x), expected, 2e-5)


@pytest.mark.parametrize("silent", ["attention", "mlp"])
def test_each_sub_layer_equals_the_reference(silent):
    """With the other sub-layer's last product at zero, a block is one sub-layer alone."""
    config = tiny.x_encoder()
    reference, theirs = reference_model(config)
    weights = {
        path[2:]: x[0] for path, x in reference.x_encoder_weights(theirs).items() if path[0] == "blocks"
    }
    last = "out" if silent == "attention" else "down"
    weights |= {(last, name): np.zeros_like(weights[last, name]) for name in ("kernel", "bias")}
    block = tiny.build(lambda: Block(config, dtype=jnp.float32, rngs=nnx.Rngs(0)), weights)
    grid = (3, 7, 7)
    x = tiny.normal(tiny.BATCH, int(np.prod(grid)), config.width)
    layer = theirs.encoder.layer[0]
    if silent == "attention":
        expected = reference.forward(lambda h: h + layer.mlp(layer.norm2(h)), x)
    else:
        expected = reference.forward(lambda h: h + layer.attention(layer.norm1(h))[0], x)
    table = position_table(grid, config.head_size, config.rope_theta, config.tiled_rope)
    tiny.assert_close(tiny.run(block, x, table, 0), expected, 2e-5)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("head_size", [64, 22, 18, 7])
def test_positions_are_counted_by_time_row_and_column(head_size, tiled):
    cos, sin = position_table(GRID, head_size, 10_000.0, tiled)
    pairs = head_size // 6
    angles = np.zeros((*GRID, head_size))
    for place in np.ndindex(*GRID):
        for axis in range(3):
            for i in range(2 * pairs):
                frequency = i % pairs if tiled else i // 2
                angle = place[axis] * 10_000.0 ** (-frequency / pairs)
                angles[(*place, axis * 2 * pairs + i)] = angle
    angles = angles.reshape(-1, head_size)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-7)
    assert not angles[:, 6 * pairs :].any(), "the rest of a head is not rotated"


def test_untiled_frequencies_turn_neighbours_together():
    """Each pair (2i, 2i + 1), read as one complex number, is multiplied by exp(i * angle)."""
    head_size, pairs = 22, 3
    x = tiny.normal(tiny.BATCH, int(np.prod(GRID)), 2, head_size).astype(np.float64)
    place = np.stack(np.unravel_index(np.arange(np.prod(GRID)), GRID), -1)
    rate = 50.0 ** (-np.arange(pairs) / pairs)
    angle = (place[:, :, None] * rate).reshape(-1, 3 * pairs)
    z = x[..., : 6 * pairs : 2] + 1j * x[..., 1 : 6 * pairs : 2]
    z = z * np.exp(1j * angle)[None, :, None, :]
    expected = x.copy()
    expected[..., : 6 * pairs : 2], expected[..., 1 : 6 * pairs : 2] = z.real, z.imag
    turned = rotate_neighbours(jnp.asarray(x, jnp.float32), position_table(GRID, head_size, 50.0, False))
    tiny.assert_close(turned, expected, 1e-6)
    quirk = rotate_neighbours(jnp.asarray(x, jnp.float32), position_table(GRID, head_size, 50.0, True))
    assert tiny.relative_error(quirk, expected) > 0.1


def test_one_image_is_repeated_to_fill_a_tubelet():
    model = tiny.filled(make(tiny.x_encoder(tubelet_size=3)))
    image = frames(1, 20, 35)
    once = tiny.run(model, image)
    assert once.shape == (tiny.BATCH, 4 * 7, 66)
    np.testing.assert_array_equal(once, tiny.run(model, np.repeat(image, 3, axis=1)))


@pytest.mark.parametrize(("count", "tokens"), [(1, 256), (2, 256), (8, 1024), (16, 2048), (32, 4096)])
def test_tokens_of_the_released_encoder(count, tokens):
    model = nnx.eval_shape(make(XEncoderConfig.vit_l()))
    video = jax.ShapeDtypeStruct((3, count, 256, 256, 3), jnp.float32)
    assert jax.eval_shape(lambda m, x: m(x), model, video).shape == (3, tokens, 1024)


def test_every_token_sees_every_tubelet():
    model = tiny.filled(make(tiny.x_encoder()))
    x = frames(6, 15, 10)[:1]

    @jax.jit
    @functools.partial(jax.grad, argnums=1)
    def influence(model, x, token):
        return jnp.sum(model(x)[0, token] ** 2)

    for token in (0, 7, 17):
        tubelets = np.abs(influence(model, x, token)[0]).reshape(3, 2, 3, 5, 2, 5, 3)
        assert (tubelets.sum(axis=(1, 3, 5, 6)) > 0).all()


@pytest.mark.parametrize("shape", [(3, 20, 35), (4, 21, 35), (4, 20, 33)])
def test_frames_that_do_not_fill_the_grid_are_refused(shape):
    model = nnx.eval_shape(make(tiny.x_encoder()))
    with pytest.raises(ValueError, match="multiple of the tubelet"):
        jax.eval_shape(lambda m, x: m(x), model, frames(*shape))


def test_an_image_that_does_not_fill_a_tubelet_evenly_is_refused():
    model = nnx.eval_shape(make(tiny.x_encoder(tubelet_size=3)))
    with pytest.raises(ValueError, match="2 frames do not repeat evenly into a tubelet of 3"):
        jax.eval_shape(lambda m, x: m(x), model, frames(2, 20, 35))
