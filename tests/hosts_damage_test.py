"""What one host of two cannot read is read by none: arrays of checkpoints and of converted parts."""

import numpy as np
import pytest

from jepa_jax import parts
from jepa_jax.config import LlamaConfig
from tests.processes import on_two_hosts

ARRAYS = """
import threading

import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import PyTreeCheckpointHandler, StandardCheckpointHandler

from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError
from jepa_jax.config import CheckpointConfig
from jepa_jax.parts import open_part
from jepa_jax.sharding import make_mesh

def on_one_host(handler, otherwise):
    whole = handler.restore
    def restore(self, directory, *arguments, **options):
        found = lambda: whole(self, directory, *arguments, **options)
        return otherwise(directory, found) if index == 1 else found()
    handler.restore = restore
    return lambda: setattr(handler, "restore", whole)

def not_in_time(directory, found):
    raise TimeoutError

mesh = make_mesh(2)
"""

CHECKPOINTS = """
place = NamedSharding(mesh, PartitionSpec("fsdp"))
x = jax.jit(lambda: jnp.arange(14.0), out_shardings=place)()
items = {"params": {"x": x}, "training": {"x": 2 * x}}
template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)
config = CheckpointConfig(keep=3, best_metric="loss")
first = Checkpointer(folder, config)
for step in (1, 2):
    first.save(step, items, {"step": step}, {"loss": 1.0})
first.close()

seen = folder
if index == 1:  # whose file system is slow to tell, or who looked before the last was there
    seen = folder.with_name("seen")
    seen.mkdir()
    (seen / "1").symlink_to(folder / "1")
other = Checkpointer(seen, config)
assert other.steps() == ([1] if index else [1, 2])
if index == 1:
    threading.Timer(1.5, (seen / "2").symlink_to, [folder / "2"]).start()
assert other.restore_latest(template)[0] == 2
other.close()

on_one_host(
    StandardCheckpointHandler, lambda folder, found: not_in_time(0, 0) if "2" in folder.parts else found()
)
again = Checkpointer(folder, config)
assert again.restore_latest(template)[0] == 1
again.save(2, items, {"step": 2}, {"loss": 1.0})
again.close()
assert again.steps() == [1, 2]

if index == 0:  # what is of this host alone waits for no other
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = {"params": {"x": jax.ShapeDtypeStruct((14,), jnp.float32, sharding=here)}}
    reader = Checkpointer(folder, config, read_only=True)
    assert reader.restore_latest(template)[1]["params"]["x"].tolist() == list(range(14))
    reader.close()
"""


def test_a_checkpoint_that_one_host_cannot_read_is_none_for_all_and_can_be_saved_again(tmp_path):
    folder = tmp_path / "checkpoints"
    (status, first), (last_status, last) = on_two_hosts(ARRAYS + CHECKPOINTS, folder)
    assert (status, last_status) == (0, 0), first + last
    assert "2 is damaged (process 1 found it damaged)" in first
    assert "2 is damaged (TimeoutError)" in last
    assert (tmp_path / "damaged-2").is_dir()


PART = """
part = open_part(folder)
everywhere = NamedSharding(mesh, PartitionSpec())
if index == 0:
    assert part.read()["x"].tolist() == [0, 1, 2]

def refusal():
    try:
        part.read({"x": everywhere})
    except DamagedCheckpointError as error:
        return str(error).removeprefix(str(folder))

assert refusal() is None
for otherwise, sentence in (
    (not_in_time, ": TimeoutError"),
    (lambda folder, found: {"x": 2 * found()["x"]}, ": x differs from what was written; convert it again"),
    (lambda folder, found: {"x": ...}, " lacks x: convert it again"),
):
    back = on_one_host(PyTreeCheckpointHandler, otherwise)
    found = refusal()
    assert found == (sentence if index else "process 1 found it damaged"), found
    back()
"""


@pytest.fixture
def part(tmp_path):
    array = np.arange(3, dtype=np.float32)
    lazy = parts.LazyArray(array.shape, array.dtype, lambda: array)
    config = LlamaConfig(
        vocab_size=8, width=4, layers=1, heads=1, kv_heads=1, head_size=4, mlp_width=4, rope_theta=1e4
    )
    parts.write(tmp_path, "predictor", config, {"x": lazy}, max_length=None, provenance={})
    return tmp_path


def test_a_converted_part_that_one_host_cannot_read_is_refused_on_all(part):
    ended = on_two_hosts(ARRAYS + PART, part)
    assert [status for status, _ in ended] == [0, 0], ended
