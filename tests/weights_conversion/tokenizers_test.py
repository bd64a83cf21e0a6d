"""Tokenizers that are written beside converted weights."""

import base64
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import sys
import types

import pytest

from jepa_jax.data.tokenizer import Tokenizer, no_sentencepiece
from tests.data.tokenizer_test import GOLDEN, TEXTS
from weights_conversion.sources import Source
from weights_conversion.tokenizers import write_tokenizer

NO_TENSORS = None


def meta_source(folder: pathlib.Path) -> Source:
    return Source("llama_meta", NO_TENSORS, {}, folder)


@pytest.fixture
def folders(tmp_path):
    for name in ("source", "out"):
        (tmp_path / name).mkdir()
    return tmp_path / "source", tmp_path / "out"


def test_meta_s_ranks_become_a_tokenizer_that_begins_with_its_first_special_token(folders):
    pytest.importorskip("tiktoken", reason="reading Meta's ranks needs tiktoken, of the extra `convert`")
    source, out = folders
    tokens = [bytes([i]) for i in range(256)] + [b"ab", b"abab", b" c"]
    lines = [base64.b64encode(token) + f" {rank}".encode() for rank, token in enumerate(tokens)]
    (source / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    write_tokenizer(meta_source(source), out)
    begin = len(tokens)
    ids, mask = Tokenizer(str(out))("ababab c!", 8)
    assert ids[mask].tolist() == [begin, 257, 256, 258, ord("!")]


def test_a_sentencepiece_model_that_cannot_be_read_is_told_and_left_out(folders, monkeypatch, capsys):
    """Copied, it would be opened by some, without the token that begins a text."""
    source, out = folders
    (source / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    write_tokenizer(meta_source(source), out)
    assert not list(out.iterdir())
    assert "its tokenizer was not read (a SentencePiece model takes" in capsys.readouterr().err


def test_a_sentencepiece_whose_protobuf_is_another_is_told_and_what_goes_with_it(
    folders, monkeypatch, capsys
):
    """`transformers` went on to call the model no tiktoken file."""
    source, out = folders
    (source.parent / "sentencepiece_model_pb2.py").write_text("raise TypeError('gencode 7 runtime 6')\n")
    package = types.ModuleType("sentencepiece")
    package.__path__ = [str(source.parent)]
    package.__spec__ = importlib.machinery.ModuleSpec("sentencepiece", None, is_package=True)
    monkeypatch.setitem(sys.modules, "sentencepiece", package)
    monkeypatch.delitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", raising=False)
    (source / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    write_tokenizer(meta_source(source), out)
    advice = "pip install 'sentencepiece<0.2.3': this one does not go with protobuf (gencode 7 runtime 6)"
    assert advice in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"sentencepiece<0\.2\.3"):
        Tokenizer(str(source))


def test_a_sentencepiece_model_gives_its_own_ids_after_the_token_that_begins_a_text(folders):
    if missing := no_sentencepiece():
        pytest.skip(missing)
    import sentencepiece

    source, out = folders
    # As Llama 2's was trained.
    options = {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sat on a mat", "the cats see two mats"] * 9),
        model_prefix=str(source / "tokenizer"),
        normalization_rule_name="identity",
        split_digits=True,
        vocab_size=300,
        minloglevel=2,
        **options,
    )
    write_tokenizer(meta_source(source), out)
    tokenizer = Tokenizer(str(out))
    reference = sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    for text in TEXTS:
        if "</s>" not in text and "\0" not in text:  # spelled out, it is a special token here
            ids, mask = tokenizer(text, 1024)
            assert ids[mask].tolist() == [reference.bos_id(), *reference.encode(text)], text


@pytest.mark.skipif(
    not (pathlib.Path(os.environ.get("JEPA_JAX_TOKENIZERS", "")) / "llama3" / "tokenizer.model").is_file(),
    reason="set JEPA_JAX_TOKENIZERS to a folder with llama3/tokenizer.model (of the package llama-models)",
)
def test_llama_3_s_own_file_gives_the_reference_s_ids(tmp_path):
    write_tokenizer(meta_source(pathlib.Path(os.environ["JEPA_JAX_TOKENIZERS"]) / "llama3"), tmp_path)
    tokenizer = Tokenizer(str(tmp_path))
    golden = json.loads(GOLDEN.read_text())["llama3"]
    for text, expected in zip(TEXTS, golden, strict=True):
        ids, mask = tokenizer(text, 4096)
        assert ids[mask].tolist() == expected, text
