"""Llama architecture: the name tables of Hugging Face, Meta's own checkpoints, and GGUF."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from jepa_jax.config import LlamaConfig, RopeScaling
from jepa_jax.parts import LanguageModelConfig
from weights_conversion.engine import (
    SAME,
    TRANSPOSE,
    ConversionError,
    Rule,
    Unused,
    neighbours_to_halves,
    require,
    require_plain_rope,
)
from weights_conversion.tensors import Tensors

UNUSED = [
    Unused(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "computed from the configuration")
]
META_UNUSED = [Unused(r"rope\.freqs", "computed from the configuration")]
GGUF_UNUSED = [Unused(r"rope_freqs\.weight", "the rotary scaling, read into the configuration")]

# (ours, Hugging Face, Meta, GGUF); "{}" is the layer.
_OF_A_LAYER = [
    ("norm1/scale", "input_layernorm.weight", "attention_norm.weight", "attn_norm.weight"),
    ("query/kernel", "self_attn.q_proj.weight", "attention.wq.weight", "attn_q.weight"),
    ("key/kernel", "self_attn.k_proj.weight", "attention.wk.weight", "attn_k.weight"),
    ("value/kernel", "self_attn.v_proj.weight", "attention.wv.weight", "attn_v.weight"),
    ("out/kernel", "self_attn.o_proj.weight", "attention.wo.weight", "attn_output.weight"),
    ("norm2/scale", "post_attention_layernorm.weight", "ffn_norm.weight", "ffn_norm.weight"),
    ("mlp/gate/kernel", "mlp.gate_proj.weight", "feed_forward.w1.weight", "ffn_gate.weight"),
    ("mlp/up/kernel", "mlp.up_proj.weight", "feed_forward.w3.weight", "ffn_up.weight"),
    ("mlp/down/kernel", "mlp.down_proj.weight", "feed_forward.w2.weight", "ffn_down.weight"),
]
_AROUND = [
    ("token_embedding", "embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight"),
    ("llama/norm/scale", "norm.weight", "norm.weight", "output_norm.weight"),
]
_HEAD = ("output/kernel", "lm_head.weight", "output.weight", "output.weight")
_LAYER = ("layers.{}", "layers.{}", "blk.{}")
STYLES = ("hf", "meta", "gguf")


def rules(
    config: LlamaConfig, style: str, *, first_layer: int = 0, prefix: str = "", head: str | None = None
) -> list[Rule]:
    """The table in one of `STYLES`.

    Args:
      first_layer: the source's layer that becomes our first (the predictor takes the last ones).
      prefix: before all of Hugging Face's names but the head's ("model." in a causal model).
      head: "own" where there are weights for the logits.
    """
    column = STYLES.index(style)
    layers = range(first_layer, first_layer + config.layers)
    table = []
    for ours, *theirs in _OF_A_LAYER:
        transform = TRANSPOSE if ours.endswith("kernel") else SAME
        if style != "hf" and ours in ("query/kernel", "key/kernel"):
            heads = config.heads if ours == "query/kernel" else config.kv_heads
            transform = neighbours_to_halves(heads).then(TRANSPOSE)
        name = f"{prefix}{_LAYER[column]}.{theirs[column]}"
        table.append(Rule(f"llama/blocks/stacked/{ours}", name, transform, layers=layers))
    table += [Rule(ours, prefix + theirs[column]) for ours, *theirs in _AROUND]
    if head == "own":
        table.append(Rule(_HEAD[0], _HEAD[1:][column], TRANSPOSE))
    return table


def not_asked_for(style: str, prefix: str, first_layer: int, *, with_head: bool, tied: bool) -> list[Unused]:
    """What a part leaves in the source on purpose."""
    column = STYLES.index(style)
    layer = re.escape(prefix + _LAYER[column].removesuffix("{}"))
    dropped = []
    if first_layer:
        numbers = "|".join(map(str, range(first_layer)))
        dropped.append(Unused(rf"{layer}({numbers})\..*", "layers before those that were asked for"))
    if tied or not with_head:
        reason = "tied to the token embedding" if tied else "the predictor has no language-model head"
        dropped.append(Unused(re.escape(_HEAD[1:][column]), reason))
    return dropped


def config_from(reference) -> LanguageModelConfig:
    """From a `transformers.LlamaConfig`, all layers.

    Raises:
      ConversionError: it asks for something that is not built.
    """
    require(reference, hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope = reference.rope_parameters
    if (turned := rope.get("partial_rotary_factor")) not in (None, 1.0):
        raise ConversionError(f"config.json: partial_rotary_factor={turned!r}; only 1.0 is built")
    scaling = None
    if rope["rope_type"] == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_frequency_factor=float(rope["low_freq_factor"]),
            high_frequency_factor=float(rope["high_freq_factor"]),
            original_length=rope["original_max_position_embeddings"],
        )
    elif rope["rope_type"] != "default":
        raise ConversionError(
            f"config.json: rotary scaling {rope['rope_type']!r}; only llama3's and none are built"
        )
    config = LlamaConfig(
        vocab_size=reference.vocab_size,
        width=reference.hidden_size,
        layers=reference.num_hidden_layers,
        heads=reference.num_attention_heads,
        kv_heads=reference.num_key_value_heads,
        head_size=reference.head_dim,
        mlp_width=reference.intermediate_size,
        rope_theta=float(rope["rope_theta"]),
        rope_scaling=scaling,
        norm_eps=reference.rms_norm_eps,
        causal=True,
    )
    return LanguageModelConfig(llama=config, head="tied" if reference.tie_word_embeddings else "own")


def config_to(config: LlamaConfig, head: str | None) -> dict:
    """The fields of a `transformers.LlamaConfig` that say the same."""
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_length,
        }
    # Read by `transformers` from 5 on; to earlier versions every Llama is causal.
    both_ways = {} if config.causal else {"is_causal": False}
    return both_ways | {
        "model_type": "llama",
        "architectures": ["LlamaModel" if head is None else "LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": 131_072 if config.rope_scaling else 8192,
        "tie_word_embeddings": head != "own",
    }


def config_from_meta(params: Mapping, tensors: Tensors) -> LanguageModelConfig:
    """From Meta's `params.json`; sizes that it only hints at are read from the shapes.

    Raises:
      ConversionError: a field or tensor that is needed is not there.
    """
    try:
        width, heads = int(params["dim"]), int(params["n_heads"])
        vocab_size = tensors.info["tok_embeddings.weight"].shape[0]
        mlp_width = tensors.info["layers.0.feed_forward.w1.weight"].shape[0]
        scaling = None
        if params.get("use_scaled_rope"):
            # Meta keeps the factor in its code: 8 for Llama 3.1, 32 for the small models of 3.2.
            factor = params.get("rope_scaling_factor") or (32 if width <= 3072 else 8)
            scaling = RopeScaling(factor=float(factor))
        config = LlamaConfig(
            vocab_size=vocab_size,
            width=width,
            layers=int(params["n_layers"]),
            heads=heads,
            kv_heads=int(params.get("n_kv_heads") or heads),
            head_size=tensors.info["layers.0.attention.wq.weight"].shape[0] // heads,
            mlp_width=mlp_width,
            rope_theta=float(params.get("rope_theta", 10_000.0)),
            rope_scaling=scaling,
            norm_eps=float(params["norm_eps"]),
            causal=True,
        )
    except KeyError as error:
        raise ConversionError(
            f"params.json and consolidated files do not have {error}: no Llama of Meta's"
        ) from error
    return LanguageModelConfig(llama=config, head=_head(tensors, "output.weight", "tok_embeddings.weight"))


def _head(tensors: Tensors, output: str, embedding: str) -> str:
    """Whether the logits have weights of their own."""
    if output not in tensors.info or tensors.info[output] != tensors.info.get(embedding):
        return "tied" if output not in tensors.info else "own"
    return "tied" if np.array_equal(tensors.read(output), tensors.read(embedding)) else "own"


def check_head(config: LanguageModelConfig, tensors: Tensors, prefix: str) -> None:
    """Raise ConversionError where a config.json says that the weights of the logits are the token embedding,
    and there are others."""
    if config.head == "tied" and _head(tensors, "lm_head.weight", f"{prefix}embed_tokens.weight") == "own":
        raise ConversionError(
            "config.json says that lm_head.weight is the token embedding, and it is another matrix: set "
            "tie_word_embeddings there to false, or take lm_head.weight out"
        )


def config_from_gguf(metadata: Mapping, tensors: Tensors) -> LanguageModelConfig:
    """From a GGUF file's metadata (architecture `llama`).

    Raises:
      ConversionError: a field that is needed is not there.
    """
    try:
        get = lambda key: metadata[f"llama.{key}"]
        heads, width = get("attention.head_count"), get("embedding_length")
        config = LlamaConfig(
            vocab_size=tensors.info["token_embd.weight"].shape[0],
            width=width,
            layers=get("block_count"),
            heads=heads,
            kv_heads=metadata.get("llama.attention.head_count_kv", heads),
            head_size=tensors.info["blk.0.attn_q.weight"].shape[0] // heads,
            mlp_width=get("feed_forward_length"),
            rope_theta=_rounded(metadata.get("llama.rope.freq_base", 10_000.0)),
            norm_eps=_rounded(get("attention.layer_norm_rms_epsilon")),
            causal=True,
        )
    except KeyError as error:
        raise ConversionError(f"the GGUF file does not say {error}: no Llama") from error
    require_plain_rope(metadata, "llama", config.head_size)
    if "rope_freqs.weight" in tensors.info:
        config = dataclasses.replace(config, rope_scaling=_scaling(config, tensors.read("rope_freqs.weight")))
    return LanguageModelConfig(llama=config, head="own" if "output.weight" in tensors.info else "tied")


def _rounded(x: float) -> float:
    """A float32 of the file as the short decimal it was written from: 1e-05, not 9.99999974e-06."""
    return float(f"{x:.7g}")


def _scaling(config: LlamaConfig, divisors: np.ndarray) -> RopeScaling:
    """Llama 3's rotary scaling from the divisors of the frequencies that GGUF stores."""
    from jepa_jax.models.layers import rope_frequencies

    scaling = RopeScaling(factor=round(float(divisors.max()), 3))
    plain = rope_frequencies(config.head_size, config.rope_theta)
    scaled = rope_frequencies(config.head_size, config.rope_theta, scaling)
    if divisors.shape != plain.shape or not np.allclose(plain / scaled, divisors, rtol=1e-4):
        raise ConversionError("rope_freqs.weight is no rotary scaling of Llama 3's")
    return scaling


def axis_of(name: str, width: int, info) -> int | None:
    """The axis along which Meta's consolidated files cut a tensor, of whose slice `info` is."""
    if any(part in name for part in (".wo.", ".w2.")):
        return 1
    if name == "tok_embeddings.weight":
        # Llama 3 cuts the vocabulary, its predecessors the width.
        return 0 if info.shape[-1:] == (width,) else 1
    return 0 if any(part in name for part in (".wq.", ".wk.", ".wv.", ".w1.", ".w3.", "output.")) else None
