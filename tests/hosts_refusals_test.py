"""What a host has otherwise than the others, refused on all before the first step. Two real processes train
again and again; that processes end so is in `distributed_test`."""

import json

import pytest

from tests.processes import on_two_hosts

PROGRAM = """
import contextlib, io, json, shutil
from jax.experimental import multihost_utils
from jepa_jax import flags, train
from jepa_jax.data import cache_features

FROZEN = "--config.optim.factors.x_encoder=0"

def run(main, *arguments):
    given = ["--config=tests/tiny_config.py", f"--config.data.data_dir={folder / 'data'}", "--config.fsdp=1"]
    with contextlib.redirect_stderr(io.StringIO()) as words:
        status = flags.run(main, [*given, "--config.steps=3", *arguments])
    return status, words.getvalue()

status, words = run(cache_features.main, FROZEN, f"--out={folder / 'cache'}")
assert status == 0, words
if index == 0:
    shutil.copytree(folder / "cache", folder / "other")
    manifest = json.loads((folder / "cache" / "features.json").read_text())
    (folder / "other" / "features.json").write_text(json.dumps(manifest | {"x_encoder": "another"}))
    (folder / "file").touch()
multihost_utils.sync_global_devices("made")

cases = {
    "config": ([], ["--config.optim.learning_rate=0.1", "--config.data.threads=2"]),
    "data": ([], [f"--config.data.data_dir={folder / 'file'}"]),
    "workdir": ([f"--workdir={folder / 'first'}"], [f"--workdir={folder / 'second'}"]),
    "cache": ([FROZEN, f"--config.data.features={folder / 'cache'}"], [FROZEN]),
    "weights": tuple([FROZEN, f"--config.data.features={folder / x}"] for x in ("cache", "other")),
}
found = {}
for name, own in cases.items():
    found[name] = run(train.main, f"--workdir={folder / 'runs' / name}", *own[index])
(folder / f"{index}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    ended = on_two_hosts(PROGRAM, folder)
    assert [status for status, _ in ended] == [0, 0], ended
    return folder


def told(folder, name: str) -> tuple[str, str]:
    """What each host said at last; both refused."""
    found = [json.loads((folder / f"{index}.json").read_text())[name] for index in range(2)]
    assert [status for status, _ in found] == [2, 2], found
    return tuple(words.splitlines()[-1] for _, words in found)


@pytest.mark.parametrize(
    ("name", "sentence", "is_made"),
    [
        # Each would update parameters of its own, and end with status 0.
        ("config", "something else: optim.learning_rate is 0.003 on process 0 and 0.1 here: start", False),
        ("data", "{folder}/file", True),
        # Steps of tokens and of frames wait for one another's sums, which are of other sizes.
        ("cache", "something else: data.features is set on process 0 and not set here: start", False),
        # The others would wait for it in the first step, and it for them in its end.
        ("weights", "was made by an X-Encoder of other weights than this run's", True),
    ],
)
def test_what_one_host_has_otherwise_ends_both_before_a_step(folder, name, sentence, is_made):
    first, last = told(folder, name)
    assert first == "error: process 1 could not start, and has said why"
    assert sentence.format(folder=folder) in last
    workdir = folder / "runs" / name
    assert (workdir / "config.json").exists() is is_made
    assert not (workdir / "metrics.jsonl").exists()


def test_hosts_that_share_no_work_directory_are_told_so(folder):
    """A pod's hosts have disks of their own, and the default is a folder on them."""
    first, last = told(folder, "workdir")
    assert "first: 1 of 2 hosts do not see" in first
    assert "second: 1 of 2 hosts do not see" in last
    assert not any(path.name.startswith(".probe") for path in (folder / "first").iterdir())
