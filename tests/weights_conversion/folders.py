"""Tiny sources in the references' own formats, with random weights."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests import tiny
from tests.models import reference

SMALL_PREDICTOR = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 2}


def vjepa2(**changes) -> transformers.VJEPA2Model:
    config = reference.to_vjepa2(tiny.x_encoder(**changes), pred_num_mask_tokens=3, **SMALL_PREDICTOR)
    return reference.randomise(transformers.VJEPA2Model(config))


def llama(layers: int = 10, *, tied: bool = True, **changes) -> transformers.LlamaForCausalLM:
    config = reference.to_llama(tiny.llama(layers=layers, **changes), tie_word_embeddings=tied)
    return reference.randomise(transformers.LlamaForCausalLM(config))


def gemma(**changes) -> transformers.Gemma3TextModel:
    config = dataclasses.replace(tiny.y_encoder(width=54), **changes)
    return reference.randomise(transformers.Gemma3TextModel(reference.to_gemma(config)), gain=0.0)


def bert() -> transformers.BertModel:
    config = transformers.BertConfig(
        vocab_size=43,
        hidden_size=57,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=61,
        max_position_embeddings=29,
    )
    return reference.randomise(transformers.BertModel(config))


def save(model: transformers.PreTrainedModel, folder: pathlib.Path, dtype=torch.float32, **options):
    """The model as a Hugging Face folder."""
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def embedding_gemma(folder: pathlib.Path, widths=(29, 17), dtype=torch.float32) -> pathlib.Path:
    """A sentence-transformers folder: Gemma, mean pool, Dense heads, normalisation."""
    save(gemma(), folder, dtype)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    width = 54
    pool = {
        "word_embedding_dimension": width,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pool))
    for k, size in enumerate(widths):
        place = folder / f"{k + 2}_Dense"
        place.mkdir()
        config = {"in_features": width, "out_features": size, "bias": False}
        config["activation_function"] = "torch.nn.modules.linear.Identity"
        (place / "config.json").write_text(json.dumps(config))
        weight = torch.from_numpy(tiny.normal(size, width, seed=k)).to(dtype) / width**0.5
        save_file({"linear.weight": weight}, place / "model.safetensors")
        modules.append((place.name, "Dense"))
        width = size
    modules.append(("4_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def fused(state: dict, layer: str, kind: str) -> torch.Tensor:
    return torch.cat([state[f"{layer}.attention.{name}.{kind}"] for name in ("query", "key", "value")])


def meta_vjepa2(model: transformers.VJEPA2Model) -> dict[str, dict[str, torch.Tensor]]:
    """Meta's file of the same weights: fused qkv, wrappers' prefixes, positions nobody uses."""
    state = model.state_dict()
    config = model.config
    encoder = {
        "patch_embed.proj.weight": state["encoder.embeddings.patch_embeddings.proj.weight"],
        "patch_embed.proj.bias": state["encoder.embeddings.patch_embeddings.proj.bias"],
        "norm.weight": state["encoder.layernorm.weight"],
        "norm.bias": state["encoder.layernorm.bias"],
        "pos_embed": torch.zeros(1, 7, config.hidden_size),
    }
    predictor = {"predictor_pos_embed": torch.zeros(1, 7, config.pred_hidden_size)}
    for kind in ("weight", "bias"):
        for ours, theirs in (
            ("predictor_embed", "embeddings.predictor_embeddings"),
            ("predictor_norm", "layernorm"),
            ("predictor_proj", "proj"),
        ):
            predictor[f"{ours}.{kind}"] = state[f"predictor.{theirs}.{kind}"]
        for part, layers, blocks, into in (
            ("encoder", config.num_hidden_layers, "blocks", encoder),
            ("predictor", config.pred_num_hidden_layers, "predictor_blocks", predictor),
        ):
            for i in range(layers):
                theirs, ours = f"{part}.layer.{i}", f"{blocks}.{i}"
                into[f"{ours}.attn.qkv.{kind}"] = fused(state, theirs, kind)
                into[f"{ours}.attn.proj.{kind}"] = state[f"{theirs}.attention.proj.{kind}"]
                for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                    into[f"{ours}.{name}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
    for i, token in enumerate(state["predictor.embeddings.mask_tokens"]):
        predictor[f"mask_tokens.{i}"] = token
    wrapped = {f"module.backbone.{name}": x.clone() for name, x in encoder.items()}
    return {
        "encoder": wrapped,
        "target_encoder": {name: x + 1 for name, x in wrapped.items()},
        "predictor": {f"module.backbone.{name}": x.clone() for name, x in predictor.items()},
        "epoch": 3,
    }


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection whose rotary pairs are (i, i + A/2) so that they are (2i, 2i + 1)."""
    size = weight.shape[0] // heads
    return weight.reshape(heads, 2, size // 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


def meta_llama(model: transformers.LlamaForCausalLM) -> tuple[dict[str, torch.Tensor], dict]:
    """Meta's tensors and params.json of the same weights."""
    state, config = model.state_dict(), model.config
    found = {
        "tok_embeddings.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
        "rope.freqs": torch.zeros(config.head_dim // 2),
    }
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for ours, theirs in (
            ("attention_norm", "input_layernorm"),
            ("attention.wv", "self_attn.v_proj"),
            ("attention.wo", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
        ):
            found[f"layers.{i}.{ours}.weight"] = state[f"{layer}.{theirs}.weight"]
        for ours, theirs, heads in (
            ("wq", "q_proj", config.num_attention_heads),
            ("wk", "k_proj", config.num_key_value_heads),
        ):
            weight = state[f"{layer}.self_attn.{theirs}.weight"]
            found[f"layers.{i}.attention.{ours}.weight"] = neighbours(weight, heads)
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    return {name: x.clone() for name, x in found.items()}, params


def save_meta_llama(
    tensors: dict, params: dict, folder: pathlib.Path, shards: int = 1, *, embedding_axis: int = 0
) -> pathlib.Path:
    """consolidated.NN.pth, cut as Meta's model parallelism cuts: the token embedding along the vocabulary
    in Llama 3, along the width (1) in its predecessors."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for k in range(shards):
        piece = {}
        for name, x in tensors.items():
            axis = 1 if ".wo." in name or ".w2." in name else None if "norm" in name or "freqs" in name else 0
            axis = embedding_axis if name == "tok_embeddings.weight" else axis
            piece[name] = x if axis is None else x.chunk(shards, axis)[k].clone()
        torch.save(piece, folder / f"consolidated.{k:02d}.pth")
    return folder


def open_vljepa(
    x: transformers.VJEPA2Model, p: transformers.LlamaModel, y: transformers.Gemma3TextModel, size: int = 23
):
    """The state dict of open-vljepa's model around three references."""
    state = {f"x_encoder.model.{name}": w for name, w in x.state_dict().items()}
    state |= {f"predictor.{name}": w for name, w in p.state_dict().items()}
    state |= {f"y_encoder.model.{name}": w for name, w in y.state_dict().items()}
    for k, (name, wide, narrow) in enumerate(
        (
            ("predictor.vis_proj", x.config.hidden_size, p.config.hidden_size),
            ("predictor.out_proj", p.config.hidden_size, size),
            ("y_encoder.projector", y.config.hidden_size, size),
        )
    ):
        state[f"{name}.weight"] = torch.from_numpy(tiny.normal(narrow, wide, seed=k) / np.float32(wide**0.5))
        state[f"{name}.bias"] = torch.from_numpy(tiny.normal(narrow, seed=10 + k))
    return {name: w.clone() for name, w in state.items()}


def one_line(text: str) -> str:
    assert "\n" not in text, text
    return text


def copy(whole: pathlib.Path, name: str, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(whole / name, tmp_path / name))


def edit(file: pathlib.Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
