"""What hosts know of one another: two real processes that compute next to nothing."""

import pytest

from jepa_jax import distributed
from jepa_jax.data.bad_records import BadRecords, TooManyBadRecordsError
from jepa_jax.data.records import BadRecordError
from tests.processes import on_two_hosts

HOSTS = """
import types
from contextlib import nullcontext
from unittest import mock
import numpy as np
from etils import epath
from jepa_jax import distributed, embed, flags, inference, loop
from jepa_jax.sharding import make_mesh, sum_over_hosts
from tests.tiny_config import config
from tests.search_test import COUNT, Colours, ColourModel, embedding

mesh = make_mesh()
with jax.set_mesh(mesh):
    assert sum_over_hosts(np.array([3, 5 * index]), mesh).tolist() == [6, 5]

def refusal(function, *arguments):
    try:
        return function(*arguments)
    except flags.UsageError as error:
        return str(error)

assert refusal(distributed.check_alike, {"data": "x", "jax": "1"}) is None
found = refusal(distributed.check_alike, {"data": "x" + "y" * index})
assert ("data is x on process 0 and xy here" if index else "process 1 could not start") in found

same, other = (types.SimpleNamespace(identity="x" + "y" * i) for i in (0, index))
identity = lambda *of: loop.identity_of([of[0]], [of[1]])
assert refusal(loop.check_inputs, identity(same, same), same) is None
for inputs in ((identity(other, same), same), (identity(same, other), same), (identity(same, same), other)):
    found = refusal(loop.check_inputs, *inputs)
    assert ("the checksum of" if index else "process 1 could not start") in found

with jax.default_matmul_precision("highest" if index else "default"):
    found = refusal(loop.check_hosts, config)
assert ("JAX_DEFAULT_MATMUL_PRECISION is default on" if index else "process 1 could not start") in found

inference.load, embed.DatasetCollection = lambda _, **how: ColourModel(), Colours
def made(out):
    main, *arguments = embedding(out)
    return main(["--checkpoint=x", *arguments])
assert made(folder / "shared") == 0
assert "1 of 2 hosts do not see" in refusal(made, folder / f"own-{index}")
refuse = OSError(30, "Read-only")
with mock.patch.object(type(epath.Path()), "write_text", side_effect=refuse) if index else nullcontext():
    found = refusal(made, folder / "read-only")
assert ("read-only cannot be written: [Errno 30] Read" if index else "process 1 could not start") in found
if index:
    Colours.__getitem__ = mock.Mock(side_effect=OSError("Input/output error"))
made(folder / "fails")
"""


def test_hosts_tell_one_another_what_differs_and_what_failed(tmp_path):
    (status, first), (last_status, last) = on_two_hosts(HOSTS, tmp_path, devices=3)
    assert (status, last_status) == (1, 1), first + last
    assert "process 0 of 2 stops, for another host was lost" in first
    assert "(Input/output error); start the same command on all hosts again" in last
    assert not list(tmp_path.glob("*/.probe*"))


CONNECTED = """
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec
from jepa_jax import distributed
from jepa_jax.sharding import make_mesh

# JAX tells nobody which processes are connected: only its coordination service has the addresses.
client = jax._src.distributed.global_state.client
def connections():
    multihost_utils.sync_global_devices("made")
    return sorted(key for key, _ in client.key_value_dir_get_bytes("cpu:gloo"))

mesh, before = make_mesh(2), connections()
distributed.connect(mesh)
made = connections()
assert len(made) > len(before), made
with jax.set_mesh(mesh):
    for axes in ("data", "fsdp", ("data", "fsdp")):
        gather = lambda x: jax.lax.all_gather(x, axes, tiled=True)
        whole = PartitionSpec()
        gather = jax.shard_map(gather, in_specs=whole, out_specs=whole, check_vma=False)
        jax.block_until_ready(jax.jit(gather)(jax.numpy.zeros(4)))
assert (found := connections()) == made, (made, found)
"""


def test_a_host_that_compiles_longer_than_another_finds_it_connected(tmp_path):
    """What a step adds up between devices needs no connection that its hosts did not make at the start."""
    ended = on_two_hosts(CONNECTED, tmp_path, devices=2)
    assert [status for status, _ in ended] == [0, 0], ended


def test_ctrl_c_on_one_host_leaves_none_waiting(monkeypatch, capsys):
    """A normal end waits for the others, who wait for this one."""
    ended = []
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "end_at_once", ended.append)
    with distributed.ending_together("runs/x"):
        raise KeyboardInterrupt
    assert ended == [130]
    assert capsys.readouterr().err == "stopped\n"


def test_bad_records_count_against_the_limit_over_all_hosts():
    """25 of 400 are 6%, but of the 4000 of all hosts less than one."""
    few = [BadRecordError("text empty", f"clip {i}") for i in range(25)]
    here = BadRecords(0.05, alone=False)
    here.read(400, few)
    assert here.take().tolist() == [400, 25, 25]
    here.count(4000, 30, 31)
    assert here.total == 31
    assert here.take().tolist() == [0, 0, 0]
    elsewhere = BadRecords(0.05, alone=False)
    elsewhere.read(400, [])
    with pytest.raises(TooManyBadRecordsError, match=r"400 of 4000 records read .* other hosts name them"):
        elsewhere.count(4000, 400, 400)
    with pytest.raises(TooManyBadRecordsError, match="25 of 400"):
        BadRecords(0.05).read(400, few)
