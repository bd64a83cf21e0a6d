"""What sentence-transformers does to a text before its model sees it."""

import contextlib
import json

import pytest

from jepa_jax.flags import UsageError
from weights_conversion.sentence import read_modules


@pytest.fixture
def write(tmp_path):
    """Files of a folder around a model, by name; gives the folder."""

    def write(**files: dict | list):
        files = {"modules": [{"type": "sentence_transformers.models.Transformer", "path": ""}], **files}
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_letters_that_the_tokenizer_leaves_and_sentence_transformers_lowers_are_refused(write):
    folder = write(sentence_bert_config={"do_lower_case": False})
    assert read_modules(folder).folder == folder
    write(sentence_bert_config={"do_lower_case": True}, tokenizer_config={"do_lower_case": True})
    assert read_modules(folder).folder == folder
    write(tokenizer_config={"do_lower_case": False})
    with pytest.raises(UsageError, match="do_lower_case is true, and not in"):
        read_modules(folder)


@pytest.mark.parametrize(
    ("kind", "options", "refused"),
    [
        ("text", {"add_special_tokens": False}, True),
        ("common", {"max_length": 4}, True),
        ("text", {"truncation": False}, True),
        ("text", {"truncation": True, "padding": "longest"}, False),
        ("image", {"do_resize": False}, False),
    ],
)
def test_other_tokens_than_the_tokenizer_s_own_are_refused(kind, options, refused, write):
    folder = write(sentence_bert_config={"processing_kwargs": {kind: options}})
    expected = (
        pytest.raises(UsageError, match="processing_kwargs has") if refused else contextlib.nullcontext()
    )
    with expected:
        read_modules(folder)


@pytest.mark.parametrize(
    ("own", "tokenizer", "positions", "length"),
    [
        (None, 1e30, 2048, 2048),
        (None, 64, 2048, 64),
        (None, None, 7, 7),
        (64, 5, 7, 64),
        (None, 1e30, None, None),
    ],
)
def test_a_text_is_cut_to_the_positions_of_the_model(own, tokenizer, positions, length, write):
    """Where sentence-transformers has no length of its own."""
    folder = write(
        sentence_bert_config={"max_seq_length": own},
        tokenizer_config={"model_max_length": tokenizer},
        config={"max_position_embeddings": positions},
    )
    assert read_modules(folder).max_length == length


def test_a_normalisation_of_single_tokens_is_refused(write, tmp_path):
    """Before the pool it gives another mean."""
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Normalize")]
    folder = write(modules=[modules[0] | {"path": ""}, modules[1] | {"path": "1_Normalize"}])
    assert read_modules(folder).folder == folder  # it seldom has a file
    (tmp_path / "1_Normalize").mkdir()
    file = tmp_path / "1_Normalize" / "config.json"
    file.write_text(json.dumps({"module_input_name": "sentence_embedding"}))
    assert read_modules(folder).folder == folder
    file.write_text(json.dumps({"module_input_name": "token_embeddings"}))
    with pytest.raises(UsageError, match="normalisation with module_input_name='token_embeddings' is not"):
        read_modules(folder)


@pytest.mark.parametrize("size", [None, 16])
def test_embeddings_that_sentence_transformers_cuts_are_told(size, write, caplog):
    read_modules(write(config_sentence_transformers={"truncate_dim": size}))
    assert ("keeps the first 16 numbers of an embedding" in caplog.text) == (size is not None)


@pytest.mark.parametrize("chosen", [None, "document", "gone"])
def test_prompts_that_are_not_put_before_every_text_say_nothing(chosen, write, caplog):
    prompts = {"query": "query: ", "document": ""}
    read_modules(write(config_sentence_transformers={"prompts": prompts, "default_prompt_name": chosen}))
    assert not caplog.messages


def test_a_prompt_that_is_put_before_every_text_is_told(write, caplog):
    said = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    read_modules(write(config_sentence_transformers=said))
    assert "puts 'query: ' before every text" in caplog.text
