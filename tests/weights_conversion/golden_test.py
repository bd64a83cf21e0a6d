"""Parity with the references' stored outputs, without PyTorch; with it, the outputs are made again."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.processes import environment

FOLDER = pathlib.Path(__file__).parent.parent / "golden"
NAMES = ("vjepa2", "llama", "gemma", "bert")
# Run in a process where PyTorch cannot be imported.
PROGRAM = """
import sys
sys.modules["torch"] = None
import pathlib
import numpy as np
import jepa_jax
from jepa_jax import flags
from jepa_jax.data.tokenizer import Tokenizer
from weights_conversion.__main__ import main
golden, out = map(pathlib.Path, sys.argv[1:])
length = 23
mask = np.arange(length) < np.array([[length], [13]])
ids = ((np.arange(2 * length).reshape(2, length) * 7 + 3) % 41).astype(np.int32)
shape = (2, 4, 35, 35, 3)
t = np.arange(np.prod(shape)).reshape(shape)
frames = (t * t // 37 % 256).astype(np.uint8)
found = {}
for name in ("vjepa2", "llama", "gemma", "bert"):
    assert flags.run(main, [f"--source={golden / name}", f"--out={out / name}"]) == 0
    model = jepa_jax.load(out / name)
    if name == "vjepa2":
        found[name] = model.encode_video(frames)[:, ::7]
    elif name == "llama":
        found[name] = model.logits(ids, mask)
    else:
        x = np.asarray(model.module(ids, mask))
        found[name] = x / np.linalg.norm(x, axis=1, keepdims=True)
assert sys.modules["torch"] is None
np.savez(out / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("golden")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(FOLDER), str(out)],
        cwd=FOLDER.parent.parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(out / "found.npz")


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_are_reached_without_pytorch(name, found):
    expected = np.load(FOLDER / "outputs.npz")[name]
    actual = found[name]
    if name == "llama":  # the states of padding mean nothing
        mask = tiny.right_padded([23, 13], 23)
        actual, expected = actual[mask], expected[mask]
    tiny.assert_close(actual, expected, 2e-5)


def test_the_stored_outputs_are_the_reference_s():
    pytest.importorskip("torch", reason="making them again needs PyTorch, of the extra `convert`")
    from tests.golden import make

    stored = np.load(FOLDER / "outputs.npz")
    for name, x in make.outputs(FOLDER).items():
        tiny.assert_close(stored[name], x, 2e-6)


def test_the_golden_files_are_small():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 1_000_000
