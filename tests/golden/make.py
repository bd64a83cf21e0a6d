"""Write the tiny sources and the reference's outputs that `golden_test.py` compares with.

    python -m tests.golden.make

Needs PyTorch; the weights are random. The files are committed, so that parity is tested where there
is no PyTorch.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

from tests import tiny
from tests.weights_conversion import folders

FOLDER = pathlib.Path(__file__).parent
LENGTH = 23
MASK = tiny.right_padded([LENGTH, 13], LENGTH)


def tokens(vocab_size: int) -> np.ndarray:
    """[2, L] int64, by a formula, so that no generator's stream matters."""
    return (np.arange(2 * LENGTH).reshape(2, LENGTH) * 7 + 3) % vocab_size


def pixels() -> np.ndarray:
    """[2, T, H, W, C] uint8, by a formula."""
    shape = (2, 4, 35, 35, 3)
    t = np.arange(np.prod(shape)).reshape(shape)
    return (t * t // 37 % 256).astype(np.uint8)


def _text(model, **options) -> torch.Tensor:
    ids, mask = torch.from_numpy(tokens(41)), torch.from_numpy(MASK.astype(np.int64))
    return model(input_ids=ids, attention_mask=mask, **options)


def _mean(states: torch.Tensor) -> np.ndarray:
    return np.stack([row[m].mean(axis=0) for row, m in zip(states.numpy(), MASK, strict=True)])


@torch.no_grad()
def outputs(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The reference's outputs on the sources in a folder."""
    frames = (pixels().astype(np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    video = torch.from_numpy(np.ascontiguousarray(frames.astype(np.float32).transpose(0, 1, 4, 2, 3)))
    options = {"attn_implementation": "eager"}
    vjepa2 = transformers.VJEPA2Model.from_pretrained(folder / "vjepa2", **options)
    llama = transformers.LlamaForCausalLM.from_pretrained(folder / "llama", **options)
    gemma = transformers.Gemma3TextModel.from_pretrained(folder / "gemma", **options)
    bert = transformers.BertModel.from_pretrained(folder / "bert", **options)
    pooled = _mean(_text(gemma).last_hidden_state)
    for head in sorted(folder.glob("gemma/*_Dense")):
        from safetensors.numpy import load_file

        pooled = pooled @ load_file(head / "model.safetensors")["linear.weight"].T
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return {
        # Every seventh token is enough to see a wrong one.
        "vjepa2": vjepa2(video, skip_predictor=True).last_hidden_state.numpy()[:, ::7],
        "llama": _text(llama, use_cache=False).logits.numpy(),
        "gemma": unit(pooled).astype(np.float32),
        "bert": unit(_mean(_text(bert).last_hidden_state)).astype(np.float32),
    }


def make(folder: pathlib.Path) -> None:
    for name in ("vjepa2", "llama", "gemma", "bert"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folders.save(folders.vjepa2(), folder / "vjepa2")
    folders.save(folders.llama(2), folder / "llama")
    folders.embedding_gemma(folder / "gemma")
    folders.save(folders.bert(), folder / "bert")
    np.savez_compressed(folder / "outputs.npz", **outputs(folder))


if __name__ == "__main__":
    make(FOLDER)
