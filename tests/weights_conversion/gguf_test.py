"""GGUF: permuted rows, norms as 1 + w, quantised tensors, rotary scaling as divisors."""

import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the references are PyTorch's, of the extra `convert`")
gguf = pytest.importorskip("gguf", reason="the sources are written with gguf, of the extra `convert`")

from jepa_jax import flags, parts
from jepa_jax.config import RopeScaling
from jepa_jax.models.layers import rope_frequencies
from tests.weights_conversion import folders
from tests.weights_conversion.formats_test import arrays, assert_same, convert
from weights_conversion.__main__ import main

BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA = BLOCK | {"ffn_norm": "post_attention_layernorm"}
GEMMA = BLOCK | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def write(
    path: pathlib.Path, kind: str, config, tensors: dict, numbers: dict, *, tokenizer: str | None = None
) -> pathlib.Path:
    writer = gguf.GGUFWriter(path, kind)
    if tokenizer is not None:
        writer.add_tokenizer_model(tokenizer)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
    for name, value in numbers.items():
        add[type(value)](f"{kind}.{name}", value)
    for name, x in tensors.items():
        if isinstance(x, tuple):  # already quantised: (bytes, type)
            writer.add_tensor(name, x[0], raw_dtype=x[1])
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_tensors(model) -> dict[str, np.ndarray]:
    """As llama.cpp stores a Llama: rows of query and key in neighbouring pairs."""
    state, config = model.state_dict(), model.config
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    for i in range(config.num_hidden_layers):
        for theirs, ours in LLAMA.items():
            x = state[f"model.layers.{i}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                count = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                x = folders.neighbours(x, count)
            found[f"blk.{i}.{theirs}.weight"] = x
    return {name: x.numpy() for name, x in found.items()}


def test_a_llama_is_hugging_face_s(tmp_path):
    """The file has the divisors that the rotary scaling makes, not the scaling's own numbers."""
    scaling = RopeScaling(factor=4.0)
    model = folders.llama(2, head_size=22, rope_theta=500_000.0, rope_scaling=scaling)
    tensors = llama_tensors(model)
    divisors = rope_frequencies(22, 500_000.0) / rope_frequencies(22, 500_000.0, scaling)
    assert len(set(divisors.round(3))) > 2, "kept, blended and stretched"
    tensors["rope_freqs.weight"] = divisors.astype(np.float32)
    file = write(tmp_path / "m.gguf", "llama", model.config, tensors, {"rope.freq_base": 500_000.0})
    part, hugging_face = convert(file, tmp_path / "a"), tmp_path / "b"
    assert_same(convert(folders.save(model, tmp_path / "hf"), hugging_face), part)
    assert parts.open_part(part).config == parts.open_part(hugging_face).config


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, "rotary scaling 'linear' by 4.0; only"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "rotary scaling 'yarn' by 4.0; only"),
        ({"rope.scale_linear": 4.0}, "rotary scaling 'linear' by 4.0; only"),
        ({"rope.dimension_count": 10}, "rotary positions for 10 of a head's 14 numbers"),
        ({"rope.scaling.type": "none", "rope.dimension_count": 14, "rope.scale_linear": 1.0}, None),
    ],
)
def test_rotary_positions_that_are_not_built_are_refused(said, words, tmp_path, capsys):
    """They were passed over, and the numbers then wrong without a word."""
    model = folders.llama(2, rope_scaling=None)
    file = write(tmp_path / "m.gguf", "llama", model.config, llama_tensors(model), said)
    assert flags.run(main, [f"--source={file}", f"--out={tmp_path / 'part'}"]) == (2 if words else 0)
    assert (words or "") in capsys.readouterr().err


def test_quantised_and_half_tensors_are_read_as_the_library_reads_them(tmp_path):
    model = folders.llama(2, tied=False, width=64, mlp_width=96, head_size=16, heads=4, kv_heads=2)
    tensors = llama_tensors(model)
    tensors["output.weight"] = model.lm_head.weight.detach().numpy()
    types = gguf.GGMLQuantizationType
    expected = {}
    for name in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"):
        quantised = gguf.quants.quantize(tensors[name], types.Q8_0)
        expected[name] = gguf.quants.dequantize(quantised, types.Q8_0)
        assert not np.array_equal(expected[name], tensors[name])
        tensors[name] = (quantised, types.Q8_0)
    half = tensors["token_embd.weight"].astype(np.float16)
    tensors["token_embd.weight"] = half
    file = write(tmp_path / "m.gguf", "llama", model.config, tensors, {"rope.freq_base": 500.0})
    part = convert(file, tmp_path / "part")
    assert parts.open_part(part).config.head == "own"
    found = arrays(part)
    np.testing.assert_array_equal(found["token_embedding"], half)
    up = found["llama/blocks/stacked/mlp/up/kernel"]
    np.testing.assert_array_equal(up, np.stack([expected[f"blk.{i}.ffn_up.weight"].T for i in range(2)]))


def test_a_type_that_is_not_read_and_a_tokenizer_of_another_kind(tmp_path, capsys):
    model = folders.llama(2, rope_scaling=None, width=60)
    tensors = llama_tensors(model)
    wide = (np.ones(60), gguf.GGMLQuantizationType.F64)
    file = write(tmp_path / "m.gguf", "llama", model.config, tensors | {"output_norm.weight": wide}, {})
    assert flags.run(main, [f"--source={file}", f"--out={tmp_path / 'part'}"]) == 2
    assert "output_norm.weight has type F64, which is not read" in capsys.readouterr().err
    assert not (tmp_path / "part").exists()
    write(file, "llama", model.config, tensors, {}, tokenizer="unheard-of")
    convert(file, tmp_path / "part")
    assert "m.gguf: its tokenizer was not read" in capsys.readouterr().err
    assert not list((tmp_path / "part").glob("tokenizer*"))


def gemma_tensors(model) -> dict[str, np.ndarray]:
    state = model.state_dict()
    tensors = {
        "token_embd.weight": state["embed_tokens.weight"],
        "output_norm.weight": state["norm.weight"] + 1,
    }
    for i in range(model.config.num_hidden_layers):
        for theirs, ours in GEMMA.items():
            x = state[f"layers.{i}.{ours}.weight"]
            tensors[f"blk.{i}.{theirs}.weight"] = x + 1 if "norm" in theirs else x
    return {name: x.numpy() for name, x in tensors.items()}


NUMBERS = {"attention.sliding_window": 8, "rope.freq_base": 1000.0, "rope.freq_base_swa": 100.0}


@pytest.mark.parametrize("as_list", [False, True])
def test_a_gemma_is_hugging_face_s_but_for_the_rounding_of_its_norms(tmp_path, as_list):
    model = folders.gemma()
    slides = [(i + 1) % 3 > 0 for i in range(model.config.num_hidden_layers)]
    numbers = NUMBERS | {"attention.sliding_window_pattern": slides if as_list else 3}
    file = write(tmp_path / "m.gguf", "gemma3", model.config, gemma_tensors(model), numbers)
    part = convert(file, tmp_path / "a")
    found, expected = arrays(part), arrays(convert(folders.save(model, tmp_path / "hf"), tmp_path / "b"))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=0, atol=5e-7 if name.endswith("scale") else 0)
    config = parts.open_part(part).config
    assert (config.window, config.full_every) == (4, 3)
    assert (config.rope_theta_full, config.rope_theta_sliding) == (1000.0, 100.0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"attention.sliding_window_pattern": [True, True, False, False]}, "not regular"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not built"),
    ],
)
def test_what_a_gemma_asks_for_and_is_not_built_is_refused(said, words, tmp_path, capsys):
    model = folders.gemma()
    file = write(tmp_path / "m.gguf", "gemma3", model.config, gemma_tensors(model), NUMBERS | said)
    assert flags.run(main, [f"--source={file}", f"--out={tmp_path / 'part'}"]) == 2
    assert words in capsys.readouterr().err


def test_a_gemma_s_own_scale_of_attention_is_taken(tmp_path):
    model = folders.gemma()
    numbers = NUMBERS | {"attention.scale": 49**-0.5}
    file = write(tmp_path / "m.gguf", "gemma3", model.config, gemma_tensors(model), numbers)
    assert parts.open_part(convert(file, tmp_path / "part")).config.query_scalar == pytest.approx(49)
