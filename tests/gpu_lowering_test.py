"""The training step of every config as JAX prepares it for a GPU, which is where JAX refuses what its GPU
kernels do not take. There is no GPU here: nothing is compiled further, nothing run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jepa_jax import flags, inference
from jepa_jax.config import Config
from jepa_jax.models import attention, layers
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.preflight import abstract_batch
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, to_items
from jepa_jax.step import jit_train_step


def on_gpus(name: str, monkeypatch) -> Config:
    """A config with few layers, and a program that takes its devices for GPUs."""
    for module in (attention, layers):
        monkeypatch.setattr(module, "device_platform", lambda: "gpu")
    config = flags.load_config(f"configs/{name}.py")
    fewer = {
        part: dataclasses.replace(getattr(config.model, part), layers=2)
        for part in ("x_encoder", "predictor", "y_encoder")
    }
    model = dataclasses.replace(config.model, **fewer)
    return dataclasses.replace(config, model=model, batch_size=8, micro_batches=1, fsdp=2)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_model_is_prepared_for_gpus(devices, prepares_for_gpus, monkeypatch):
    """On one, and on several as at the end of a training."""
    config = on_gpus("pretrain_video", monkeypatch)
    mesh = make_mesh(min(devices, 2), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        params = to_items(abstract_state(config, mesh)[1])["params"]
        graphdef = nnx.split(nnx.eval_shape(lambda: VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0))))[0]
        x_encoder = config.model.x_encoder
        shape = (8, x_encoder.visual_tokens(config.data.frames), x_encoder.width)
        texts = [jax.ShapeDtypeStruct((8, 16), dtype) for dtype in (jnp.int32, jnp.bool_)]
        visual = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        traced = inference._predict.trace(params, visual, *texts, graphdef=graphdef)
        assert "cudnn$fmhaSoftmax" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("demo", False),  # float32, as the next two
        ("my_videos", False),
        ("benchmark_cpu", False),
        ("pretrain_images", True),
        ("pretrain_video", True),
        ("pretrain_long_video", True),
        ("finetune", True),
        ("open", True),
    ],
)
def test_a_step_is_prepared_for_gpus(name, kernels, prepares_for_gpus, monkeypatch):
    config = on_gpus(name, monkeypatch)
    mesh = make_mesh(config.fsdp, jax.devices()[:4])
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        graphdef, state = abstract_state(config, mesh)
        batch = abstract_batch(config, config.data.length_buckets[-1], mesh)
        traced = jit_train_step(state, config).trace(state, batch, graphdef=graphdef, config=config)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("cudnn$fmhaSoftmaxBackward" in program) is kernels
