"""Modules of sentence-transformers that are wrong, elsewhere or not built: as `bad_input_test.py`."""

import json

import pytest

pytest.importorskip("torch", reason="the sources are written with PyTorch, of the extra `convert`")

from jepa_jax import flags
from tests.weights_conversion.folders import copy, edit, one_line
from weights_conversion.__main__ import main


@pytest.mark.parametrize("path", ["../..", "/tmp"])
def test_modules_that_lead_out_of_their_folder(path, whole, tmp_path, refused):
    source = copy(whole, "gemma", tmp_path)
    modules = json.loads((source / "modules.json").read_text())
    modules[2]["path"] = path
    (source / "modules.json").write_text(json.dumps(modules))
    assert "lies outside of it: refused" in one_line(refused(source))


def test_modules_that_are_not_built(whole, tmp_path, refused):
    source = copy(whole, "gemma", tmp_path)
    edit(source / "2_Dense" / "config.json", bias=True)
    assert "only plain ones are built" in one_line(refused(source))
    edit(
        source / "2_Dense" / "config.json", bias=False, activation_function="torch.nn.modules.activation.Tanh"
    )
    assert "Tanh; only plain ones are built" in one_line(refused(source))
    config = json.loads((source / "2_Dense" / "config.json").read_text())
    del config["activation_function"]  # sentence-transformers takes Tanh then
    (source / "2_Dense" / "config.json").write_text(json.dumps(config))
    assert "Tanh; only plain ones are built" in one_line(refused(source))
    edit(source / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    assert "pools by ['max_tokens']" in one_line(refused(source))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_residual", True),
        ("module_input_name", "token_embeddings"),
        ("module_output_name", "another_embedding"),
    ],
)
def test_a_dense_head_that_does_more_or_elsewhere(name, value, whole, tmp_path, refused):
    """Where it keeps the width, its tensors are those of a plain one."""
    source = copy(whole, "gemma", tmp_path)
    edit(source / "2_Dense" / "config.json", **{name: value})
    assert f"a Dense head with {name}={value!r}; only plain ones are built" in one_line(refused(source))
    # Left out, it may be what it likes.
    assert flags.run(main, [f"--source={source}", f"--out={tmp_path / 'part'}", "--no-dense-heads"]) == 0


@pytest.mark.parametrize("file", ["modules.json", "1_Pooling/config.json", "2_Dense/config.json"])
@pytest.mark.parametrize("text", ["3", "null", '"x"'])
def test_a_module_s_file_of_another_form(file, text, whole, tmp_path, refused):
    source = copy(whole, "gemma", tmp_path)
    (source / file).write_text(text)
    assert f"{file} does not hold the JSON" in one_line(refused(source))


def test_files_that_name_no_module_pool_length_or_shard(whole, tmp_path, refused):
    source = copy(whole, "gemma", tmp_path)
    for length in ("long", [3], -3):
        (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
        assert f"max_seq_length={length!r} must be a number" in one_line(refused(source))
    edit(source / "1_Pooling" / "config.json", pooling_mode=["mean"])
    assert "pools by" in one_line(refused(source))
    (source / "modules.json").write_text("[1]")
    assert "lists 1, which is no module" in one_line(refused(source))
    source = copy(whole, "shards", tmp_path)
    (source / "model.safetensors.index.json").write_text("[]")
    assert "index.json does not hold the JSON object" in one_line(refused(source))
