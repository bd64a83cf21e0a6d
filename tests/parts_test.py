"""Converted parts on disk: streamed out, checked on the way in, placed on any mesh."""

import json
import pathlib
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jepa_jax import inference, parts
from jepa_jax.checkpoint import DamagedCheckpointError
from jepa_jax.flags import UsageError
from jepa_jax.parts import LazyArray, NotAPartError
from jepa_jax.sharding import make_mesh, parameter_shardings
from tests import tiny

CONFIG = tiny.llama(width=64, vocab_size=264)


def weights(config=CONFIG, name: str = "predictor") -> dict[str, np.ndarray]:
    shapes = parts.flatten(nnx.state(parts.abstract_module(name, config)))
    return {
        path: np.asarray(tiny.random_weight(tuple(path.split("/")), x.shape), np.float32)
        for path, x in shapes.items()
    }


def write(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], name="predictor", config=CONFIG
) -> pathlib.Path:
    """A part without a source."""
    folder.mkdir(parents=True)
    lazy = {path: LazyArray(x.shape, x.dtype, lambda x=x: x) for path, x in arrays.items()}
    parts.write(folder, name, config, lazy, max_length=None, provenance={"source": "random"})
    return folder


def test_what_is_read_is_what_was_written(tmp_path):
    arrays = weights()
    arrays["token_embedding"] = arrays["token_embedding"].astype(ml_dtypes.bfloat16)
    part = parts.open_part(write(tmp_path / "part", arrays))
    assert (part.name, part.config, part.provenance) == ("predictor", CONFIG, {"source": "random"})
    found = part.read()
    assert found.keys() == arrays.keys()
    for path, x in arrays.items():
        assert found[path].dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(found[path]), x, err_msg=path)
    some = part.select({"token_embedding"}).read()
    assert list(some) == ["token_embedding"]


def test_memory_holds_two_arrays_however_many_are_written(tmp_path):
    alive, most = 0, 0

    def let_go():
        nonlocal alive
        alive -= 1

    def make():
        nonlocal alive, most
        array = np.ones((300, 7), np.float32)
        weakref.finalize(array, let_go)
        alive += 1
        most = max(most, alive)
        return array

    lazy = {f"a/{i}": LazyArray((300, 7), np.dtype(np.float32), make) for i in range(12)}
    (tmp_path / "part").mkdir()
    parts.write(tmp_path / "part", "predictor", CONFIG, lazy, max_length=None, provenance={})
    # The one being written, and at most the one before it, which a thread may still be letting go.
    assert most <= 2


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_a_mesh_gets_the_numbers_that_one_device_gets(fsdp, tmp_path):
    arrays = weights()
    part = parts.open_part(write(tmp_path / "part", arrays))
    shardings = parameter_shardings(part.shapes, make_mesh(fsdp))
    found = part.read(shardings)
    split = [path for path, x in found.items() if not x.sharding.is_fully_replicated]
    assert bool(split) == (fsdp > 1)
    for path, x in arrays.items():
        assert found[path].sharding == shardings[path]
        np.testing.assert_array_equal(np.asarray(found[path]), x)


def test_a_changed_byte_is_noticed(tmp_path):
    folder = write(tmp_path / "part", weights())
    largest = max((f for f in (folder / "params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(len(data) // 3, len(data), len(data) // 5):
        data[place] ^= 1
    largest.write_bytes(bytes(data))
    with pytest.raises(DamagedCheckpointError, match="part"):
        parts.open_part(folder).read()


def test_another_checksum_is_noticed(tmp_path):
    folder = write(tmp_path / "part", weights())
    content = json.loads((folder / "part.json").read_text())
    content["arrays"]["llama/norm/scale"]["checksum"] ^= 1
    (folder / "part.json").write_text(json.dumps(content))
    with pytest.raises(DamagedCheckpointError, match="llama/norm/scale differs from what was written"):
        parts.open_part(folder).read()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "has format 99, this version reads 1"),
        ({"part": "z_encoder"}, "does not describe a part"),
        ({"config": {"width": 3}}, "does not describe a part"),
        ({"arrays": {"x": {}}}, "does not describe a part"),
        ({"arrays": []}, "does not describe a part"),
        ({"max_length": 0}, "does not describe a part"),
        ({"max_length": "512"}, "does not describe a part"),
    ],
)
def test_what_describes_no_part_is_refused(change, words, tmp_path):
    file = write(tmp_path / "part", weights()) / "part.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(NotAPartError, match=words):
        parts.open_part(tmp_path / "part")


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000], ids=["no UTF-8", "nested without end"])
def test_a_description_that_cannot_be_read_is_refused(content, tmp_path):
    (write(tmp_path / "part", weights()) / "part.json").write_bytes(content)
    with pytest.raises(NotAPartError, match="does not describe a part"):
        parts.open_part(tmp_path / "part")


def test_arrays_that_are_not_those_of_the_description_are_one_sentence(tmp_path):
    file = write(tmp_path / "part", weights()) / "part.json"
    content = json.loads(file.read_text())
    name, about = next(iter(content["arrays"].items()))
    file.write_text(json.dumps(content | {"arrays": content["arrays"] | {"another": about}}))
    with pytest.raises(UsageError, match="lacks another: convert it again"):
        inference.load(tmp_path / "part")
    del content["arrays"][name]
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"the arrays do not fit the model: {name}"):
        inference.load(tmp_path / "part")


def test_a_folder_without_a_part_says_how_to_make_one(tmp_path):
    with pytest.raises(NotAPartError, match="python -m weights_conversion --source=SOURCE --out="):
        parts.open_part(tmp_path)


def test_a_state_takes_exactly_its_own_arrays():
    _, template = nnx.split(parts.abstract_module("predictor", CONFIG))
    arrays = {path: jax.numpy.asarray(x, jax.numpy.bfloat16) for path, x in weights().items()}
    filled = parts.flatten(parts.filled(template, arrays))
    assert {x.dtype for x in filled.values()} == {np.dtype(np.float32)}
    for path, x in arrays.items():
        np.testing.assert_array_equal(np.asarray(filled[path]), np.asarray(x, np.float32))
    with pytest.raises(ValueError, match="do not fit the model: llama/norm/scale"):
        parts.filled(template, {path: x for path, x in arrays.items() if path != "llama/norm/scale"})
    with pytest.raises(ValueError, match="do not fit the model: extra"):
        parts.filled(template, arrays | {"extra": np.zeros(3)})
