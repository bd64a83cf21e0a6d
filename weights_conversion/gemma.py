"""Gemma 3 text models: the name tables of EmbeddingGemma and of Gemma 3 in GGUF."""

from collections.abc import Mapping, Sequence

import numpy as np

from jepa_jax.config import YEncoderConfig
from weights_conversion.engine import (
    SAME,
    TRANSPOSE,
    ConversionError,
    Rule,
    Transform,
    Unused,
    require,
    require_plain_rope,
)
from weights_conversion.tensors import Tensors

UNUSED = [
    Unused(r"lm_head\.weight", "tied to the token embedding; an encoder has no logits"),
    Unused(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\..*", "computed from the configuration"),
]
GGUF_UNUSED = [Unused(r"output\.weight", "an encoder has no logits")]

# (ours, Hugging Face, GGUF); "{}" is the layer.
_OF_A_LAYER = [
    ("norm_before_attention/scale", "input_layernorm", "attn_norm"),
    ("query/kernel", "self_attn.q_proj", "attn_q"),
    ("key/kernel", "self_attn.k_proj", "attn_k"),
    ("value/kernel", "self_attn.v_proj", "attn_v"),
    ("query_norm/scale", "self_attn.q_norm", "attn_q_norm"),
    ("key_norm/scale", "self_attn.k_norm", "attn_k_norm"),
    ("out/kernel", "self_attn.o_proj", "attn_output"),
    ("norm_after_attention/scale", "post_attention_layernorm", "post_attention_norm"),
    ("norm_before_mlp/scale", "pre_feedforward_layernorm", "ffn_norm"),
    ("mlp/gate/kernel", "mlp.gate_proj", "ffn_gate"),
    ("mlp/up/kernel", "mlp.up_proj", "ffn_up"),
    ("mlp/down/kernel", "mlp.down_proj", "ffn_down"),
    ("norm_after_mlp/scale", "post_feedforward_layernorm", "post_ffw_norm"),
]
# GGUF stores a norm's gain as 1 + w. Shapes are worked out on booleans, which do not subtract.
_MINUS_ONE = Transform(
    lambda x: x if x.dtype == bool else x - np.ones((), x.dtype), lambda x: x + np.ones((), x.dtype)
)


def rules(config: YEncoderConfig, style: str, *, prefix: str = "") -> list[Rule]:
    """The table; `style` is "hf" or "gguf", `prefix` stands before Hugging Face's names."""
    column = ("hf", "gguf").index(style)
    norm = SAME if style == "hf" else _MINUS_ONE
    layer = (f"{prefix}layers.{{}}", "blk.{}")[column]
    table = []
    for ours, *theirs in _OF_A_LAYER:
        transform = TRANSPOSE if ours.endswith("kernel") else norm
        name = f"{layer}.{theirs[column]}.weight"
        table.append(Rule(f"blocks/stacked/{ours}", name, transform, layers=range(config.layers)))
    around = (f"{prefix}embed_tokens.weight", f"{prefix}norm.weight")
    if style == "gguf":
        around = ("token_embd.weight", "output_norm.weight")
    return [*table, Rule("token_embedding", around[0]), Rule("norm/scale", around[1], norm)]


def dense_rules(count: int) -> list[Rule]:
    """The Dense heads of a sentence-transformers folder, here named "dense:K/linear.weight"."""
    return [Rule(f"dense/{k}/kernel", f"dense:{k}/linear.weight", TRANSPOSE) for k in range(count)]


def _full_every(full: Sequence[bool], file: str) -> int:
    """Of layers the one in so many that sees every position; beyond their number where none does.

    Raises:
      ConversionError: they follow no such rule.
    """
    every = full.index(True) + 1 if True in full else len(full) + 1
    if full != [(i + 1) % every == 0 for i in range(len(full))]:
        raise ConversionError(f"{file}: the layers that see every position are not regular: {full}")
    return every


def config_from(reference, dense_widths: Sequence[int] = ()) -> YEncoderConfig:
    """From a `transformers.Gemma3TextConfig`.

    A causal model (Gemma 3 270M) is taken as the bidirectional one that `transformers` makes of it
    with `use_bidirectional_attention=True`: the window reaches half as far, to both sides.

    Raises:
      ConversionError: it asks for something that is not built.
    """
    require(
        reference, hidden_activation="gelu_pytorch_tanh", attention_bias=False, attn_logit_softcapping=None
    )
    rope = reference.rope_parameters
    for kind in ("sliding_attention", "full_attention"):
        if rope[kind]["rope_type"] != "default":
            raise ConversionError(f"config.json: rotary scaling {rope[kind]['rope_type']!r} is not built")
    strange = set(reference.layer_types) - {"sliding_attention", "full_attention"}
    if strange:
        raise ConversionError(f"config.json: layer_types have {min(strange)!r}, which is not built")
    full_every = _full_every([kind == "full_attention" for kind in reference.layer_types], "config.json")
    # The bidirectional configuration already holds the exclusive bound |i - j| < sliding_window.
    bidirectional = reference.use_bidirectional_attention
    window = reference.sliding_window - 1 if bidirectional else reference.sliding_window // 2
    return YEncoderConfig(
        vocab_size=reference.vocab_size,
        width=reference.hidden_size,
        layers=reference.num_hidden_layers,
        heads=reference.num_attention_heads,
        kv_heads=reference.num_key_value_heads,
        head_size=reference.head_dim,
        mlp_width=reference.intermediate_size,
        window=window,
        full_every=full_every,
        rope_theta_sliding=float(rope["sliding_attention"]["rope_theta"]),
        rope_theta_full=float(rope["full_attention"]["rope_theta"]),
        query_scalar=float(reference.query_pre_attn_scalar),
        norm_eps=reference.rms_norm_eps,
        dense_widths=tuple(dense_widths),
    )


def config_to(config: YEncoderConfig) -> dict:
    """The fields of a `transformers.Gemma3TextConfig` that say the same.

    Raises:
      ConversionError: `transformers` has no such model.
    """
    if config.query_scalar != int(config.query_scalar):
        raise ConversionError(
            f"y_encoder.query_scalar={config.query_scalar}; transformers takes whole numbers only"
        )
    kinds = ["sliding_attention", "full_attention"]
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3TextModel"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "query_pre_attn_scalar": int(config.query_scalar),
        "use_bidirectional_attention": True,
        # Read as `sliding_window // 2 + 1`, exclusive, when attention is bidirectional.
        "sliding_window": 2 * config.window,
        "layer_types": [kinds[(i + 1) % config.full_every == 0] for i in range(config.layers)],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_sliding},
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta_full},
        },
    }


def config_from_gguf(metadata: Mapping, tensors: Tensors) -> YEncoderConfig:
    """From a GGUF file's metadata (architecture `gemma3`).

    Raises:
      ConversionError: a field that is needed is not there, or one asks for what is not built.
    """
    if metadata.get("gemma3.attn_logit_softcapping"):
        raise ConversionError("the GGUF file: gemma3.attn_logit_softcapping is not built")
    try:
        get = lambda key: metadata[f"gemma3.{key}"]
        pattern = metadata.get("gemma3.attention.sliding_window_pattern", 6)
        if isinstance(pattern, list):  # of each layer, whether it slides
            pattern = _full_every([not slides for slides in pattern], "the GGUF file")
        heads = get("attention.head_count")
        head_size = tensors.info["blk.0.attn_q.weight"].shape[0] // heads
        require_plain_rope(metadata, "gemma3", head_size)
        return YEncoderConfig(
            vocab_size=tensors.info["token_embd.weight"].shape[0],
            width=get("embedding_length"),
            layers=get("block_count"),
            heads=heads,
            kv_heads=get("attention.head_count_kv"),
            head_size=head_size,
            mlp_width=get("feed_forward_length"),
            window=get("attention.sliding_window") // 2,
            full_every=pattern,
            rope_theta_full=float(f"{metadata.get('gemma3.rope.freq_base', 1e6):.7g}"),
            rope_theta_sliding=float(f"{metadata.get('gemma3.rope.freq_base_swa', 1e4):.7g}"),
            query_scalar=float(f"{metadata.get('gemma3.attention.scale', head_size**-0.5) ** -2:.7g}"),
            norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.7g}"),
        )
    except KeyError as error:
        raise ConversionError(f"the GGUF file does not say {error}: no Gemma 3") from error
