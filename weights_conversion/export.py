"""Write a part, or a part of a trained run, as a checkpoint that `transformers` opens.

    python -m weights_conversion.export --source=DIR --out=DIR [--part=PART] [--dtype=TYPE]

DIR is a folder of `python -m weights_conversion`, or a run's work directory (or one checkpoint in
it). Of a whole model, `--part` picks one; without it every part gets a folder of its own, and the
projections a file, `heads.safetensors`.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from safetensors.numpy import load_file, save_file

from jepa_jax import flags, inference, parts
from jepa_jax.checkpoint import DamagedCheckpointError
from jepa_jax.config import BertConfig
from jepa_jax.places import PlaceError, place
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, to_items
from weights_conversion import bert, convert, gemma, llama, open_vljepa, vjepa2
from weights_conversion.engine import Rule, invert
from weights_conversion.sources import TOKENIZER_FILES

# A shard is written when it has grown beyond so many bytes, so that memory stays bounded.
_SHARD_BYTES = 2**30
# Fields of older configurations that newer ones say otherwise.
_STALE = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern")
# Fields that neither our configuration nor a shape holds: a source's own are better than ours.
_GUESSED = ("pred_num_attention_heads", "max_position_embeddings")
_TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass
class Weights:
    """One part, from wherever it comes.

    Attributes:
      read: an array by its name in the part.
      kept: tensors the model does not use, by the reference's names.
      origin: the provenance of converted weights, else empty.
      folder: of the part, where its tokenizer is; None for a run.
      max_length: tokens its tokenizer cuts a text to, or None.
    """

    name: str
    config: Any
    read: Callable[[str], np.ndarray]
    kept: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: pathlib.Path | None = None
    max_length: int | None = None


def _of_part(part: parts.Part, name: str, config, prefix: str = "") -> Weights:
    def read(path: str) -> np.ndarray:
        return np.asarray(part.select({prefix + path}).read()[prefix + path])

    folder = pathlib.Path(part.directory)
    kept = {}
    if (folder / convert.KEPT_FILE).is_file():
        ours = {"x_encoder": "predictor.", "y_encoder": "pooler."}.get(name, "none")
        found = load_file(folder / convert.KEPT_FILE)
        kept = {path: x for path, x in found.items() if path.startswith(ours)}
    if part.name != name:
        return Weights(name, config, read, kept)
    return Weights(name, config, read, kept, part.provenance, folder, part.max_length)


def open_weights(directory: epath.Path) -> tuple[list[Weights], dict[str, np.ndarray]]:
    """The parts in a folder, and the projections of a whole model.

    Raises:
      UsageError: it is neither converted weights nor a run.
    """
    if parts.is_part(directory):
        with flags.as_usage_errors(parts.NotAPartError):
            part = parts.open_part(directory)
        if part.name != "vl_jepa":
            return [_of_part(part, part.name, part.config)], {}
        found = [_of_part(part, name, config, f"{name}/") for name, config in _sections(part.config)]
        heads = part.select({name for name in part.shapes if _is_head(name)}).read()
        return found, {name: np.asarray(x) for name, x in heads.items()}
    workdir, step = inference.find_run(directory)
    config = inference.run_config(workdir)
    template = abstract_state(config, make_mesh(devices=jax.local_devices()[:1]))[1]
    _, params, _ = inference.restore_run(workdir, step, config, to_items(template)["params"])
    arrays = {name: np.asarray(x) for name, x in parts.flatten(params).items()}
    found = [
        Weights(name, section, lambda path, name=name: arrays[f"{name}/{path}"])
        for name, section in _sections(config)
    ]
    return found, {name: x for name, x in arrays.items() if _is_head(name)}


def _sections(config) -> list[tuple[str, Any]]:
    """The parts of a whole model and their configurations."""
    return [(name, getattr(config.model, name)) for name in ("x_encoder", "predictor", "y_encoder")]


def _is_head(name: str) -> bool:
    return "_projection/" in name or name == "log_logit_scale"


def _table(weights: Weights) -> tuple[list[Rule], dict[str, Any]]:
    """The name table of the way back, and the reference's configuration."""
    config = weights.config
    match weights.name:
        case "x_encoder":
            shapes = {name: x.shape for name, x in weights.kept.items()}
            reference = vjepa2.config_to(config) | vjepa2.predictor_sizes(shapes)
            return vjepa2.rules(config), reference
        case "predictor":
            return llama.rules(config, "hf"), llama.config_to(config, None)
        case "y_decoder":
            bare = weights.origin.get("kind") == "llama" and not weights.origin["prefix"]
            rules = llama.rules(config.llama, "hf", prefix="" if bare else "model.", head=config.head)
            return rules, llama.config_to(config.llama, None if bare else config.head)
    if isinstance(config, BertConfig):
        return bert.rules(config), bert.config_to(config)
    return gemma.rules(config, "hf"), gemma.config_to(config)


def export(weights: Weights, folder: pathlib.Path, dtype: np.dtype | None = None) -> None:
    """Write one part into an existing folder: config.json, safetensors, tokenizer, and around a text
    encoder the modules of a sentence-transformers folder.

    Args:
      dtype: of the tensors; None keeps the type they are stored in.

    Raises:
      ConversionError: `transformers` has no such model.
    """
    if not weights.kept:
        weights.kept = _placeholders(weights)
    rules, reference = _table(weights)
    original = weights.origin.get("source_config", {})
    if original.get("model_type") == reference["model_type"]:
        # What our configuration does not hold (token ids, dropout) goes back as it came.
        kept = {name: value for name, value in original.items() if name not in _STALE}
        known = {name: original[name] for name in _GUESSED if name in original}
        reference = kept | reference | known
    if dtype is not None:
        reference.pop("torch_dtype", None)
        reference["dtype"] = dtype.name
    (folder / "config.json").write_text(json.dumps(reference, indent=2) + "\n")

    def cast(x: np.ndarray) -> np.ndarray:
        return x if dtype is None else x.astype(dtype)

    tensors = itertools.chain(invert(rules, weights.read), weights.kept.items())
    write_shards(((name, cast(x)) for name, x in tensors), folder)
    if weights.name == "y_encoder":
        _write_sentence_modules(weights, folder, cast)
    if weights.folder is not None:
        for file in TOKENIZER_FILES:
            if (weights.folder / file).is_file():
                shutil.copyfile(weights.folder / file, folder / file)


def _placeholders(weights: Weights) -> dict[str, np.ndarray]:
    """Zeros for what the reference's class holds, the source did not, and nobody here uses."""
    config = weights.config
    zeros = lambda *shape: np.zeros(shape, np.float32)
    if weights.name == "x_encoder":
        size = 8
        return {
            "predictor.embeddings.predictor_embeddings.weight": zeros(size, config.width),
            "predictor.embeddings.predictor_embeddings.bias": zeros(size),
            "predictor.embeddings.mask_tokens": zeros(1, 1, 1, size),
            "predictor.layernorm.weight": zeros(size),
            "predictor.layernorm.bias": zeros(size),
            "predictor.proj.weight": zeros(config.width, size),
            "predictor.proj.bias": zeros(config.width),
        }
    if isinstance(config, BertConfig):
        return {
            "pooler.dense.weight": zeros(config.width, config.width),
            "pooler.dense.bias": zeros(config.width),
        }
    return {}


def write_shards(tensors: Iterable[tuple[str, np.ndarray]], folder: pathlib.Path) -> None:
    """`model.safetensors`, or numbered shards and their index where there is more than one."""
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush():
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, x in tensors:
        held[name] = np.ascontiguousarray(x)
        total += x.nbytes
        if sum(y.nbytes for y in held.values()) > _SHARD_BYTES:
            flush()
    if held or not shards:
        flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{i}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_sentence_modules(weights: Weights, folder: pathlib.Path, cast) -> None:
    """The modules of sentence-transformers: the model, its pool, Dense heads, normalisation."""
    config = weights.config
    width, modules = config.width, [("", "Transformer"), ("1_Pooling", "Pooling")]
    first = getattr(config, "pool", "mean") == "first"
    pool = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": first,
        "pooling_mode_mean_tokens": not first,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pool, indent=2) + "\n")
    for k, size in enumerate(getattr(config, "dense_widths", ())):
        place = folder / f"{k + 2}_Dense"
        place.mkdir()
        head = {
            "in_features": width,
            "out_features": size,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        (place / "config.json").write_text(json.dumps(head, indent=2) + "\n")
        kernel = np.ascontiguousarray(weights.read(f"dense/{k}/kernel").T)
        save_file({"linear.weight": cast(kernel)}, place / "model.safetensors", metadata={"format": "pt"})
        modules.append((place.name, "Dense"))
        width = size
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    (folder / modules[-1][0]).mkdir()
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed, indent=2) + "\n")
    if weights.max_length is not None:
        length = {"max_seq_length": weights.max_length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(length, indent=2) + "\n")


def write_heads(heads: Mapping[str, np.ndarray], file: pathlib.Path, dtype: np.dtype | None) -> None:
    """The projections of a whole model under open-vljepa's names, and the temperature."""
    by_name = {
        name: np.ascontiguousarray(x if dtype is None else x.astype(dtype))
        for name, x in invert(open_vljepa.HEADS, heads.__getitem__)
    }
    by_name["log_logit_scale"] = np.asarray(heads["log_logit_scale"], np.float32)
    save_file(by_name, file, metadata={"format": "pt"})


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--source", required=True, help="converted weights, or a run")
    parser.add_argument(
        "--out", type=flags.local_path, required=True, help="the folder to write; it must not exist"
    )
    parser.add_argument("--part", help="one part of a whole model")
    parser.add_argument("--dtype", choices=_TYPES, help="of the tensors (default: as they are stored)")
    values, overrides = flags.parse(arguments, parser)
    if overrides:
        raise flags.UsageError("the configuration is the source's own: no --config flags here")
    convert.use_cpu()
    dtype = None if values.dtype is None else np.dtype(_TYPES[values.dtype])
    with flags.as_usage_errors(PlaceError):
        source = place(values.source)
    found, heads = open_weights(source)
    names = [weights.name for weights in found]
    if values.part is not None and values.part not in names:
        raise flags.UsageError(f"--part={values.part}: {values.source} has {', '.join(names)}")
    out = values.out.absolute()
    with convert.atomic_folder(out) as folder, flags.as_usage_errors(DamagedCheckpointError):
        if len(found) == 1 or values.part is not None:
            (weights,) = [w for w in found if values.part in (None, w.name)]
            export(weights, folder, dtype)
        else:
            for weights in found:
                (folder / weights.name).mkdir()
                export(weights, folder / weights.name, dtype)
            write_heads(heads, folder / "heads.safetensors", dtype)
    print(f"{out}: {values.part or ', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
