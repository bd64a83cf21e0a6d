"""Every format of a source gives the numbers that the reference's own format gives."""

import contextlib
import fnmatch
import json
import pathlib
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the sources are written with PyTorch, of the extra `convert`")

import huggingface_hub
import jax
import transformers
from safetensors.torch import load_file, save_file

import jepa_jax
from jepa_jax import flags, parts
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.flags import config_to_json
from jepa_jax.state import to_items
from tests import tiny
from tests.models import reference
from tests.weights_conversion import folders
from weights_conversion import export
from weights_conversion.__main__ import main
from weights_conversion.sources import Source


def convert(source: pathlib.Path | str, out: pathlib.Path, *options: str) -> pathlib.Path:
    assert flags.run(main, [f"--source={source}", f"--out={out}", *options]) == 0
    return out


def way_back(part: pathlib.Path, out: pathlib.Path, *options: str) -> pathlib.Path:
    assert flags.run(export.main, [f"--source={part}", f"--out={out}", *options]) == 0
    return out


def arrays(part: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in parts.open_part(part).read().items()}


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
    """Two parts hold the same bits."""
    first, second = arrays(a), arrays(b)
    assert first.keys() == second.keys()
    for name, x in first.items():
        assert x.dtype == second[name].dtype, name
        np.testing.assert_array_equal(x, second[name], err_msg=name)


def tensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.rglob("*.safetensors")):
        inside = file.parent.relative_to(folder).as_posix().replace(".", "")
        found |= {f"{inside}:{name}": x for name, x in load_file(file).items()}
    return found


SOURCES = {
    "vjepa2": (folders.vjepa2, transformers.VJEPA2Model),
    "llama": (folders.llama, transformers.LlamaForCausalLM),
    "llama_untied": (lambda: folders.llama(tied=False), transformers.LlamaForCausalLM),
    "llama_model": (lambda: folders.llama().model, transformers.LlamaModel),
    "gemma": (folders.gemma, transformers.Gemma3TextModel),
    "bert": (folders.bert, transformers.BertModel),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", SOURCES)
def test_there_and_back_every_bit_and_name_is_the_source_s(kind, dtype, tmp_path):
    make, reader = SOURCES[kind]
    source = folders.save(make(), tmp_path / "source", dtype)
    back = way_back(convert(source, tmp_path / "part"), tmp_path / "back")
    expected, found = tensors(source), tensors(back)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        assert torch.equal(found[name], x), name
    _, report = reader.from_pretrained(back, output_loading_info=True)
    assert not any(report.values()), report


def test_a_bert_whose_norms_have_their_old_names(tmp_path):
    """As in Google's own checkpoints (`bert-base-uncased`); it goes back by those of today."""
    source = folders.save(folders.bert(), tmp_path / "source")
    expected = load_file(source / "model.safetensors")
    names = {
        name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for name in expected
    }
    assert "embeddings.LayerNorm.gamma" in names.values()
    old = {f"bert.{names[name]}": x for name, x in expected.items()}
    save_file(old, source / "model.safetensors", {"format": "pt"})
    back = way_back(convert(source, tmp_path / "part", "--verify"), tmp_path / "back")
    found = load_file(back / "model.safetensors")
    assert {name: x.tolist() for name, x in found.items()} == {n: x.tolist() for n, x in expected.items()}


def test_the_configuration_goes_there_and_back(tmp_path):
    """What has no place in ours too: the predictor's heads, and how long a Llama's texts may be."""
    language_model = folders.llama(2)
    language_model.config.max_position_embeddings = 77
    for name, model in (("llama", language_model), ("vjepa2", folders.vjepa2()), ("bert", folders.bert())):
        source = folders.save(model, tmp_path / name, torch.bfloat16)
        part = convert(source, tmp_path / f"{name}_part")
        config = json.loads((source / "config.json").read_text())
        for options, dtype in (((), "bfloat16"), (("--dtype=float32",), "float32")):
            back = way_back(part, tmp_path / f"{name}_{dtype}", *options)
            assert json.loads((back / "config.json").read_text()) == config | {"dtype": dtype}
            assert type(model).from_pretrained(back).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("width", "mlp_width"), [(98, 4096), (166, 442)])
def test_a_width_that_the_reference_s_ratio_would_round_off(width, mlp_width):
    config = tiny.x_encoder(width=width, mlp_width=mlp_width, heads=2)
    assert reference.from_vjepa2(reference.to_vjepa2(config)) == config


def test_dense_heads_go_there_and_back(tmp_path):
    source = folders.embedding_gemma(tmp_path / "source")
    part = convert(source, tmp_path / "part")
    assert parts.open_part(part).config.dense_widths == (29, 17)
    expected, found = tensors(source), tensors(way_back(part, tmp_path / "back"))
    assert {name: x.tolist() for name, x in found.items()} == {n: x.tolist() for n, x in expected.items()}
    bare = convert(source, tmp_path / "bare", "--no-dense-heads")
    assert parts.open_part(bare).config.dense_widths == ()
    assert not [name for name in arrays(bare) if "dense" in name]


def test_kept_tensors_that_are_not_those_that_were_written_are_refused(tmp_path, capsys):
    """They would go back into the reference as if they were the source's, or zeros in their place."""
    source = folders.save(folders.vjepa2(), tmp_path / "source")
    file = convert(source, tmp_path / "part") / "kept.safetensors"
    whole = file.read_bytes()
    about = tmp_path / "part" / "part.json"
    content = json.loads(about.read_text())
    for change, words in (
        (lambda: file.write_bytes(whole[:-4] + b"\0\0\0\1"), "differs from what was written"),
        (file.unlink, "No such file"),
        # As parts were written before.
        (lambda: content["provenance"].pop("kept"), None),
        (lambda: file.write_bytes(whole[:-9]), "incomplete metadata"),
    ):
        change()
        about.write_text(json.dumps(content))
        status = flags.run(export.main, [f"--source={tmp_path / 'part'}", f"--out={tmp_path / 'back'}"])
        said = capsys.readouterr().err
        assert (status, "kept.safetensors" in said) == ((0, False) if words is None else (2, True)), said
        assert words is None or words in said
        shutil.rmtree(tmp_path / "back", ignore_errors=True)


def test_shards_and_pickles_are_the_same_weights(tmp_path):
    model = folders.llama(tied=False)
    whole = convert(folders.save(model, tmp_path / "whole"), tmp_path / "a")
    shards = folders.save(model, tmp_path / "shards", max_shard_size="30KB")
    assert len(list(shards.glob("*.safetensors"))) > 3
    assert_same(whole, convert(shards, tmp_path / "b"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    assert_same(whole, convert(pickled, tmp_path / "c"))


def test_dense_heads_of_a_hub_name_may_be_pickled_beside_safetensors(tmp_path, monkeypatch):
    source = folders.embedding_gemma(tmp_path / "source")
    whole = convert(source, tmp_path / "whole")
    for folder in source.glob("*_Dense"):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    def download(name, *, allow_patterns, **_):
        for file in filter(pathlib.Path.is_file, source.rglob("*")):
            inside = file.relative_to(source)
            if any(fnmatch.fnmatch(str(inside), pattern) for pattern in allow_patterns):
                (tmp_path / "commit" / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "commit" / inside)
        return str(tmp_path / "commit")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(whole, convert("some/model", tmp_path / "part"))


def test_an_export_in_shards_opens_all_the_same(tmp_path, monkeypatch):
    source = folders.save(folders.llama(), tmp_path / "source")
    part = convert(source, tmp_path / "part")
    monkeypatch.setattr(export, "_SHARD_BYTES", 50_000)
    back = way_back(part, tmp_path / "back")
    assert len(list(back.glob("model-0*-of-0*.safetensors"))) > 2
    assert {n: x.tolist() for n, x in tensors(back).items()} == {
        n: x.tolist() for n, x in tensors(source).items()
    }
    _, report = transformers.LlamaModel.from_pretrained(back, output_loading_info=True)
    assert not any(report.values()), report


def test_a_run_is_exported_as_it_was_trained(tmp_path):
    config = tiny.run_config()
    state = to_items(tiny.state(config)[1])
    (tmp_path / "config.json").write_text(config_to_json(config))
    with contextlib.closing(Checkpointer(tmp_path / "checkpoints", config.checkpoint)) as checkpointer:
        checkpointer.save(3, state, {}, {"loss": 1.0})
    back = way_back(tmp_path, tmp_path / "back")
    params = {name: np.asarray(x) for name, x in parts.flatten(state["params"]).items()}
    readers = {"x_encoder": transformers.VJEPA2Model, "predictor": transformers.LlamaModel}
    for part, reader in readers.items():
        again = parts.open_part(convert(back / part, tmp_path / part, f"--part={part}"))
        assert again.config == getattr(config.model, part)
        for name, x in again.read().items():
            np.testing.assert_array_equal(x, params[f"{part}/{name}"], err_msg=name)
        _, report = reader.from_pretrained(back / part, output_loading_info=True)
        assert not report["unexpected_keys"], report
    assert (way_back(tmp_path, tmp_path / "one", "--part=predictor") / "config.json").exists()


def test_meta_s_vjepa2_is_hugging_face_s(tmp_path, caplog):
    model = folders.vjepa2()
    hugging_face = convert(folders.save(model, tmp_path / "hf"), tmp_path / "a")
    file = tmp_path / "vitl.pt"
    torch.save(folders.meta_vjepa2(model), file)
    sizes = ("--config.heads=3", "--config.image_size=35")
    meta = convert(file, tmp_path / "b", *sizes)
    assert_same(hugging_face, meta)
    assert parts.open_part(meta).config == parts.open_part(hugging_face).config
    assert "heads leave no trace in the weights" in caplog.text
    # V-JEPA's own predictor comes back under Hugging Face's names.
    expected, found = tensors(tmp_path / "hf"), tensors(way_back(meta, tmp_path / "back"))
    assert {n: x.tolist() for n, x in found.items()} == {n: x.tolist() for n, x in expected.items()}
    target = arrays(convert(file, tmp_path / "c", "--encoder=target_encoder", *sizes))
    for name, x in arrays(meta).items():
        np.testing.assert_array_equal(target[name], x + 1, err_msg=name)


def test_a_bare_encoder_of_meta_s_and_untiled_positions(tmp_path):
    model = folders.vjepa2()
    torch.save(folders.meta_vjepa2(model)["encoder"], tmp_path / "bare.pt")
    part = convert(tmp_path / "bare.pt", tmp_path / "a", "--config.heads=3", "--config.tiled_rope=false")
    assert not parts.open_part(part).config.tiled_rope
    assert_same(convert(folders.save(model, tmp_path / "hf"), tmp_path / "b"), part)
    assert flags.run(export.main, [f"--source={part}", f"--out={tmp_path / 'back'}"]) == 2


def meta_forward(tensors: dict, params: dict, ids: np.ndarray) -> np.ndarray:
    """Logits by Meta's conventions: each head's neighbours are one complex number, turned by
    position times frequency."""
    heads, kv_heads = params["n_heads"], params["n_kv_heads"]
    size = tensors["layers.0.attention.wq.weight"].shape[0] // heads
    frequencies = params["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones(()).double(), torch.arange(ids.shape[1]).double()[:, None] * frequencies)

    def norm(x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * tensors[name].double()

    def rotated(x):
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turn[:, None]).flatten(-2)

    x = tensors["tok_embeddings.weight"].double()[torch.from_numpy(ids).long()]
    for i in range(params["n_layers"]):
        weight = lambda name, i=i: tensors[f"layers.{i}.{name}.weight"].double()
        y = norm(x, f"layers.{i}.attention_norm.weight")
        split = lambda y, w, n: (y @ w.T).reshape(*y.shape[:2], n, -1)
        q = rotated(split(y, weight("attention.wq"), heads))
        k = rotated(split(y, weight("attention.wk"), kv_heads)).repeat_interleave(heads // kv_heads, 2)
        v = split(y, weight("attention.wv"), kv_heads).repeat_interleave(heads // kv_heads, 2)
        logits = torch.einsum("blka,bmka->bklm", q, k) / q.shape[-1] ** 0.5
        hidden = torch.ones(logits.shape[-2:]).triu(1).bool()
        y = torch.einsum("bklm,bmka->blka", logits.masked_fill(hidden, -torch.inf).softmax(-1), v)
        x = x + y.flatten(2) @ weight("attention.wo").T
        y = norm(x, f"layers.{i}.ffn_norm.weight")
        gated = torch.nn.functional.silu(y @ weight("feed_forward.w1").T) * (y @ weight("feed_forward.w3").T)
        x = x + gated @ weight("feed_forward.w2").T
    return (norm(x, "norm.weight") @ tensors["output.weight"].double().T).numpy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_meta_s_llama_computes_what_meta_s_arithmetic_does(shards, tied, tmp_path):
    model = folders.llama(3, tied=tied, rope_scaling=None, mlp_width=66, vocab_size=42)
    weights, params = folders.meta_llama(model)
    part = convert(folders.save_meta_llama(weights, params, tmp_path / "source", shards), tmp_path / "part")
    assert parts.open_part(part).config.head == ("tied" if tied else "own")
    assert_same(convert(folders.save(model, tmp_path / "hf"), tmp_path / "b"), part)
    ids = np.random.default_rng(0).integers(0, 42, (2, 13), np.int32)
    logits = jepa_jax.load(part).logits(ids, np.ones(ids.shape, bool))
    tiny.assert_close(logits, meta_forward(weights, params, ids), 2e-5)


def test_llama_2_s_slices(tmp_path):
    """Its params.json says -1 for the vocabulary's size, and its token embedding is cut along the width."""
    model = folders.llama(2, tied=False, rope_scaling=None, mlp_width=66, vocab_size=42)
    weights, params = folders.meta_llama(model)
    params |= {"vocab_size": -1}
    source = folders.save_meta_llama(weights, params, tmp_path / "source", 2, embedding_axis=1)
    hugging_face = convert(folders.save(model, tmp_path / "hf"), tmp_path / "b")
    assert_same(convert(source, tmp_path / "part"), hugging_face)


@pytest.mark.parametrize(("extra", "factor"), [({}, 32.0), ({"rope_scaling_factor": 8}, 8.0)])
def test_meta_s_rotary_scaling(extra, factor, tmp_path):
    weights, params = folders.meta_llama(folders.llama(2))
    params |= {"use_scaled_rope": True} | extra
    source = folders.save_meta_llama(weights, params, tmp_path / "source")
    part = convert(source, tmp_path / "part")
    assert parts.open_part(part).config.llama.rope_scaling.factor == factor


def test_the_predictor_is_the_last_layers(tmp_path):
    model = folders.llama(10)
    source = folders.save(model, tmp_path / "source")
    everything = arrays(convert(source, tmp_path / "all"))
    for options, count in ((("--part=predictor",), 8), (("--part=predictor", "--layers=3"), 3)):
        part = convert(source, tmp_path / f"last{count}", *options)
        config = parts.open_part(part).config
        assert (config.layers, config.causal) == (count, False)
        for name, x in arrays(part).items():
            whole = everything[name]
            expected = whole[10 - count :] if "/blocks/" in name else whole
            np.testing.assert_array_equal(x, expected, err_msg=name)
        back = way_back(part, tmp_path / f"back{count}")
        again, report = transformers.LlamaModel.from_pretrained(back, output_loading_info=True)
        assert not any(report.values()), report
        assert len(again.layers) == count


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_exported_predictor_sees_both_ways_there_as_here(attention, tmp_path, capsys):
    """By its configuration alone: nobody has to give a mask."""
    part = convert(folders.save(folders.llama(3), tmp_path / "source"), tmp_path / "part", "--part=predictor")
    back = way_back(part, tmp_path / "back")
    tokens = np.arange(24).reshape(2, 12) % 41
    mask = np.arange(12) < np.array([[12], [7]])
    again = transformers.LlamaModel.from_pretrained(back, attn_implementation=attention)
    with torch.no_grad():
        expected = again(input_ids=torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask))[0]
    found = jepa_jax.load(part).hidden_states(tokens.astype(np.int32), mask)
    np.testing.assert_allclose(found[mask], expected.numpy()[mask], atol=2e-5)
    assert flags.run(main, [f"--source={back}", f"--out={tmp_path / 'decoder'}"]) == 2
    assert "is_causal=False" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "license"),
    [
        ("license: mit  # of the code too", "mit"),
        ("license:\n- apache-2.0\n-  mit\ntags:\n- x", "apache-2.0, mit"),
        ("license:\r\n  - gemma\r\nlanguage: en", "gemma"),
        ("license: ['mit', \"bsd\"]", "mit, bsd"),
        ("license:\ntags:\n- x", None),
        ("tags: [license]", None),
    ],
)
def test_the_licence_of_a_model_card(header, license, tmp_path):
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# A model\n", newline="")
    assert Source("bert", None, {}, tmp_path).license() == license


def test_provenance_says_where_the_weights_came_from(tmp_path):
    source = folders.save(folders.bert(), tmp_path / "source")
    (source / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n")
    origin = parts.open_part(convert(source, tmp_path / "part", "--config.pool=first")).provenance
    (file,) = origin["files"]
    assert file["name"] == "model.safetensors"
    assert file["bytes"] == (source / "model.safetensors").stat().st_size
    assert len(file["sha256"]) == 64
    assert origin["license"] == "apache-2.0"
    assert origin["options"]["config"] == {"pool": "first"}
    assert origin["source_config"]["hidden_size"] == 57
    stated = convert(source, tmp_path / "stated", "--license=MIT")
    assert parts.open_part(stated).provenance["license"] == "MIT"
    assert json.loads((stated / "part.json").read_text())["provenance"]["license"] == "MIT"


@pytest.mark.parametrize("kind", [*SOURCES, "embedding_gemma", "meta"])
def test_verify_compares_with_the_reference(kind, tmp_path, capsys):
    options = []
    if kind == "embedding_gemma":
        source = folders.embedding_gemma(tmp_path / "source")
    elif kind == "meta":
        source, options = tmp_path / "vitl.pt", ["--config.heads=3", "--config.image_size=35"]
        torch.save(folders.meta_vjepa2(folders.vjepa2()), source)
    else:
        source = folders.save(SOURCES[kind][0](), tmp_path / "source")
    convert(source, tmp_path / "part", "--verify", *options)
    printed = capsys.readouterr().out
    assert "layer 0" in printed
    assert "beyond tolerance" not in printed


def test_verify_compares_at_the_size_that_is_asked_for(tmp_path, capsys):
    source = folders.save(folders.vjepa2(), tmp_path / "source")
    part = convert(source, tmp_path / "part", "--verify", "--config.image_size=70")
    assert "beyond tolerance" not in capsys.readouterr().out
    assert parts.open_part(part).config.image_size == 70


def test_verify_fails_where_the_numbers_differ(tmp_path, capsys, monkeypatch):
    """The part is made with another rotary base than the source's: status 1, nothing kept."""
    source = folders.save(folders.llama(3), tmp_path / "source")
    arguments = [f"--source={source}", f"--out={tmp_path / 'part'}", "--verify"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--config.llama.rope_theta=700.0"])
    assert stopped.value.code == 1
    assert "beyond tolerance" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [source]


def test_load_opens_every_part(tmp_path):
    frames = tiny.pixels(2, 4, 20, 35, 3)
    part = convert(folders.save(folders.vjepa2(), tmp_path / "x"), tmp_path / "a")
    assert jepa_jax.load(part).encode_video(frames).shape == (2, 2 * 4 * 7, 66)
    llama = jepa_jax.load(convert(folders.save(folders.llama(2), tmp_path / "l"), tmp_path / "b"))
    ids, mask = np.zeros((2, 5), np.int32), np.ones((2, 5), bool)
    assert llama.logits(ids, mask).shape == (2, 5, 41)
    assert llama.hidden_states(ids, mask).shape == (2, 5, 54)
    assert jax.tree.leaves(llama.module)
    assert llama.provenance["kind"] == "llama"
    for wrong in (ids - 1, ids + 41):
        with pytest.raises(ValueError, match="tokens must be from 0 to 40"):
            llama.logits(wrong, mask)
    with pytest.raises(ValueError, match=r"must both be \[B, L\], got \(2, 5\) and \(1, 5\)"):
        llama.logits(ids.tolist(), mask[:1].tolist())
    for kind in (float, bool, str, object):
        with pytest.raises(ValueError, match="tokens must be whole numbers, got "):
            llama.hidden_states(ids.astype(kind), mask)
    with pytest.raises(ValueError, match=r"the input is empty, tokens \(2, 0\)"):
        llama.hidden_states(ids[:, :0], mask[:, :0])
    short = mask & (np.arange(5) < 3)
    np.testing.assert_array_equal(llama.logits(ids, short.astype(float)), llama.logits(ids, short))
    for wrong in (2 * short, short.astype(str)):
        with pytest.raises(ValueError, match="mask must be bool, or of zeros and ones"):
            llama.logits(ids, wrong)
    predictor = jepa_jax.load(convert(tmp_path / "l", tmp_path / "c", "--part=predictor"))
    with pytest.raises(ValueError, match="a predictor has no logits"):
        predictor.logits(ids, mask)
