"""Write a part, or a part of a trained run, as a checkpoint that `transformers` opens.

    python -m weights_conversion.export --source=DIR --out=DIR [--part=PART] [--dtype=TYPE]

DIR is a folder of `python -m weights_conversion`, or a run's work directory (or one checkpoint in
it). Of a whole model, `--part` picks one; without it every part gets a folder of its own, and the
projections a file, `heads.safetensors`.
"""

import dataclasses
import functools
import itertools
import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jepa_jax import flags, inference, parts
from jepa_jax.checkpoint import DamagedCheckpointError
from jepa_jax.config import BertConfig, Config
from jepa_jax.data.tokenizer import (
    Tokenizer,
    has_vocabulary,
    identity_of,
    load_query_tokenizer,
    load_target_tokenizer,
)
from jepa_jax.errors import first_line
from jepa_jax.places import PlaceError, place
from jepa_jax.sharding import make_mesh
from jepa_jax.state import abstract_state, to_items
from weights_conversion import bert, convert, gemma, llama, open_vljepa, vjepa2
from weights_conversion.engine import Rule, invert
from weights_conversion.files import sha256
from weights_conversion.sentence import PROJECTION
from weights_conversion.sources import TOKENIZER_FILES

logger = logging.getLogger(__name__)

# A shard is written when it has grown beyond so many bytes, so that memory stays bounded.
_SHARD_BYTES = 2**30
# Fields of older configurations that newer ones say otherwise, and one that is there if it is not so.
_STALE = ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "is_causal")
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
      folder: of the part, where its tokenizer is; None for a part of a whole model.
      max_length: tokens its tokenizer cuts a text to, or None.
      tokenizer: loads that of a whole model's texts.
      learned_with: `identity_of` the tokenizer that training split them with; None where nobody knows.
      embedding_size: of the shared space, where a Y-Encoder has a projection to it.
    """

    name: str
    config: Any
    read: Callable[[str], np.ndarray]
    kept: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: pathlib.Path | None = None
    max_length: int | None = None
    tokenizer: Callable[[], Tokenizer] | None = None
    learned_with: str | None = None
    embedding_size: int | None = None


def _of_part(part: parts.Part, name: str, config, prefix: str = "") -> Weights:
    def read(path: str) -> np.ndarray:
        return np.asarray(part.select({prefix + path}).read()[prefix + path])

    folder = pathlib.Path(part.directory)
    ours = {"x_encoder": "predictor.", "y_encoder": "pooler."}.get(name, "none")
    kept = {path: x for path, x in _kept(folder, part).items() if path.startswith(ours)}
    if part.name != name:
        return Weights(name, config, read, kept)
    return Weights(name, config, read, kept, part.provenance, folder, part.max_length)


def _kept(folder: pathlib.Path, part: parts.Part) -> dict[str, np.ndarray]:
    """The tensors beside a part that its model does not use.

    Raises:
      UsageError: they are not those that were written.
    """
    file, written = folder / convert.KEPT_FILE, part.provenance.get("kept")
    if written is None and not file.is_file():
        return {}
    try:
        if written in (None, sha256(file)):  # it was not noted at first
            return load_file(file)
        reason = "differs from what was written"
    except (OSError, SafetensorError) as error:
        reason = first_line(error)
    raise flags.UsageError(f"{file}: {reason}; convert the source again")


def open_weights(directory: epath.Path) -> tuple[list[Weights], dict[str, np.ndarray]]:
    """The parts in a folder, and the projections of a whole model.

    Raises:
      UsageError: it is neither converted weights nor a run, or tensors beside its arrays were changed.
    """
    if parts.is_part(directory):
        with flags.as_usage_errors(parts.NotAPartError):
            part = parts.open_part(directory)
        if part.name != "vl_jepa":
            return [_of_part(part, part.name, part.config)], {}
        found = [_of_part(part, name, config, f"{name}/") for name, config in _sections(part.config)]
        _add_texts(found, part.config)
        heads = part.select({name for name in part.shapes if _is_head(name)}).read()
        return found, {name: np.asarray(x) for name, x in heads.items()}
    workdir, step = inference.find_run(directory)
    config = inference.run_config(workdir)
    template = abstract_state(config, make_mesh(devices=jax.local_devices()[:1]))[1]
    _, params, data = inference.restore_run(workdir, step, config, to_items(template)["params"])
    arrays = {name: np.asarray(x) for name, x in parts.flatten(params).items()}
    found = [
        Weights(name, section, lambda path, name=name: arrays[f"{name}/{path}"])
        for name, section in _sections(config)
    ]
    _add_texts(found, config, data.get("tokenizers"))
    return found, {name: x for name, x in arrays.items() if _is_head(name)}


def _add_texts(found: Iterable[Weights], config: Config, learned_with: str | None = None) -> None:
    """What a whole model knows of the texts of its parts.

    Args:
      learned_with: `identity_of` both tokenizers.
    """
    _, predictor, y_encoder = found
    predictor.tokenizer = functools.partial(load_query_tokenizer, config)
    y_encoder.tokenizer = functools.partial(load_target_tokenizer, config)
    predictor.max_length, y_encoder.max_length = config.data.length_buckets[-1]
    if learned_with is not None:
        predictor.learned_with, y_encoder.learned_with = learned_with.split()
    if config.model.y_projection:
        y_encoder.embedding_size = config.model.embedding_size


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
    """Write one part into an existing folder: config.json and safetensors.

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

    tensors = itertools.chain(invert(rules, weights.read), weights.kept.items())
    write_shards(((name, _cast(x, dtype)) for name, x in tensors), folder)


def _cast(x: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    return x if dtype is None else x.astype(dtype)


def export_texts(weights: Weights, folder: pathlib.Path, dtype: np.dtype | None = None) -> None:
    """Write into the folder of a part what its texts take: the tokenizer, and around a text encoder the
    modules of a sentence-transformers folder. Without a tokenizer the list of them, modules.json, which says
    that the folder is one, is left out."""
    prefix = None
    try:
        prefix = _write_tokenizer(weights, folder)
    except ValueError as error:
        more = ""
        if weights.name == "y_encoder":
            more = "; sentence-transformers would make up one that knows no word: there is no modules.json"
        logger.warning("%s: no tokenizer is written (%s)%s", weights.name, first_line(error), more)
    if weights.name == "y_encoder":
        modules = _write_sentence_modules(weights, folder, dtype)
        if prefix is not None:
            (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
        if prefix:
            # Queries and documents have prompts of their own there, empty ones if nothing is said.
            prompts = {"prompts": {"query": prefix, "document": prefix}, "default_prompt_name": "document"}
            (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts, indent=2) + "\n")


def _write_tokenizer(weights: Weights, folder: pathlib.Path) -> str:
    """Write it, and give what is put before every text.

    Raises:
      ValueError: it cannot be had.
    """
    if weights.tokenizer is not None:
        found = weights.tokenizer()
        inference.compare_tokenizers(weights.learned_with, identity_of([found]), f"the {weights.name}")
        found.save(folder, weights.max_length)
        return found.prefix
    for file in TOKENIZER_FILES:
        if (weights.folder / file).is_file():
            shutil.copyfile(weights.folder / file, folder / file)
    if not has_vocabulary(folder):
        raise ValueError(f"{weights.folder} has none")
    return ""


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


def _write_sentence_modules(weights: Weights, folder: pathlib.Path, dtype: np.dtype | None) -> list[dict]:
    """The modules of sentence-transformers: the model, its pool, Dense heads, a run's projection,
    normalisation. Gives the list of them."""
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
    heads = [
        (f"{k + 2}_Dense", f"dense/{k}", size) for k, size in enumerate(getattr(config, "dense_widths", ()))
    ]
    if weights.embedding_size is not None:
        heads.append((PROJECTION, "output_projection", weights.embedding_size))
    for name, ours, size in heads:
        place = folder / name
        place.mkdir()
        head = {
            "in_features": width,
            "out_features": size,
            "bias": name == PROJECTION,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        (place / "config.json").write_text(json.dumps(head, indent=2) + "\n")
        tensors = {"linear.weight": weights.read(f"{ours}/kernel").T}
        if name == PROJECTION:
            tensors["linear.bias"] = weights.read(f"{ours}/bias")
        tensors = {key: np.ascontiguousarray(_cast(x, dtype)) for key, x in tensors.items()}
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        modules.append((name, "Dense"))
        width = size
    modules.append((f"{len(modules)}_Normalize", "Normalize"))
    (folder / modules[-1][0]).mkdir()
    if weights.max_length is not None:
        length = {"max_seq_length": weights.max_length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(length, indent=2) + "\n")
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]


def write_heads(heads: Mapping[str, np.ndarray], file: pathlib.Path, dtype: np.dtype | None) -> None:
    """The projections of a whole model under open-vljepa's names, and the temperature."""
    rules = [rule for rule in open_vljepa.HEADS if rule.ours in heads]  # model.y_projection may be off
    by_name = {name: np.ascontiguousarray(_cast(x, dtype)) for name, x in invert(rules, heads.__getitem__)}
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
        chosen = [weights for weights in found if values.part in (None, weights.name)]
        for weights in chosen:
            inside = folder if len(chosen) == 1 else folder / weights.name
            inside.mkdir(exist_ok=True)
            export(weights, inside, dtype)
            if weights.name != "x_encoder":
                export_texts(weights, inside, dtype)
        if len(chosen) > 1:
            write_heads(heads, folder / "heads.safetensors", dtype)
    print(f"{out}: {values.part or ', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
