"""From an opened source to a part on disk: which table, which configuration, written atomically."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from pydantic import ValidationError
from safetensors.numpy import save_file

from jepa_jax import flags, parts
from jepa_jax.config import BertConfig
from jepa_jax.parts import LanguageModelConfig, LazyArray
from weights_conversion import bert, gemma, llama, open_vljepa, vjepa2
from weights_conversion.engine import ConversionError, Rule, Unused, plan, prefixed, prefixed_unused
from weights_conversion.files import sha256
from weights_conversion.sentence import check_dense
from weights_conversion.sources import Source
from weights_conversion.tokenizers import write_tokenizer

logger = logging.getLogger(__name__)
# The part each kind of source becomes, and those it can become.
PARTS = {
    "vjepa2": ("x_encoder",),
    "vjepa2_meta": ("x_encoder",),
    "llama": ("y_decoder", "predictor"),
    "llama_meta": ("y_decoder", "predictor"),
    "llama_gguf": ("y_decoder", "predictor"),
    "gemma3": ("y_encoder",),
    "gemma3_gguf": ("y_encoder",),
    "bert": ("y_encoder",),
    "open_vljepa": ("vl_jepa",),
}
# The paper's predictor is the last eight layers.
PREDICTOR_LAYERS = 8
KEPT_FILE = "kept.safetensors"
_LICENSES = {"vjepa2_meta": "MIT (Meta's V-JEPA 2 repository)"}


@dataclasses.dataclass
class Conversion:
    """All that writing a part, and checking it, needs.

    Attributes:
      prefix: what stands before the source's names in the table.
      first_layer: the source's layer that became our first.
    """

    part: str
    config: Any
    source: Source
    rules: list[Rule]
    unused: list[Unused]
    kept: list[Rule] = dataclasses.field(default_factory=list)
    constants: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    first_layer: int = 0


def reference_config(source: Source):
    """The `transformers` configuration that a config.json describes, its defaults filled in."""
    import transformers

    config = source.config
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(source.tensors.info):
        # The library would write a list of them.
        raise ConversionError(
            f"config.json speaks of {layers} layers, the source has {len(source.tensors.info)} tensors"
        )
    kinds = {
        "vjepa2": transformers.VJEPA2Config,
        "llama": transformers.LlamaConfig,
        "gemma3_text": transformers.Gemma3TextConfig,
        "bert": transformers.BertConfig,
    }
    try:
        return kinds[config["model_type"]].from_dict(dict(config))
    except Exception as error:  # the library checks types with exceptions of its own
        reason = " ".join(str(error).split())
        raise ConversionError(f"config.json describes no {config['model_type']}: {reason}") from error


def prepare(
    source: Source,
    part: str | None = None,
    *,
    layers: int | None = None,
    dense_heads: bool = True,
    assignments: list[tuple[str, str]] = (),
) -> Conversion:
    """What a source becomes.

    Args:
      part: one of `PARTS[source.kind]` (default: the first).
      layers: the last so many layers of a Llama; by default all of them, and 8 for the predictor.
      dense_heads: take the Dense heads of a sentence-transformers folder.
      assignments: fields of the configuration to set otherwise, as `flags.override` takes them.

    Raises:
      ConversionError: the source cannot become that part, or its configuration is not built.
    """
    possible = PARTS[source.kind]
    part = possible[0] if part is None else part
    if part not in possible:
        raise ConversionError(f"--part={part}: a {source.kind} source becomes {' or '.join(possible)}")
    if layers is not None and not source.kind.startswith("llama"):
        raise ConversionError(f"--layers is for Llama sources; this is {source.kind}")
    with _as_conversion_error():
        match source.kind:
            case "vjepa2":
                return _vjepa2(source, assignments)
            case "vjepa2_meta":
                return _vjepa2_meta(source, assignments)
            case "llama" | "llama_meta" | "llama_gguf":
                return _llama(source, part, layers, assignments)
            case "gemma3" | "gemma3_gguf":
                return _gemma(source, dense_heads, assignments)
            case "bert":
                return _bert(source, assignments)
        return _open_vljepa(source, assignments)


@contextlib.contextmanager
def _as_conversion_error() -> Iterator[None]:
    """A configuration that our own classes refuse, or that cannot be reckoned with, is the source's fault."""
    try:
        yield
    except ValidationError as error:
        raise ConversionError(flags.explain(error, "the source's configuration")) from error
    except flags.UsageError:
        raise
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise ConversionError(f"the source's configuration does not work: {error}") from error


def _set(config, assignments: list[tuple[str, str]]):
    """A configuration that its source tells in full, with fields set otherwise."""
    was, config = flags.flatten(config), flags.override(config, assignments)
    for name, value in flags.flatten(config).items():
        if value != was.get(name):
            logger.warning("--config.%s=%s, but the source says %s", name, value, was.get(name))
    return config


def _vjepa2(source: Source, assignments) -> Conversion:
    config = _set(vjepa2.config_from(reference_config(source)), assignments)
    prefix = "vjepa2." if any(n.startswith("vjepa2.") for n in source.tensors.info) else ""
    names = [n.removeprefix(prefix) for n in source.tensors.info]
    rules, kept = (prefixed(table, theirs=prefix) for table in (vjepa2.rules(config), vjepa2.kept(names)))
    unused = vjepa2.UNUSED + prefixed_unused(vjepa2.UNUSED, prefix)
    return Conversion("x_encoder", config, source, rules, unused, kept, prefix=prefix)


def _vjepa2_meta(source: Source, assignments) -> Conversion:
    info = source.tensors.info
    # Meta's file does not say what size it was trained at; its name does.
    size = 384 if "384" in source.tensors.files[0].name else 256
    config = vjepa2.config_of_shapes(
        info, "patch_embed.proj.weight", "blocks.", "blocks.0.mlp.fc1.weight", size
    )
    config = flags.override(config, assignments)
    kept = vjepa2.meta_kept(info)
    return Conversion("x_encoder", config, source, vjepa2.meta_rules(config), vjepa2.META_UNUSED, kept)


def _llama(source: Source, part: str, layers: int | None, assignments) -> Conversion:
    tensors = source.tensors
    if source.kind == "llama":
        reference = reference_config(source)
        whole = llama.config_from(reference)
        if part == "y_decoder" and not getattr(reference, "is_causal", True):
            raise ConversionError(
                "config.json: is_causal=False, and a y_decoder sees what is before it alone: give "
                "--part=predictor"
            )
        style, unused = "hf", llama.UNUSED
    elif source.kind == "llama_meta":
        whole, style, unused = llama.config_from_meta(source.config, tensors), "meta", llama.META_UNUSED
    else:
        whole, style, unused = llama.config_from_gguf(source.config, tensors), "gguf", llama.GGUF_UNUSED
    prefix = "model." if style == "hf" and any(n.startswith("model.") for n in tensors.info) else ""
    if style == "hf" and part == "y_decoder":
        llama.check_head(whole, tensors, prefix)
    total = whole.llama.layers
    if total > len(tensors.info):
        raise ConversionError(f"the source speaks of {total} layers and has {len(tensors.info)} tensors")
    wanted = layers or (min(PREDICTOR_LAYERS, total) if part == "predictor" else total)
    if wanted > total:
        raise ConversionError(f"--layers={wanted}, but the source has {total}")
    first = total - wanted
    config = dataclasses.replace(whole.llama, layers=wanted, causal=part == "y_decoder")
    head = whole.head if part == "y_decoder" else None
    # Meta's params.json and a GGUF's metadata leave out some of it.
    change = _set if style == "hf" else flags.override
    if part == "y_decoder":
        whole = change(LanguageModelConfig(llama=config, head=whole.head), assignments)
        config = whole.llama
    else:
        config = change(config, assignments)
    rules = llama.rules(config, style, first_layer=first, prefix=prefix, head=head)
    dropped = llama.not_asked_for(style, prefix, first, with_head=part == "y_decoder", tied=head == "tied")
    return Conversion(
        part,
        whole if part == "y_decoder" else config,
        source,
        rules,
        unused + dropped,
        prefix=prefix,
        first_layer=first,
    )


def _gemma(source: Source, dense_heads: bool, assignments) -> Conversion:
    info = source.tensors.info
    if source.kind == "gemma3_gguf":
        config = flags.override(gemma.config_from_gguf(source.config, source.tensors), assignments)
        rules = gemma.rules(config, "gguf")
        return Conversion("y_encoder", config, source, rules, gemma.GGUF_UNUSED)
    if source.sentence is not None and source.sentence.pool != "mean":
        raise ConversionError("this Gemma pools by its first token; only the mean is built")
    heads = source.sentence.dense if source.sentence and dense_heads else []
    for place in heads:
        check_dense(place)
    count = len(heads)
    missing = [k for k in range(count) if f"dense:{k}/linear.weight" not in info]
    if missing:
        raise ConversionError(f"the Dense head in {heads[missing[0]]} has no linear.weight")
    widths = [info[f"dense:{k}/linear.weight"].shape[0] for k in range(count)]
    config = _set(gemma.config_from(reference_config(source), widths), assignments)
    prefix = "model." if any(n.startswith("model.") for n in info) else ""
    rules = gemma.rules(config, "hf", prefix=prefix) + gemma.dense_rules(count)
    unused = list(gemma.UNUSED)
    if not dense_heads:
        unused.append(Unused(r"dense:\d+/.*", "switched off by --no-dense-heads"))
    return Conversion("y_encoder", config, source, rules, unused, prefix=prefix)


def _bert(source: Source, assignments) -> Conversion:
    if source.sentence is not None and source.sentence.dense:
        raise ConversionError("a Dense head after a BERT is not built")
    pool = source.sentence.pool if source.sentence else "mean"
    config = _set(bert.config_from(reference_config(source), pool), assignments)
    names = source.tensors.info
    prefix = "bert." if any(n.startswith("bert.") for n in names) else ""
    unused = bert.UNUSED + prefixed_unused(bert.UNUSED, prefix)
    kept = bert.kept(names, prefix)
    rules = bert.rules(config, prefix, old=prefix + "embeddings.LayerNorm.gamma" in names)
    return Conversion("y_encoder", config, source, rules, unused, kept, prefix=prefix)


def _open_vljepa(source: Source, assignments) -> Conversion:
    info = source.tensors.info
    config = flags.override(open_vljepa.config_of_shapes(info, source.config), assignments)
    temperature = np.asarray(-math.log(config.loss.temperature), np.float32)
    return Conversion(
        "vl_jepa",
        config,
        source,
        open_vljepa.rules(config),
        open_vljepa.UNUSED,
        open_vljepa.kept(info),
        constants={"log_logit_scale": temperature},
    )


def expected_shapes(part: str, config) -> dict[str, tuple[int, ...]]:
    """The parameters that a part must fill."""
    module = parts.abstract_module(part, config)
    return {name: tuple(x.shape) for name, x in parts.flatten(nnx.state(module)).items()}


def arrays_of(conversion: Conversion) -> tuple[dict[str, LazyArray], dict[str, LazyArray]]:
    """The part's arrays and the kept ones, checked and not read.

    Raises:
      ConversionError: source and model do not fit; every problem is named.
    """
    expected = expected_shapes(conversion.part, conversion.config)
    for name in conversion.constants:
        expected.pop(name)
    arrays, kept = plan(
        conversion.source.tensors, conversion.rules, conversion.unused, expected, conversion.kept
    )
    for name, value in conversion.constants.items():
        arrays[name] = LazyArray(value.shape, value.dtype, lambda value=value: value)
    return arrays, kept


def provenance(conversion: Conversion, name: str, options: Mapping[str, Any], license: str | None) -> dict:
    """Where a part came from, as JSON."""
    source = conversion.source
    known = license or source.license() or _LICENSES.get(source.kind)
    return {
        "source": name,
        "revision": source.revision,
        "kind": source.kind,
        "files": [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in source.tensors.files
        ],
        "options": dict(options),
        "prefix": conversion.prefix,
        "first_layer": conversion.first_layer,
        "source_config": _plain(source.config),
        "license": known or "not stated by the source: see where it was taken from",
    }


def _plain(value):
    """JSON of whatever a source's configuration holds."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def max_length(conversion: Conversion) -> int | None:
    sentence, config = conversion.source.sentence, conversion.config
    bounds = [sentence.max_length if sentence else None]
    bounds.append(config.max_length if isinstance(config, BertConfig) else None)
    return min((bound for bound in bounds if bound is not None), default=None)


@contextlib.contextmanager
def atomic_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which becomes `out` when all went well and vanishes when not.

    Raises:
      UsageError: `out` exists, at the start or at the end, or cannot be made.
    """
    if os.path.lexists(out):
        raise flags.UsageError(f"{out} exists: name another --out, or remove it")
    with _signals_as_exceptions():
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        except OSError as error:
            raise flags.UsageError(f"{out} cannot be made: {error}") from error
        try:
            yield temporary
            temporary.chmod(0o755)
            if os.path.lexists(out):
                raise flags.UsageError(f"{out} exists by now, nothing was kept: name another --out")
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does, by an exception: they would leave what is half
    written."""

    def end(number, _):
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # which alone takes signals
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has one ignored
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite(name: str, array: LazyArray) -> LazyArray:
    """The same array; reading it raises ConversionError where it holds NaN or infinite numbers."""

    def read():
        value = array.read()
        if wrong := value.size - np.count_nonzero(np.isfinite(value)):
            raise ConversionError(
                f"{name}: {wrong:,} of {value.size:,} numbers are NaN or infinite; download the source "
                "again, or take one from before its training failed"
            )
        return value

    return dataclasses.replace(array, read=read)


def write(conversion: Conversion, folder: pathlib.Path, origin: Mapping[str, Any]) -> None:
    """Write a part into a folder: arrays one at a time, kept tensors, tokenizer, `part.json`.

    Raises:
      ConversionError: numbers of an array are not finite.
    """
    arrays, kept = arrays_of(conversion)
    arrays = {name: _finite(name, array) for name, array in arrays.items()}
    if kept:
        save_file({name: array.read() for name, array in kept.items()}, folder / KEPT_FILE)
        origin = {**origin, "kept": sha256(folder / KEPT_FILE)}
    parts.write(
        folder,
        conversion.part,
        conversion.config,
        arrays,
        max_length=max_length(conversion),
        provenance=origin,
    )
    write_tokenizer(conversion.source, folder)


def parameter_count(conversion: Conversion) -> int:
    shapes = expected_shapes(conversion.part, conversion.config)
    return sum(math.prod(shape) for shape in shapes.values())


def use_cpu() -> None:
    """Conversion needs no accelerator, and must not take one's memory."""
    jax.config.update("jax_platforms", "cpu")
