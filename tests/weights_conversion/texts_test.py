"""Texts given to a converted text encoder: where they are cut, and tokens its table has no row for; and to an
exported one."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the sources are written with PyTorch, of the extra `convert`")

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import jepa_jax
from jepa_jax import parts
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.data.tokenizer import SHIPPED, identity_of, load_tokenizers
from jepa_jax.flags import UsageError, config_to_json
from jepa_jax.state import to_items
from tests import tiny
from tests.tiny_config import config as run_config
from tests.weights_conversion import folders
from tests.weights_conversion.formats_test import convert, way_back

WORDS = ("[PAD]", "[UNK]", *"abcdefgh")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A sentence-transformers folder around a BERT, with a tokenizer of letters and more tokens than the
    43 rows of its table."""
    folder = folders.save(folders.bert(), tmp_path_factory.mktemp("source"))
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="[PAD]")
    tokenizer.add_tokens([f"<{i}>" for i in range(43)])
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    modules = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.mark.parametrize(
    ("older", "newer", "length"), [(3, 5, 3), (None, 5, 5), (None, 1e30, 29), (None, None, 29), (64, 5, 29)]
)
def test_the_length_is_where_sentence_transformers_cuts(older, newer, length, source, tmp_path):
    """Up to version 5 a file of its own says it, then the tokenizer's; the table of positions has 29."""
    file = source / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": newer}))
    said = {} if older is None else {"max_seq_length": older}
    (source / "sentence_bert_config.json").write_text(json.dumps(said))
    assert parts.open_part(convert(source, tmp_path / "part")).max_length == length


def test_a_token_without_a_row_is_refused(source, tmp_path):
    """The last row of the table stood for it."""
    model = jepa_jax.load(convert(source, tmp_path / "part"))
    assert np.isfinite(model.embed_text(["a b <0> c"])).all()
    with pytest.raises(ValueError, match=r"has the token '<42>', but the model's table of 43 rows has none"):
        model.embed_text(["a b <42> c"])


def test_weights_without_a_tokenizer_are_said_to_have_none(tmp_path):
    """To every command, in a sentence."""
    folder = folders.save(folders.bert(), tmp_path / "source")
    model = jepa_jax.load(convert(folder, tmp_path / "part"))
    with pytest.raises(UsageError, match=r"part has no tokenizer, .*: put .* into that folder"):
        model.embed_text(["a"])
    (tmp_path / "part" / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match="part' cannot be loaded"):
        model.embed_text(["a"])
    # As the sentence says.
    for file in SHIPPED["emoji_motion"].glob("*.json"):
        shutil.copy(file, tmp_path / "part")
    assert model.embed_text([""]).shape == (1, 57)


def make_run(folder: pathlib.Path, learned_with=None, model=None, **data) -> pathlib.Path:
    """A run's work directory; `learned_with` is what it says of its tokenizers, `model` and `data` change its
    configuration."""
    model = dataclasses.replace(run_config.model, **(model or {}))
    data = dataclasses.replace(run_config.data, **data)
    config = dataclasses.replace(run_config, model=model, data=data, fsdp=1)
    folder.mkdir()
    (folder / "config.json").write_text(config_to_json(config))
    known = {} if learned_with is None else {"tokenizers": learned_with}
    with contextlib.closing(Checkpointer(folder / "checkpoints", config.checkpoint)) as checkpointer:
        checkpointer.save(3, to_items(tiny.state(config)[1]), known, {"loss": 1.0})
    return folder


@pytest.mark.parametrize(
    ("y_encoder", "size", "prefix"),
    [
        (tiny.y_encoder(vocab_size=1024), 23, "look: "),
        (tiny.bert(vocab_size=1024), 23, ""),
        (tiny.bert(vocab_size=1024, pool="first"), None, ""),
    ],
    ids=["gemma", "bert", "bert_without_projection"],
)
def test_a_run_s_text_encoder_embeds_in_sentence_transformers_as_in_the_run(
    y_encoder, size, prefix, tmp_path
):
    """With the run's projection, prefix and length; and it can be converted again."""
    library = pytest.importorskip("sentence_transformers", reason="the reference, of the extra `convert`")
    projected = {"y_projection": size is not None, "embedding_size": size or y_encoder.width}
    run = make_run(tmp_path / "run", model={"y_encoder": y_encoder, **projected}, target_prefix=prefix)
    back = way_back(run, tmp_path / "back")
    model = jepa_jax.load(run)
    texts = [
        "a dog spins",
        " two",
        "",
        "is there one dog beside the small cat that grows and spins and jumps?",
    ]
    expected = model.embed_text(texts)
    theirs = library.SentenceTransformer(str(back / "y_encoder"), device="cpu")
    for embed in (theirs.encode, theirs.encode_query, theirs.encode_document):
        np.testing.assert_allclose((embed(texts) * expected).sum(axis=1), 1, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(back / "predictor")
    ids, mask = model._tokenizers[0]("what does it do?", 16)
    assert tokenizer("what does it do?")["input_ids"] == ids[mask].tolist()
    assert parts.open_part(convert(back / "y_encoder", tmp_path / "part")).config == y_encoder


@pytest.mark.parametrize("part", ["y_encoder", "predictor"])
def test_without_its_tokenizer_an_export_pretends_nothing(part, tmp_path, caplog):
    side = {"y_encoder": "target", "predictor": "query"}[part]
    run = make_run(tmp_path / "run", **{f"{side}_tokenizer": str(tmp_path / "gone")})
    back = way_back(run, tmp_path / "back")
    (told,) = [message for message in caplog.messages if "is written" in message]
    assert told.startswith(f"{part}: no tokenizer")
    assert "gone' cannot be loaded" in told
    assert (back / "y_encoder" / "modules.json").exists() == (part == "predictor")
    assert not (back / part / "tokenizer.json").exists()


def test_a_converted_part_without_a_tokenizer_pretends_nothing(tmp_path, caplog):
    part = convert(folders.save(folders.bert(), tmp_path / "source"), tmp_path / "part")
    back = way_back(part, tmp_path / "back")
    assert f"no tokenizer is written ({part} has none); sentence-transformers would" in caplog.text
    assert not (back / "modules.json").exists()


def test_another_tokenizer_than_the_run_learned_with_is_told(tmp_path, caplog):
    query, target = identity_of(load_tokenizers(run_config)).split()
    way_back(make_run(tmp_path / "run", f"{query} {target[::-1]}"), tmp_path / "back")
    (told,) = caplog.messages
    assert told.endswith("is not the one that the y_encoder has learned with")
