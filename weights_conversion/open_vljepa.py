"""open-vljepa (`cun-bjy/open-vljepa`): the whole model in one PyTorch state dict."""

import dataclasses
from collections.abc import Mapping

from jepa_jax.config import (
    Config,
    DataConfig,
    LlamaConfig,
    LossConfig,
    ModelConfig,
    YEncoderConfig,
)
from weights_conversion import gemma, llama, vjepa2
from weights_conversion.engine import (
    SAME,
    TRANSPOSE,
    ConversionError,
    Rule,
    Unused,
    prefixed,
    prefixed_unused,
)
from weights_conversion.tensors import TensorInfo

# The keys a state dict may be nested under, and the wrapper its names may carry.
NESTED = ("model_state_dict", "state_dict", "model")
_X, _P, _Y = "x_encoder.model.", "predictor.", "y_encoder.model."
UNUSED = [
    Unused(r"predictor\.rotary_emb\..*", "computed from the configuration"),
    Unused(r"y_encoder\.model\.(layers\.\d+\.self_attn\.)?rotary_emb.*", "computed from the configuration"),
    *prefixed_unused(vjepa2.UNUSED, _X),
]
TEMPERATURE = 0.07
HEADS = [
    Rule(f"{ours}/{name}", f"{theirs}.{kind}", transform)
    for ours, theirs in (
        ("predictor/visual_projection", "predictor.vis_proj"),
        ("predictor/output_projection", "predictor.out_proj"),
        ("y_encoder/output_projection", "y_encoder.projector"),
    )
    for name, kind, transform in (("kernel", "weight", TRANSPOSE), ("bias", "bias", SAME))
]


def looks_like(names) -> bool:
    return "predictor.vis_proj.weight" in names or "module.predictor.vis_proj.weight" in names


def rules(config: Config) -> list[Rule]:
    """The whole table; the temperature is a constant of the loss and not in the file."""
    model = config.model
    table = prefixed(vjepa2.rules(model.x_encoder), ours="x_encoder/", theirs=_X)
    table += prefixed(llama.rules(model.predictor, "hf"), ours="predictor/", theirs=_P)
    table += prefixed(gemma.rules(model.y_encoder, "hf"), ours="y_encoder/", theirs=_Y)
    return table + HEADS


def kept(names) -> list[Rule]:
    """V-JEPA's predictor, under the names of `VJEPA2Model`."""
    inner = [name.removeprefix(_X) for name in names if name.startswith(_X)]
    return prefixed(vjepa2.kept(inner), theirs=_X)


def config_of_shapes(info: Mapping[str, TensorInfo], saved: Mapping) -> Config:
    """The configuration from the shapes and from what the file's own `config` says, if it has one.

    What leaves no trace in shapes (heads of the encoder, rotary bases, the window) is that of the
    released models the checkpoint was started from; `--config.model...` changes it.
    """
    data = saved.get("data", {}) if isinstance(saved.get("data", {}), Mapping) else {}
    frames, size = int(data.get("num_frames", 8)), int(data.get("image_size", 256))
    try:
        x_encoder = vjepa2.config_of_shapes(
            info,
            _X + "encoder.embeddings.patch_embeddings.proj.weight",
            _X + "encoder.layer.",
            _X + "encoder.layer.0.mlp.fc1.weight",
            size,
        )
        embedding_size = info["predictor.out_proj.weight"].shape[0]
        predictor = _predictor(info)
        y_encoder = _y_encoder(info)
    except KeyError as error:
        raise ConversionError(f"no open-vljepa checkpoint: it has no {error}") from error
    lengths = (int(data.get("max_query_len", 64)), int(data.get("max_caption_len", 64)))
    return Config(
        name="open_vljepa",
        model=ModelConfig(
            x_encoder=x_encoder, predictor=predictor, y_encoder=y_encoder, embedding_size=embedding_size
        ),
        loss=LossConfig(temperature=TEMPERATURE, learnable_temperature=False),
        data=DataConfig(
            frames=frames,
            resize=size,
            length_buckets=(lengths,),
            query_tokenizer=str(_named(saved, "predictor", "llama_name", "meta-llama/Llama-3.2-1B")),
            target_tokenizer=str(_named(saved, "y_encoder", "model_name", "google/embeddinggemma-300m")),
        ),
        steps=1,
        batch_size=1,
    )


def _named(saved: Mapping, section: str, key: str, default: str):
    part = saved.get(section)
    return part.get(key, default) if isinstance(part, Mapping) else default


def _predictor(info) -> LlamaConfig:
    vocab_size, width = info["predictor.embed_tokens.weight"].shape
    first = "predictor.layers.0.self_attn"
    preset = LlamaConfig.llama_3_2_1b()
    head_size = preset.head_size
    found = {
        "vocab_size": vocab_size,
        "width": width,
        "layers": vjepa2.count_numbers(info, "predictor.layers."),
        "heads": max(1, info[f"{first}.q_proj.weight"].shape[0] // head_size),
        "kv_heads": max(1, info[f"{first}.k_proj.weight"].shape[0] // head_size),
        "mlp_width": info["predictor.layers.0.mlp.gate_proj.weight"].shape[0],
    }
    return dataclasses.replace(preset, **found)


def _y_encoder(info) -> YEncoderConfig:
    vocab_size, width = info[_Y + "embed_tokens.weight"].shape
    first = _Y + "layers.0."
    head_size = info[first + "self_attn.q_norm.weight"].shape[0]
    preset = YEncoderConfig.embedding_gemma_300m(dense_heads=False)
    found = {
        "vocab_size": vocab_size,
        "width": width,
        "layers": vjepa2.count_numbers(info, _Y + "layers."),
        "heads": info[first + "self_attn.q_proj.weight"].shape[0] // head_size,
        "kv_heads": info[first + "self_attn.k_proj.weight"].shape[0] // head_size,
        "head_size": head_size,
        "mlp_width": info[first + "mlp.gate_proj.weight"].shape[0],
    }
    return dataclasses.replace(preset, query_scalar=float(head_size), **found)
