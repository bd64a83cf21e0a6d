"""Whatever is wrong with a source: a sentence that says what to do, status 2, nothing written."""

import json
import shutil
import struct
import time
import types
import zipfile

import huggingface_hub
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the sources are written with PyTorch, of the extra `convert`")

import safetensors.torch
from huggingface_hub import errors as hub

from jepa_jax import flags
from tests.weights_conversion import folders
from tests.weights_conversion.folders import copy, edit, one_line
from weights_conversion.__main__ import main


def test_a_truncated_safetensors_file(whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    file = source / "model.safetensors"
    for keep in (0, 5, 100, file.stat().st_size - 1):
        data = (whole / "bert" / file.name).read_bytes()
        file.write_bytes(data[:keep])
        assert "download it again" in one_line(refused(source))


def test_a_truncated_pickle(whole, tmp_path, refused):
    data = (whole / "vitl.pt").read_bytes()
    for keep in (0, 10, len(data) // 2, len(data) - 30):
        (tmp_path / "vitl.pt").write_bytes(data[:keep])
        assert "download it again" in one_line(refused(tmp_path / "vitl.pt"))


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(zipped, tmp_path, refused):
    trap = tmp_path / "sprung"
    content = {"encoder": {"x": torch.ones(3)}, "trap": Trap(trap)}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    text = one_line(refused(tmp_path / "bad.pt"))
    assert "could run code" in text
    assert "safetensors" in text
    assert not trap.exists()


def test_an_archive_that_expands_is_refused_before_it_does(whole, tmp_path, refused):
    source = tmp_path / "vitl.pt"
    with (
        zipfile.ZipFile(whole / "vitl.pt") as read,
        zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for name in read.namelist():
            made.writestr(name, read.read(name))
        made.writestr("archive/large", bytes(2**24))
    assert "PyTorch's own files are not compressed" in one_line(refused(source))


def test_tensors_that_are_made_up_while_they_are_read_are_refused(tmp_path, refused):
    class Made:
        def __reduce__(self):
            return torch.Tensor, (1000, 1000)  # of whatever was in memory

    torch.save({"encoder": {"patch_embed.proj.weight": Made()}}, tmp_path / "vitl.pt")
    assert "is not plain numbers, each of them in the file" in one_line(refused(tmp_path / "vitl.pt"))


def test_a_list_in_a_gguf_file_that_goes_on_for_ever(tmp_path, refused):
    pytest.importorskip("gguf", reason="of the extra `convert`")
    text = lambda said: struct.pack("<Q", len(said)) + said
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)  # version, tensors, fields
    field = text(b"x") + struct.pack("<IIQ", 9, 0, 2**60)  # a list of so many bytes
    (tmp_path / "m.gguf").write_bytes(head + field + bytes(100))
    assert "is truncated or no GGUF file (it ends too early)" in one_line(refused(tmp_path / "m.gguf"))


def test_json_nested_without_end(whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    (source / "config.json").write_text("[" * 100_000)
    assert "config.json is no JSON file" in one_line(refused(source))


def test_another_family(whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    edit(source / "config.json", model_type="qwen2")
    assert "'qwen2'; converted are vjepa2, llama" in one_line(refused(source))


def test_a_part_that_the_family_does_not_become(whole, refused):
    assert "a bert source becomes y_encoder" in one_line(refused(whole / "bert", "--part=predictor"))
    assert "--layers is for Llama" in one_line(refused(whole / "bert", "--layers=3"))
    assert "--layers=3, but the source has 2" in one_line(refused(whole / "shards", "--layers=3"))
    assert "--layers=0 must be at least 1" in one_line(refused(whole / "shards", "--layers=0"))


def test_weights_of_another_model_than_the_config_s(whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    shutil.copyfile(whole / "gemma" / "model.safetensors", source / "model.safetensors")
    text = refused(source)
    assert "the source does not fit the model; nothing was written" in text
    assert "embed_tokens.weight: nobody takes it" in text or "more" in text
    assert "the source has no embeddings.word_embeddings.weight" in text


def test_a_missing_shard(whole, tmp_path, refused):
    source = copy(whole, "shards", tmp_path)
    shard = sorted(source.glob("model-*.safetensors"))[2]
    shard.unlink()
    assert f"lacks 1 of its {len(list(source.glob('model-*'))) + 1} shards ({shard.name})" in refused(source)


def test_a_source_that_the_reference_does_not_open(whole, tmp_path, refused):
    """It takes no index without metadata."""
    source = copy(whole, "shards", tmp_path)
    (index,) = source.glob("*.index.json")
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    assert "--verify: transformers cannot open the source ('metadata')" in refused(source, "--verify")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_are_not_finite(number, whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    file = source / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    tensors["embeddings.word_embeddings.weight"][3, :2] = number
    safetensors.torch.save_file(tensors, file)
    said = one_line(refused(source))
    assert "token_embedding" in said
    assert (
        f"2 of {tensors['embeddings.word_embeddings.weight'].numel():,} numbers are NaN or infinite" in said
    )


def test_a_head_that_is_said_to_be_tied_and_is_not(whole, tmp_path, refused):
    source = copy(whole, "shards", tmp_path)
    edit(source / "config.json", tie_word_embeddings=True)
    assert "lm_head.weight is the token embedding, and it is another" in refused(source, "--part=y_decoder")


@pytest.mark.parametrize(
    ("name", "flag", "kind"),
    [
        ("shards", "--encoder=target_encoder", "vjepa2_meta; this is llama"),
        ("bert", "--x_encoder=/x", "open_vljepa; this is bert"),
        ("vitl.pt", "--no-dense-heads", "gemma3; this is vjepa2_meta"),
    ],
)
def test_a_flag_of_another_kind_of_source(name, flag, kind, whole, refused):
    said = one_line(refused(whole / name, flag))
    assert f"{flag.split('=')[0]} is for sources of kind {kind}" in said


def test_a_field_that_the_source_says_otherwise_is_told(whole, tmp_path, caplog):
    given = [f"--source={whole / 'bert'}", f"--out={tmp_path / 'part'}", "--config.pool=first"]
    assert flags.run(main, given) == 0
    assert "--config.pool=first, but the source says mean" in caplog.text


@pytest.mark.parametrize("pickled", [False, True])
def test_a_tensor_in_two_shards(pickled, whole, tmp_path, refused):
    """As when one of them was left from another download."""
    source = copy(whole, "shards", tmp_path)
    first, _, third, *_ = files = sorted(source.glob("*.safetensors"))
    # From bytes: a mapped file must not be written over.
    shards = {file: safetensors.torch.load(file.read_bytes()) for file in files}
    name = min(shards[first])
    shards[third][name] = shards[first][name] + 1
    if pickled:
        index = source / "model.safetensors.index.json"
        named = index.read_text().replace(".safetensors", ".bin")
        (source / "pytorch_model.bin.index.json").write_text(named)
        index.unlink()
        for file, tensors in shards.items():
            torch.save(tensors, file.with_suffix(".bin"))
        first, third = first.with_suffix(".bin"), third.with_suffix(".bin")
    else:
        safetensors.torch.save_file(shards[third], third)
    assert f"{first} and {third.name} both hold {name}: download both" in one_line(refused(source))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "sub/inside.safetensors"])
def test_an_index_that_leads_out_of_its_folder(name, whole, tmp_path, refused):
    source = copy(whole, "shards", tmp_path)
    index = source / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=weight_map | {next(iter(weight_map)): name})
    assert f"names {name!r}, which lies outside of its folder" in one_line(refused(source))


def test_the_output_exists(whole, tmp_path, capsys):
    out = tmp_path / "there"
    out.mkdir()
    (out / "precious").write_text("kept")
    assert flags.run(main, [f"--source={whole / 'bert'}", f"--out={out}"]) == 2
    assert "exists: name another --out" in one_line(capsys.readouterr().err.strip())
    assert [file.name for file in tmp_path.rglob("*")] == ["there", "precious"]


def test_a_place_where_nothing_can_be_saved(whole, tmp_path, capsys):
    out = tmp_path / "mini[1]" / "part"
    assert flags.run(main, [f"--source={whole / 'bert'}", f"--out={out}"]) == 2
    assert "has [ in its path" in one_line(capsys.readouterr().err.strip())
    assert not out.parent.exists()


RESPONSE = types.SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            lambda: hub.GatedRepoError("no", response=RESPONSE),
            "is gated: accept its licence at https://",
        ),
        (lambda: hub.RepositoryNotFoundError("no", response=RESPONSE), "has no repository 'some/model'"),
        (lambda: hub.LocalEntryNotFoundError("no"), "hub cannot be reached (LocalEntryNotFoundError): check"),
        (lambda: ConnectionError("no"), "hub cannot be reached (ConnectionError): check the network"),
    ],
)
def test_a_hub_name_that_cannot_be_had(error, words, refused, monkeypatch):
    def download(*arguments, **options):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert words in one_line(refused("some/model"))


def test_a_hub_name_is_downloaded_and_its_commit_kept(whole, tmp_path, monkeypatch):
    commit = shutil.copytree(whole / "bert", tmp_path / "snapshots" / "0123abc")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(commit))
    assert flags.run(main, ["--source=some/model", f"--out={tmp_path / 'part'}"]) == 0
    origin = json.loads((tmp_path / "part" / "part.json").read_text())["provenance"]
    assert (origin["source"], origin["revision"]) == ("some/model", "0123abc")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"vjepa2"'])
def test_a_configuration_that_is_none(text, whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    (source / "config.json").write_text(text)
    one_line(refused(source))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "wide"}, "'wide'"),
        ({"num_attention_heads": 4}, "not a multiple of y_encoder.heads=4"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; only 'gelu' is built"),
        ({"num_hidden_layers": -1}, "layers"),
    ],
)
def test_a_configuration_that_does_not_work(changes, words, whole, tmp_path, refused):
    source = copy(whole, "bert", tmp_path)
    edit(source / "config.json", **changes)
    assert words in one_line(refused(source))


@pytest.mark.parametrize("name", ["bert", "shards", "gemma"])
def test_a_configuration_that_claims_too_much_costs_nothing(name, whole, tmp_path, refused):
    """A billion layers, or a table of a trillion numbers, are refused before they are worked through."""
    source = copy(whole, name, tmp_path)
    changes = {"num_hidden_layers": 10**9, "layer_types": None}
    started = time.monotonic()
    edit(source / "config.json", **changes)
    assert "layers" in refused(source)
    shutil.copyfile(whole / name / "config.json", source / "config.json")
    edit(source / "config.json", vocab_size=10**12)
    assert "does not give" in refused(source)
    assert time.monotonic() - started < 60


def test_meta_s_files(whole, tmp_path, refused):
    weights, params = folders.meta_llama(folders.llama(2))
    source = folders.save_meta_llama(weights, params, tmp_path / "llama", 3)
    (source / "consolidated.01.pth").unlink()
    assert "lacks consolidated.01.pth" in one_line(refused(source))
    (source / "params.json").unlink()
    assert "no params.json" in one_line(refused(source))
    assert "has no target: it has" not in one_line(refused(whole / "vitl.pt", "--encoder=target"))
    content = folders.meta_vjepa2(folders.vjepa2())
    torch.save({"ema_encoder": content["encoder"]}, tmp_path / "ema.pt")
    assert "it has ema_encoder; choose with --encoder" in one_line(refused(tmp_path / "ema.pt"))
    content["encoder"]["module.backbone.patch_embed_img.proj.weight"] = torch.ones(2)
    torch.save(content, tmp_path / "new.pt")
    assert "V-JEPA 2.1 encoder" in one_line(refused(tmp_path / "new.pt"))
    torch.save({"something": torch.ones(2)}, tmp_path / "other.pt")
    assert "is of no kind that is known (it has something" in one_line(refused(tmp_path / "other.pt"))
    torch.save([1, 2], tmp_path / "list.pt")
    assert "holds a list" in one_line(refused(tmp_path / "list.pt"))


def test_what_is_no_source(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + np.zeros(5, np.uint8).tobytes())
    assert "holds no checkpoint that is known" in one_line(refused(tmp_path / "empty"))
    assert "of no kind that is known" in one_line(refused(tmp_path / "notes.txt"))
    for nowhere in (tmp_path / "nowhere", "./nowhere", "../nowhere"):
        assert "no file or folder" in one_line(refused(nowhere))
    assert "download it again" in one_line(refused(tmp_path / "m.gguf"))


def test_an_unknown_flag_or_field(whole, refused):
    assert "unknown argument '--sorce=x'" in one_line(refused(whole / "bert", "--sorce=x"))
    assert "did you mean width?" in one_line(refused(whole / "bert", "--config.widht=3"))


def test_a_file_that_its_folder_s_weights_are_not_read_from(whole, tmp_path, refused):
    """Another file beside model.safetensors was named, and model.safetensors converted."""
    source = copy(whole, "bert", tmp_path)
    shutil.copyfile(source / "model.safetensors", source / "mine.safetensors")
    assert "mine.safetensors is not what is read from its folder (model.safetensors)" in one_line(
        refused(source / "mine.safetensors")
    )


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("bert", {"is_decoder": True}, "is_decoder=True; only False is built"),
        ("gemma", {"layer_types": ["chunked_attention"] * 3}, "'chunked_attention', which is not built"),
        ("shards", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5; only 1.0 is built"),
        ("shards", {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "does not work: could"),
        ("shards", {"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "does not work: float"),
    ],
)
def test_a_configuration_of_something_else(name, changes, words, whole, tmp_path, refused):
    source = copy(whole, name, tmp_path)
    edit(source / "config.json", **changes)
    assert words in one_line(refused(source))


def test_params_json_that_says_nothing_of_use(tmp_path, refused):
    weights, params = folders.meta_llama(folders.llama(2))
    source = folders.save_meta_llama(weights, params, tmp_path / "llama")
    for changes, words in (
        ({"dim": "wide"}, "does not work: invalid literal"),
        ({"n_heads": 0}, "does not work: integer division"),
        ({"n_layers": None}, "does not work: int()"),
    ):
        (source / "params.json").write_text(json.dumps(params | changes))
        assert words in one_line(refused(source))
    (source / "params.json").write_text("[]")
    assert "params.json does not hold the JSON object" in one_line(refused(source))


def test_slices_that_do_not_fit_together(tmp_path, refused):
    weights, params = folders.meta_llama(folders.llama(2))
    for spoilt in (torch.ones(42, 53), torch.tensor(1.0)):
        source = folders.save_meta_llama(weights, params, tmp_path / str(spoilt.ndim), 2)
        file = source / "consolidated.01.pth"
        torch.save(torch.load(file) | {"layers.0.attention.wq.weight": spoilt}, file)
        assert "slices of layers.0.attention.wq.weight do not fit together: (42, 54), " in one_line(
            refused(source)
        )


@pytest.mark.parametrize("place", [0, 1])
def test_slices_of_different_types(place, tmp_path, refused):
    weights, params = folders.meta_llama(folders.llama(2))
    source = folders.save_meta_llama(weights, params, tmp_path / "llama", 2)
    file = source / f"consolidated.{place:02d}.pth"
    torch.save({name: x.bfloat16() for name, x in torch.load(file).items()}, file)
    words = "slices of tok_embeddings.weight come in different types: bfloat16, float32"
    assert words in one_line(refused(source))


NORM, QKV = "module.backbone.norm.weight", "module.backbone.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({NORM: torch.ones(66).to_sparse()}, "norm.weight is not plain numbers"),
        ({NORM: torch.ones(66, device="meta")}, "norm.weight is not plain numbers"),
        ({NORM: torch.ones(1).expand(66)}, "norm.weight is not plain numbers"),
        ({NORM: torch.tensor(1.0)}, "norm.weight: shape () does not give norm/scale (66,)"),
        ({QKV: torch.tensor(1.0)}, "qkv.weight: shape () does not give"),
        ({1: torch.ones(2)}, "1: nobody takes it"),
    ],
)
def test_tensors_of_a_pickle_that_are_no_weights(encoder, words, whole, tmp_path, refused):
    """A view of one number that claims to be a trillion was worked through, until memory ended."""
    content = torch.load(whole / "vitl.pt")
    torch.save({"encoder": content["encoder"] | encoder}, tmp_path / "odd.pt")
    assert words in refused(tmp_path / "odd.pt", "--config.heads=3", "--config.image_size=35")


def test_pickles_that_hold_no_state_dict(whole, tmp_path, refused):
    torch.save({"model": {1: torch.ones(2)}}, tmp_path / "numbered.pt")
    assert "is of no kind that is known" in one_line(refused(tmp_path / "numbered.pt"))
    torch.save({"encoder": {1: torch.ones(2)}}, tmp_path / "encoder.pt")
    assert "no V-JEPA 2 encoder" in one_line(refused(tmp_path / "encoder.pt"))
    source = copy(whole, "bert", tmp_path)
    (source / "model.safetensors").unlink()
    torch.save([1, 2], source / "pytorch_model.bin")
    assert "holds a list, not a state dict" in one_line(refused(source))
