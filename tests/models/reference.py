"""The reference library's models: configs both ways, random weights, and their copy into ours."""

import math
from collections.abc import Callable

import numpy as np
import torch
import transformers

from jepa_jax import config as c


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


# Ours <- theirs, for each layer of a stack. Two-dimensional weights are transposed.
_X_LAYER = {
    "norm1/scale": "norm1.weight",
    "norm1/bias": "norm1.bias",
    "query/kernel": "attention.query.weight",
    "query/bias": "attention.query.bias",
    "key/kernel": "attention.key.weight",
    "key/bias": "attention.key.bias",
    "value/kernel": "attention.value.weight",
    "value/bias": "attention.value.bias",
    "out/kernel": "attention.proj.weight",
    "out/bias": "attention.proj.bias",
    "norm2/scale": "norm2.weight",
    "norm2/bias": "norm2.bias",
    "up/kernel": "mlp.fc1.weight",
    "up/bias": "mlp.fc1.bias",
    "down/kernel": "mlp.fc2.weight",
    "down/bias": "mlp.fc2.bias",
}
_LINEAR_LAYER = {
    "query/kernel": "self_attn.q_proj.weight",
    "key/kernel": "self_attn.k_proj.weight",
    "value/kernel": "self_attn.v_proj.weight",
    "out/kernel": "self_attn.o_proj.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
_LLAMA_LAYER = _LINEAR_LAYER | {
    "norm1/scale": "input_layernorm.weight",
    "norm2/scale": "post_attention_layernorm.weight",
}
_GEMMA_LAYER = _LINEAR_LAYER | {
    "query_norm/scale": "self_attn.q_norm.weight",
    "key_norm/scale": "self_attn.k_norm.weight",
    "norm_before_attention/scale": "input_layernorm.weight",
    "norm_after_attention/scale": "post_attention_layernorm.weight",
    "norm_before_mlp/scale": "pre_feedforward_layernorm.weight",
    "norm_after_mlp/scale": "post_feedforward_layernorm.weight",
}


def _stacked(layers, table: dict[str, str]) -> dict[tuple[str, ...], np.ndarray]:
    weights = [{k: v.numpy() for k, v in layer.state_dict().items()} for layer in layers]
    assert set(weights[0]) == set(table.values()), "a weight of the reference is not copied"
    return {
        ("blocks", "stacked", *ours.split("/")): np.stack([w[theirs].T for w in weights])
        for ours, theirs in table.items()
    }


def x_encoder_weights(model: transformers.VJEPA2Model) -> dict[tuple[str, ...], np.ndarray]:
    """Weights of `XEncoder`. The patch convolution [D, C, t, p, p] becomes a product over
    flattened tubelets, colour fastest."""
    encoder = model.encoder
    patch = encoder.embeddings.patch_embeddings.proj
    kernel = patch.weight.detach().numpy().transpose(2, 3, 4, 1, 0)
    return _stacked(encoder.layer, _X_LAYER) | {
        ("patch_embedding", "kernel"): kernel.reshape(-1, kernel.shape[-1]),
        ("patch_embedding", "bias"): patch.bias.detach().numpy(),
        ("norm", "scale"): encoder.layernorm.weight.detach().numpy(),
        ("norm", "bias"): encoder.layernorm.bias.detach().numpy(),
    }


def llama_weights(model: transformers.LlamaModel) -> dict[tuple[str, ...], np.ndarray]:
    """Weights of `Llama`: the token embedding is the predictor's."""
    return _stacked(model.layers, _LLAMA_LAYER) | {("norm", "scale"): model.norm.weight.detach().numpy()}


def gemma_weights(model: transformers.Gemma3TextModel) -> dict[tuple[str, ...], np.ndarray]:
    """Weights of `Gemma` without its Dense heads and output projection."""
    return _stacked(model.layers, _GEMMA_LAYER) | {
        ("token_embedding",): model.embed_tokens.weight.detach().numpy(),
        ("norm", "scale"): model.norm.weight.detach().numpy(),
    }


def to_vjepa2(config: c.XEncoderConfig, **extra) -> transformers.VJEPA2Config:
    assert config.tiled_rope, "the reference library has V-JEPA 2's frequencies only"
    assert config.rope_theta == 10_000.0, "the reference library has no other"
    return transformers.VJEPA2Config(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        mlp_ratio=config.mlp_width / config.width,
        crop_size=config.image_size,
        patch_size=config.patch_size,
        tubelet_size=config.tubelet_size,
        layer_norm_eps=config.norm_eps,
        **extra,
    )


def from_vjepa2(reference: transformers.VJEPA2Config) -> c.XEncoderConfig:
    assert reference.hidden_act == "gelu"
    assert reference.qkv_bias
    return c.XEncoderConfig(
        width=reference.hidden_size,
        layers=reference.num_hidden_layers,
        heads=reference.num_attention_heads,
        mlp_width=int(reference.hidden_size * reference.mlp_ratio),
        image_size=reference.crop_size,
        patch_size=reference.patch_size,
        tubelet_size=reference.tubelet_size,
        norm_eps=reference.layer_norm_eps,
    )


def to_llama(config: c.LlamaConfig, **extra) -> transformers.LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_length,
        }
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        **({"max_position_embeddings": 131_072, "use_cache": False} | extra),
    )


def from_llama(reference: transformers.LlamaConfig) -> c.LlamaConfig:
    assert reference.hidden_act == "silu"
    assert not reference.attention_bias
    assert not reference.mlp_bias
    rope = reference.rope_parameters
    scaling = None
    if rope["rope_type"] != "default":
        assert rope["rope_type"] == "llama3"
        scaling = c.RopeScaling(
            factor=rope["factor"],
            low_frequency_factor=rope["low_freq_factor"],
            high_frequency_factor=rope["high_freq_factor"],
            original_length=rope["original_max_position_embeddings"],
        )
    return c.LlamaConfig(
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
    )


def to_gemma(config: c.YEncoderConfig, **extra) -> transformers.Gemma3TextConfig:
    """The reference takes the width of the whole window and halves it: W sees |i - j| <= W // 2."""
    return transformers.Gemma3TextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.mlp_width,
        rms_norm_eps=config.norm_eps,
        query_pre_attn_scalar=int(config.query_scalar),
        sliding_window=2 * config.window,
        sliding_window_pattern=config.full_every,
        use_bidirectional_attention=True,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": config.rope_theta_sliding},
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta_full},
        },
        **({"use_cache": False} | extra),
    )


def from_gemma(
    reference: transformers.Gemma3TextConfig, dense_widths: tuple[int, ...] = ()
) -> c.YEncoderConfig:
    assert reference.hidden_activation == "gelu_pytorch_tanh"
    assert reference.use_bidirectional_attention
    assert not reference.attention_bias
    assert reference.attn_logit_softcapping is None
    rope = reference.rope_parameters
    return c.YEncoderConfig(
        vocab_size=reference.vocab_size,
        width=reference.hidden_size,
        layers=reference.num_hidden_layers,
        heads=reference.num_attention_heads,
        kv_heads=reference.num_key_value_heads,
        head_size=reference.head_dim,
        mlp_width=reference.intermediate_size,
        # By now the reference holds the exclusive bound: |i - j| < sliding_window.
        window=reference.sliding_window - 1,
        full_every=reference.layer_types.index("full_attention") + 1,
        rope_theta_sliding=float(rope["sliding_attention"]["rope_theta"]),
        rope_theta_full=float(rope["full_attention"]["rope_theta"]),
        query_scalar=float(reference.query_pre_attn_scalar),
        norm_eps=reference.rms_norm_eps,
        dense_widths=dense_widths,
    )
