"""The training step of every config as JAX prepares it for a GPU, which is where JAX refuses what its GPU
kernels do not take. There is no GPU here: nothing is compiled further, nothing run."""

import dataclasses

import jax
import pytest

from jepa_jax import flags
from jepa_jax.models import attention, layers
from jepa_jax.preflight import abstract_batch
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state
from jepa_jax.step import jit_train_step


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
    for module in (attention, layers):
        monkeypatch.setattr(module, "device_platform", lambda: "gpu")
    config = flags.load_config(f"configs/{name}.py")
    fewer = {
        part: dataclasses.replace(getattr(config.model, part), layers=2)
        for part in ("x_encoder", "predictor", "y_encoder")
    }
    model = dataclasses.replace(config.model, **fewer)
    config = dataclasses.replace(config, model=model, batch_size=8, micro_batches=1, fsdp=2)
    mesh = make_mesh(config.fsdp, jax.devices()[:4])
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        graphdef, state = abstract_state(config, mesh)
        batch = abstract_batch(config, config.data.length_buckets[-1], mesh)
        traced = jit_train_step(state, config).trace(state, batch, graphdef=graphdef, config=config)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("cudnn$fmhaSoftmaxBackward" in program) is kernels
