"""Every field of the model's configuration changes something: the parameters' shapes, the output
at the same parameters, or the program. The fields of the optimizer are in `optim_test.py`."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pydantic import TypeAdapter

from jepa_jax import config as c
from jepa_jax.data import pipeline
from jepa_jax.data.records import Media, Pair, Record
from jepa_jax.models.predictor import Predictor
from jepa_jax.models.vl_jepa import VLJEPA, make_y_encoder
from jepa_jax.models.x_encoder import XEncoder
from jepa_jax.step import train_step
from tests import tiny
from tests.records import Records

# What each field is changed to, and what that must change.
X_ENCODER = {
    "width": (60, "shapes"),
    "layers": (3, "shapes"),
    "heads": (6, "output"),
    "mlp_width": (83, "shapes"),
    "image_size": (20, "data"),
    "patch_size": (7, "shapes"),
    "tubelet_size": (3, "shapes"),
    "norm_eps": (0.1, "output"),
    "rope_theta": (100.0, "output"),
    "tiled_rope": (False, "output"),
}
LLAMA = {
    "vocab_size": (47, "shapes"),
    "width": (58, "shapes"),
    "layers": (3, "shapes"),
    "heads": (4, "shapes"),
    "kv_heads": (3, "shapes"),
    "head_size": (10, "shapes"),
    "mlp_width": (71, "shapes"),
    "rope_theta": (100.0, "output"),
    "rope_scaling": (None, "output"),
    "norm_eps": (0.1, "output"),
    "causal": (True, "output"),
}
ROPE_SCALING = {
    "factor": (2.0, "output"),
    "low_frequency_factor": (3.0, "output"),
    "high_frequency_factor": (7.0, "output"),
    "original_length": (97, "output"),
}
Y_ENCODER = {
    "vocab_size": (47, "shapes"),
    "width": (53, "shapes"),
    "layers": (2, "shapes"),
    "heads": (2, "shapes"),
    "kv_heads": (3, "shapes"),
    "head_size": (10, "shapes"),
    "mlp_width": (59, "shapes"),
    "window": (2, "output"),
    "full_every": (2, "output"),
    "rope_theta_sliding": (10.0, "output"),
    "rope_theta_full": (10.0, "output"),
    "query_scalar": (50.0, "output"),
    "norm_eps": (0.1, "output"),
    "dense_widths": ((29,), "shapes"),
    "kind": ("bert", "tag"),
}
BERT = {
    "vocab_size": (47, "shapes"),
    "width": (69, "shapes"),
    "layers": (3, "shapes"),
    "heads": (1, "output"),
    "mlp_width": (59, "shapes"),
    "max_length": (31, "shapes"),
    "types": (3, "shapes"),
    "norm_eps": (0.1, "output"),
    "pool": ("first", "output"),
    "kind": ("gemma3", "tag"),
}
MODEL = {
    "x_encoder": (tiny.x_encoder(layers=3), "shapes"),
    "predictor": (tiny.llama(layers=3), "shapes"),
    "y_encoder": (tiny.y_encoder(layers=2), "shapes"),
    "embedding_size": (31, "shapes"),
    "y_projection": (False, "shapes"),
    "compute_dtype": ("bfloat16", "program"),
    "remat": ("layer", "program"),
    "scan_layers": (True, "program"),
}
LOSS = {"temperature", "learnable_temperature", "max_logit_scale"}
# Tested in tests/losses: each at a value that is not its default, against the objective's definition.
OBJECTIVES = {
    "objective",
    "chunk",
    "sigmoid_bias",
    "variance_weight",
    "covariance_weight",
    "sigreg_weight",
    "sigreg_directions",
    "sigreg_knots",
}


def cases(config_class, changes):
    """Every field of a config with its change; a field without one fails."""
    return [
        pytest.param(field.name, *changes.get(field.name, (None, "unlisted")), id=field.name)
        for field in dataclasses.fields(config_class)
    ]


def x_encoder(config: c.XEncoderConfig):
    frames = tiny.normal(tiny.BATCH, 6, 20, 35, 3)
    return lambda: XEncoder(config, **tiny.options()), (frames,)


def predictor(config: c.LlamaConfig):
    visual, batch = tiny.normal(tiny.BATCH, 13, 19), tiny.batch()
    return (
        lambda: Predictor(config, 19, 23, **tiny.options()),
        (visual, batch["query"], np.ones_like(batch["query_mask"])),
    )


def y_encoder(config: c.YEncoderConfig | c.BertConfig):
    batch = tiny.batch()
    return (
        lambda: make_y_encoder(config, 23, **tiny.options()),
        (batch["target"], np.ones_like(batch["target_mask"])),
    )


@functools.cache
def output(part, config):
    make, arguments = part(config)
    return np.asarray(tiny.run(tiny.filled(make), *arguments))


def shapes(make) -> dict:
    return {name: x.shape for name, x in tiny.parameters(nnx.eval_shape(make)).items()}


def assert_changes(part, before, after, kind: str) -> None:
    """The shapes of the parameters, or the output at equal parameters, and by more than rounding."""
    same_shapes = shapes(part(before)[0]) == shapes(part(after)[0])
    if kind == "shapes":
        assert not same_shapes
    else:
        assert kind == "output", f"{kind} field: list it here with what it changes"
        assert same_shapes
        assert tiny.relative_error(output(part, after), output(part, before)) > 1e-3


@pytest.mark.parametrize(("name", "value", "kind"), cases(c.XEncoderConfig, X_ENCODER))
def test_every_field_of_the_x_encoder(name, value, kind):
    before = tiny.x_encoder()
    # A patch must divide the image, which the encoder itself does not look at.
    extra = {"image_size": 70} if name == "patch_size" else {}
    after = tiny.x_encoder(**{name: value}, **extra)
    if kind == "data":
        sizes = [frames_of_a_batch(config).shape[2:4] for config in (before, after)]
        assert sizes == [(35, 35), (20, 20)]
    else:
        assert_changes(x_encoder, before, after, kind)


def frames_of_a_batch(x_encoder: c.XEncoderConfig) -> np.ndarray:
    """Frames as the pipeline crops them for an encoder."""
    record = Record(
        name="a",
        media=Media(content=tiny.pixels(4, 41, 53, 3), kind="frames"),
        pairs=(Pair(query="what?", targets=("a thing",)),),
    )

    class Tokenizer:
        def batch(self, texts, length):
            shape = (len(texts), length)
            return np.zeros(shape, np.int32), np.ones(shape, bool)

    config = tiny.run_config(model=tiny.model(x_encoder=x_encoder), data=c.DataConfig(frames=4))
    source = Records([record] * 3)
    return pipeline.batches(config, [source], (Tokenizer(), Tokenizer()))[0].arrays["frames"]


@pytest.mark.parametrize(("name", "value", "kind"), cases(c.LlamaConfig, LLAMA))
def test_every_field_of_the_predictor(name, value, kind):
    assert_changes(predictor, tiny.llama(), tiny.llama(**{name: value}), kind)


@pytest.mark.parametrize(("name", "value", "kind"), cases(c.RopeScaling, ROPE_SCALING))
def test_every_field_of_the_rope_scaling(name, value, kind):
    before = tiny.llama()
    scaling = dataclasses.replace(before.rope_scaling, **{name: value})
    assert_changes(predictor, before, tiny.llama(rope_scaling=scaling), kind)


@pytest.mark.parametrize(("name", "value", "kind"), cases(c.YEncoderConfig, Y_ENCODER))
def test_every_field_of_the_y_encoder(name, value, kind):
    if kind == "tag":
        assert_is_the_tag(tiny.y_encoder(), value)
    else:
        assert_changes(y_encoder, tiny.y_encoder(), tiny.y_encoder(**{name: value}), kind)


@pytest.mark.parametrize(("name", "value", "kind"), cases(c.BertConfig, BERT))
def test_every_field_of_a_bert(name, value, kind):
    if kind == "tag":
        assert_is_the_tag(tiny.bert(), value)
    else:
        assert_changes(y_encoder, tiny.bert(), tiny.bert(**{name: value}), kind)


def assert_is_the_tag(config, other: str) -> None:
    """`kind` tells the configurations of text encoders apart in a file: the class goes with it."""
    tree = dataclasses.asdict(tiny.model(y_encoder=config))
    read = TypeAdapter(c.ModelConfig).validate_json(json.dumps(tree))
    assert read.y_encoder == config
    tree["y_encoder"]["kind"] = other
    with pytest.raises(ValueError, match=f"y_encoder.{other}"):
        TypeAdapter(c.ModelConfig).validate_json(json.dumps(tree))


def whole(config: c.ModelConfig):
    return lambda: VLJEPA(config, c.LossConfig(), rngs=nnx.Rngs(0))


def program(config: c.ModelConfig) -> set[str]:
    """The operations of the forward pass, each with the type of its result."""
    batch = jax.tree.map(jnp.asarray, tiny.batch())

    def forward(model):
        visual = model.encode_frames(batch["frames"])
        predicted = model.predict(visual, batch["query"], batch["query_mask"])
        return predicted, model.embed_text(batch["target"], batch["target_mask"])

    jaxpr = jax.make_jaxpr(forward)(nnx.eval_shape(whole(config))).jaxpr
    return {f"{e.primitive.name} {e.outvars[0].aval.dtype}" for e in tiny.operations(jaxpr) if e.outvars}


@pytest.mark.parametrize(("name", "value", "kind"), cases(c.ModelConfig, MODEL))
def test_every_field_of_the_model(name, value, kind):
    # Without its projection the Y-Encoder's own width is that of the shared space.
    base = {"embedding_size": 17} if name == "y_projection" else {}
    before, after = tiny.model(**base), tiny.model(**base, **{name: value})
    if kind == "shapes":
        old, new = shapes(whole(before)), shapes(whole(after))
        changed = {key[0] for key in old if old[key] != new.get(key)}
        of = {"embedding_size": {"predictor", "y_encoder"}, "y_projection": {"y_encoder"}}
        assert changed == of.get(name, {name})
        return
    assert kind == "program", f"{kind} field: list it here with what it changes"
    assert shapes(whole(before)) == shapes(whole(after))
    marks = {"compute_dtype": "bfloat16", "remat": "remat", "scan_layers": "scan"}
    assert not any(marks[name] in line for line in program(before))
    assert any(marks[name] in line for line in program(after))


def test_no_field_of_the_loss_is_forgotten():
    assert {f.name for f in dataclasses.fields(c.LossConfig)} == LOSS | OBJECTIVES


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_temperature_is_where_it_starts(temperature):
    loss = c.LossConfig(temperature=temperature)
    start = jax.jit(lambda: VLJEPA(tiny.model(), loss, rngs=nnx.Rngs(0)).log_logit_scale[...])()
    np.testing.assert_allclose(jnp.exp(start), 1 / temperature, rtol=1e-6)


@pytest.mark.parametrize("learnable", [True, False])
def test_a_fixed_temperature_is_frozen(learnable):
    _, state = tiny.state(tiny.run_config(loss=c.LossConfig(learnable_temperature=learnable)))
    tree = state.trained if learnable else state.frozen
    assert ("log_logit_scale",) in tiny.parameters(tree)


@pytest.mark.parametrize("largest", [15.0, 100.0])
def test_a_step_caps_the_inverse_temperature(largest):
    config = tiny.run_config(
        loss=c.LossConfig(max_logit_scale=largest),
        # Without clipping nothing but the temperature's own gradient is needed for its update.
        optim=dataclasses.replace(tiny.run_config().optim, clip_norm=None),
    )
    graphdef, state = tiny.state(config)
    state.trained["log_logit_scale"][...] = jnp.float32(math.log(20.0))

    @jax.jit
    def inverse_temperature(state, batch):
        after, _ = train_step(state, batch, graphdef, config)
        return jnp.exp(after.trained["log_logit_scale"][...])

    after = inverse_temperature(state, tiny.batch())
    np.testing.assert_allclose(after, min(largest, 20.0), rtol=1e-6 if largest < 20 else 0.011)
    assert largest < 20 or after != 20
