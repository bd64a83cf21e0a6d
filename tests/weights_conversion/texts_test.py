"""Texts given to a converted text encoder: where they are cut, and tokens its table has no row for."""

import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the sources are written with PyTorch, of the extra `convert`")

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import jepa_jax
from jepa_jax import parts
from jepa_jax.flags import UsageError
from tests.weights_conversion import folders
from tests.weights_conversion.formats_test import convert

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
    with pytest.raises(UsageError, match="part' cannot be loaded"):
        model.embed_text(["a"])
