"""What is asked of a trained model compiles for TPUs, by their own compiler."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jepa_jax import config as c
from jepa_jax import decoder, flags, inference
from jepa_jax.models.attention import attention
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.models.y_decoder import YDecoder
from jepa_jax.preflight import open_topology
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, to_items

pytest.importorskip("libtpu", reason="the TPU's compiler, of the extra `tpu`")
ROWS = 8


@pytest.fixture(autouse=True)
def beside_others(monkeypatch):
    """Other tests may use the same compiler at the same time, and no metadata server answers here."""
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")


def compiles(function, *arguments, **options) -> jax.stages.Compiled:
    compiled = function.lower(*arguments, **options).compile()
    assert compiled.memory_analysis().output_size_in_bytes
    return compiled


@pytest.mark.parametrize(("topology", "chips", "fsdp"), [("v5e:1x1", 1, 1), ("v5p:2x2x1", 4, 2)])
def test_a_model(topology, chips, fsdp):
    """On one chip, and split over several, as at the end of a pod's training."""
    config = flags.load_config("configs/demo.py")
    mesh = make_mesh(fsdp, open_topology(topology)[0][:chips])
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    with jax.set_mesh(mesh):
        params = to_items(abstract_state(config, mesh)[1])["params"]
        graphdef = nnx.split(nnx.eval_shape(lambda: VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0))))[0]
        array = functools.partial(jax.ShapeDtypeStruct, sharding=rows)
        size, (query, target) = config.model.x_encoder.image_size, config.data.length_buckets[-1]
        frames = array((ROWS, config.data.frames, size, size, 3), jnp.uint8)
        seen = jax.eval_shape(functools.partial(inference._encode, graphdef=graphdef), params, frames)
        compiles(inference._encode, params, frames, graphdef=graphdef)
        texts = [(array((ROWS, n), jnp.int32), array((ROWS, n), jnp.bool_)) for n in (query, target)]
        compiles(inference._predict, params, array(seen.shape, seen.dtype), *texts[0], graphdef=graphdef)
        compiles(inference._embed_text, params, *texts[1], graphdef=graphdef)


def test_attention_on_several_chips_writes_no_logits():
    mesh = make_mesh(2, open_topology("v5e:2x2")[0])
    shape, logits = (ROWS, 1024, 8, 64), ROWS * 8 * 1024**2 * 4 // mesh.size
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows)
        compiled = jax.jit(attention).lower(x, x, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_attention_in_every_precision(precision, dtype):
    """Whoever has set JAX_DEFAULT_MATMUL_PRECISION has it set for all models."""
    mesh = make_mesh(1, open_topology("v5e:1x1")[0])
    with jax.set_mesh(mesh), jax.default_matmul_precision(precision):
        x = jax.ShapeDtypeStruct((2, 256, 2, 64), dtype, sharding=NamedSharding(mesh, PartitionSpec()))
        loss = lambda *inputs: jnp.sum(attention(*inputs).astype(jnp.float32))
        compiles(jax.jit(jax.grad(loss, (0, 1, 2))), x, x, x)


@pytest.mark.parametrize(
    ("topology", "function", "options"),
    [
        ("v5e:1x1", decoder._greedy, {}),
        ("v5e:1x1", decoder._beam_search, {"beams": 8}),
        (
            "v5e:1x1",
            decoder._sample,
            {"seed": jnp.uint32, "temperature": jnp.float32, "top_k": jnp.int32, "top_p": jnp.float32},
        ),
        ("v5e:2x2", decoder._beam_search, {"beams": 8}),
    ],
)
def test_a_decoder(topology, function, options):
    """Of several chips each writes its own rows, and none asks another."""
    config = flags.load_config("configs/demo_decoder.py", c.DecoderConfig)
    mesh = make_mesh(1, open_topology(topology)[0])
    array = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        graphdef, state = nnx.split(nnx.eval_shape(lambda: YDecoder(config, 256, rngs=nnx.Rngs(0))))
        state = jax.tree.map(lambda x: array(x.shape, x.dtype), state)
        inputs = [array((ROWS, 256), jnp.float32)]
        if function is decoder._sample:
            inputs.append(array((ROWS,), jnp.int32))
        options = {k: v if isinstance(v, int) else array((), v) for k, v in options.items()}
        options |= {"graphdef": graphdef, "length": config.max_length, "end": 1}
        compiled = compiles(function, state, *inputs, **options)
    assert not re.search(r" (all|collective)-\w+\(", compiled.as_text())
