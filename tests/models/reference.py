"""The reference library's models: configs both ways, random weights, and their copy into ours.

Names and configurations are the conversion's own tables; what judges them is the arithmetic.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
import transformers

from jepa_jax import config as c
from weights_conversion import bert, gemma, llama, vjepa2
from weights_conversion.convert import expected_shapes
from weights_conversion.engine import Rule, Unused, plan
from weights_conversion.tensors import TensorInfo, to_numpy

Weights = dict[tuple[str, ...], np.ndarray]


def randomise(model: torch.nn.Module, *, gain: float = 1.0, seed: int = 0) -> torch.nn.Module:
    """Fill every parameter, gains and biases too, with values that keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(generator=generator)
            if p.ndim == 1:
                p.mul_(0.3).add_(gain if name.endswith("weight") else 0.0)
            elif "embed_tokens" in name:
                p.div_(math.sqrt(p.shape[1]))
            else:
                p.div_(math.sqrt(p[0].numel()))
    return model.eval()


def forward(function: Callable, *arguments: np.ndarray, **keywords) -> np.ndarray:
    """Call a PyTorch function on NumPy arrays, without gradients."""
    with torch.no_grad():
        return function(*map(torch.from_numpy, arguments), **keywords).numpy()


def value(x: torch.Tensor) -> torch.Tensor:
    return x.detach()


class _Parameters:
    """The parameters of a module, or something `of` each, as a source."""

    files = ()

    def __init__(self, model: torch.nn.Module, of: Callable):
        self._tensors = {name: of(x) for name, x in model.named_parameters()}
        float32 = np.dtype(np.float32)
        self.info = {name: TensorInfo(tuple(x.shape), float32) for name, x in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return to_numpy(self._tensors[name])


def _weights(model, of, part: str, config, rules: list[Rule], unused: list[Unused]) -> Weights:
    arrays, _ = plan(_Parameters(model, of), rules, unused, expected_shapes(part, config))
    return {tuple(name.split("/")): array.read() for name, array in arrays.items()}


def x_encoder_weights(model: transformers.VJEPA2Model, of=value) -> Weights:
    """Weights of `XEncoder`, or `of` them."""
    config = from_vjepa2(model.config)
    return _weights(model, of, "x_encoder", config, vjepa2.rules(config), vjepa2.UNUSED)


def language_model_weights(model: transformers.LlamaModel, of=value) -> Weights:
    """Weights of `LanguageModel` without a head: token embedding, blocks, norm."""
    config = from_llama(model.config)
    return _weights(model, of, "predictor", config, llama.rules(config, "hf"), llama.UNUSED)


def llama_weights(model: transformers.LlamaModel) -> Weights:
    """Weights of `Llama`: the token embedding is the predictor's."""
    return {path[1:]: x for path, x in language_model_weights(model).items() if path[0] == "llama"}


def gemma_weights(model: transformers.Gemma3TextModel, of=value) -> Weights:
    """Weights of `Gemma` without its Dense heads and output projection."""
    config = from_gemma(model.config)
    return _weights(model, of, "y_encoder", config, gemma.rules(config, "hf"), gemma.UNUSED)


def bert_weights(model: transformers.BertModel, of=value) -> Weights:
    """Weights of `Bert` without its output projection."""
    config = bert.config_from(model.config)
    return _weights(model, of, "y_encoder", config, bert.rules(config), bert.UNUSED)


def _without_kind(fields: dict) -> dict:
    return {name: x for name, x in fields.items() if name not in ("model_type", "architectures")}


def to_vjepa2(config: c.XEncoderConfig, **extra) -> transformers.VJEPA2Config:
    return transformers.VJEPA2Config(**_without_kind(vjepa2.config_to(config)), **extra)


def from_vjepa2(reference: transformers.VJEPA2Config) -> c.XEncoderConfig:
    return vjepa2.config_from(reference)


def to_llama(config: c.LlamaConfig, **extra) -> transformers.LlamaConfig:
    fields = _without_kind(llama.config_to(config, None)) | {"use_cache": False}
    del fields["tie_word_embeddings"]  # the blocks alone have no head
    fields.pop("is_causal", None)  # tests give the mask
    return transformers.LlamaConfig(**(fields | extra))


def from_llama(reference: transformers.LlamaConfig) -> c.LlamaConfig:
    return dataclasses.replace(llama.config_from(reference).llama, causal=False)


def to_gemma(config: c.YEncoderConfig, **extra) -> transformers.Gemma3TextConfig:
    fields = _without_kind(gemma.config_to(config)) | {"use_cache": False} | extra
    return transformers.Gemma3TextConfig(**fields)


def from_gemma(
    reference: transformers.Gemma3TextConfig, dense_widths: tuple[int, ...] = ()
) -> c.YEncoderConfig:
    return gemma.config_from(reference, dense_widths)
