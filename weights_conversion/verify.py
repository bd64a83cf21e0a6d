"""`--verify`: the PyTorch reference and ours on one fixed input, layer by layer.

The reference reads the source by itself where `transformers` can (Hugging Face folders, GGUF). Of
Meta's own files and of open-vljepa's it cannot; there it opens what the way back writes, which
checks the arithmetic and that the table and its inverse agree.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from jepa_jax import parts
from jepa_jax.config import BertConfig
from jepa_jax.errors import first_line
from jepa_jax.flags import UsageError
from weights_conversion import export
from weights_conversion.convert import Conversion
from weights_conversion.tensors import import_torch

RMS_TOLERANCE, WORST_TOLERANCE = 1e-4, 1e-3


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; errors are relative to the root mean square of the reference's values."""

    name: str
    rms: float
    worst: float

    @property
    def good(self) -> bool:
        return self.rms <= RMS_TOLERANCE and self.worst <= WORST_TOLERANCE  # False for NaN


def compare(name: str, ours, theirs) -> Row:
    """The errors of one array."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    if ours.shape != theirs.shape:
        raise ValueError(f"{name}: {ours.shape} here, {theirs.shape} in the reference")
    size = max(float(np.sqrt(np.mean(theirs**2))), 1e-30)
    error = np.abs(ours - theirs)
    return Row(name, float(np.sqrt(np.mean(error**2))) / size, float(error.max()) / size)


def our_layers(stack, x, context, per_layer=None) -> Iterator[np.ndarray]:
    """The states after every layer of a stack."""
    run = jax.jit(lambda layer, x, context, flag: layer(x, context, flag))
    flags = np.zeros(stack.layers) if per_layer is None else per_layer
    for s in range(stack.layers):
        layer = jax.tree.map(lambda p, s=s: p[s], stack.stacked)
        x = run(layer, x, context, flags[s])
        yield np.asarray(x)


def _hidden(layers, run) -> list[np.ndarray]:
    """What a reference's layers put out while `run` runs."""
    found: list[np.ndarray] = []

    def keep(module, arguments, output):
        state = output[0] if isinstance(output, tuple) else output
        found.append(state.detach().float().numpy())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _layer_rows(prefix: str, ours: Iterator, theirs: list, keep=slice(None)) -> Iterator[Row]:
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        yield compare(f"{prefix} layer {i}", a[keep], b[keep])


def _tokens(vocab_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of tokens, the second padded for a third of its length."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (2, length), np.int32)
    return ids, np.arange(length) < np.array([[length], [length - length // 3]])


def x_encoder_rows(module, config, theirs) -> Iterator[Row]:
    """Two tubelets of noise at the checkpoint's own size."""
    torch = import_torch()
    shape = (1, 2 * config.tubelet_size, config.image_size, config.image_size, 3)
    frames = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    video = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)))
    out = {}
    with torch.no_grad():
        states = _hidden(
            theirs.encoder.layer,
            lambda: out.update(last=theirs(video, skip_predictor=True).last_hidden_state),
        )
        patches = theirs.encoder.embeddings(video).numpy()
    x, table = jax.jit(lambda m, v: m.embed(v))(module, frames)
    yield compare("x_encoder patches", x, patches)
    yield from _layer_rows("x_encoder", our_layers(module.blocks, x, table), states)
    yield compare("x_encoder out", jax.jit(lambda m, v: m(v))(module, frames), out["last"].numpy())


def _both_directions(mask: np.ndarray):
    """The reference's mask without causality, added to the logits: [B, L] bool -> [B, 1, L, L]."""
    hidden = np.where(mask[:, None, None, :], 0.0, np.finfo(np.float32).min).astype(np.float32)
    shape = (len(mask), 1, mask.shape[1], mask.shape[1])
    return import_torch().from_numpy(np.broadcast_to(hidden, shape).copy())


def llama_rows(module, config, theirs, *, logits=None) -> Iterator[Row]:
    """Tokens with padding; both directions unless the part is causal."""
    torch = import_torch()
    length = 64
    ids, mask = _tokens(config.vocab_size, length)
    theirs_mask = torch.from_numpy(mask.astype(np.int64)) if config.causal else _both_directions(mask)
    tokens, out = torch.from_numpy(ids.astype(np.int64)), {}
    with torch.no_grad():
        states = _hidden(
            theirs.layers,
            lambda: out.update(
                last=theirs(input_ids=tokens, attention_mask=theirs_mask, use_cache=False).last_hidden_state
            ),
        )
    embedded = module.token_embedding[...][ids]
    yield compare("llama tokens", embedded, theirs.embed_tokens(tokens).detach().numpy())
    context = module.llama.context(length, mask)
    yield from _layer_rows("llama", our_layers(module.llama.blocks, embedded, context), states, mask)
    last = out["last"].numpy()
    ours = np.asarray(jax.jit(lambda m, x, v: m(x, v))(module.llama, embedded, mask))
    yield compare("llama out", ours[mask], last[mask])
    if logits is not None:
        with torch.no_grad():
            expected = logits(torch.from_numpy(last)).numpy()
        yield compare(
            "llama logits",
            np.asarray(jax.jit(lambda m, t, v: m(t, v))(module, ids, mask))[mask],
            expected[mask],
        )


def predictor_rows(module, config, theirs) -> Iterator[Row]:
    """A whole predictor: visual tokens before the query, the pool, both projections."""
    torch = import_torch()
    ids, mask = _tokens(config.vocab_size, 24)
    projections = (module.visual_projection, module.output_projection)
    (w_in, b_in), (w_out, b_out) = ((np.asarray(p.kernel[...]), np.asarray(p.bias[...])) for p in projections)
    visual = np.random.default_rng(1).normal(size=(2, 40, len(w_in))).astype(np.float32)
    valid = np.concatenate([np.ones(visual.shape[:2], bool), mask], axis=1)
    x = np.concatenate([visual @ w_in + b_in, np.asarray(module.token_embedding[...])[ids]], axis=1)
    with torch.no_grad():
        states = theirs(
            inputs_embeds=torch.from_numpy(x), attention_mask=_both_directions(valid), use_cache=False
        ).last_hidden_state.numpy()
    pooled = np.stack([row[v].mean(axis=0) for row, v in zip(states, valid, strict=True)])
    ours = jax.jit(lambda m, *a: m(*a))(module, visual, ids, mask)
    yield compare("predictor out", ours, pooled @ w_out + b_out)


def y_encoder_rows(module, config, theirs) -> Iterator[Row]:
    """Tokens with padding, longer than a sliding window."""
    torch = import_torch()
    is_bert = isinstance(config, BertConfig)
    length = min(48, config.max_length) if is_bert else config.window + 48
    ids, mask = _tokens(config.vocab_size, length)
    tokens, theirs_mask = (torch.from_numpy(x.astype(np.int64)) for x in (ids, mask))
    layers, out = theirs.encoder.layer if is_bert else theirs.layers, {}
    with torch.no_grad():
        states = _hidden(
            layers,
            lambda: out.update(last=theirs(input_ids=tokens, attention_mask=theirs_mask).last_hidden_state),
        )
    embedded, *context = jax.jit(lambda m, t, v: m.embed(t, v)[:2])(module, ids, mask)
    per_layer = None if is_bert else module.embed(ids, mask)[2]
    yield from _layer_rows(
        "y_encoder", our_layers(module.blocks, embedded, *context, per_layer), states, mask
    )
    last = out["last"].numpy()
    ours = np.asarray(jax.jit(lambda m, t, v: m.hidden_states(t, v))(module, ids, mask))
    yield compare("y_encoder states", ours[mask], last[mask])
    pooled = (
        last[:, 0]
        if is_bert and config.pool == "first"
        else (np.stack([row[valid].mean(axis=0) for row, valid in zip(last, mask, strict=True)]))
    )
    for dense in module.dense:
        pooled = pooled @ np.asarray(dense.kernel[...], np.float64)
    projection = module.output_projection
    if projection is not None:
        pooled = pooled @ np.asarray(projection.kernel[...], np.float64) + np.asarray(projection.bias[...])
    yield compare("y_encoder out", jax.jit(lambda m, t, v: m(t, v))(module, ids, mask), pooled)


def _reference(weights: export.Weights, conversion: Conversion, scratch: pathlib.Path):
    """The PyTorch model of one part, float32, reading the source itself where it can."""
    torch = import_torch()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kinds = {
        "x_encoder": transformers.VJEPA2Model,
        "predictor": transformers.LlamaModel,
        "y_decoder": transformers.LlamaForCausalLM,
        "y_encoder": transformers.BertModel
        if isinstance(weights.config, BertConfig)
        else transformers.Gemma3TextModel,
    }
    kind, source = kinds[weights.name], conversion.source
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    file = source.tensors.files[0]
    if source.kind == "vjepa2":
        # Its positions are those of a grid of this size, ours of the frames given.
        options["crop_size"] = weights.config.image_size
    if source.kind in ("vjepa2", "llama", "gemma3", "bert"):
        if source.kind == "gemma3":
            config = transformers.Gemma3TextConfig.from_dict(
                dict(source.config) | {"use_bidirectional_attention": True}
            )
            options["config"] = config
        model = kind.from_pretrained(file.parent, **options)
    elif source.kind == "llama_gguf":
        model = transformers.LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options)
        model = model if weights.name == "y_decoder" else model.model
    elif source.kind == "gemma3_gguf":
        causal = transformers.Gemma3ForCausalLM.from_pretrained(file.parent, gguf_file=file.name, **options)
        config = transformers.Gemma3TextConfig.from_dict(
            causal.config.to_dict() | {"use_bidirectional_attention": True}
        )
        model = kind(config)
        model.load_state_dict(causal.model.state_dict())
    else:
        export.export(weights, scratch)
        return kind.from_pretrained(scratch, **options).eval()
    inner = getattr(model, "model", model)
    if weights.name in ("predictor", "y_decoder") and conversion.first_layer:
        inner.layers = inner.layers[conversion.first_layer :]
    return model.eval()


def part_rows(name: str, module, config, reference) -> Iterator[Row]:
    """The rows of one part."""
    match name:
        case "x_encoder":
            yield from x_encoder_rows(module, config, reference)
        case "predictor":
            yield from llama_rows(module, config, reference)
            if hasattr(module, "visual_projection"):
                yield from predictor_rows(module, config, reference)
        case "y_decoder":
            yield from llama_rows(module, config.llama, reference.model, logits=reference.lm_head)
        case "y_encoder":
            yield from y_encoder_rows(module, config, reference)


def verify(conversion: Conversion, folder: pathlib.Path) -> bool:
    """Compare a part on disk with the reference and print the table of errors.

    Returns:
      Whether all of it is within tolerance.

    Raises:
      UsageError: the reference cannot open the source.
    """
    part = parts.open_part(folder)
    config = part.config
    if part.name == "vl_jepa":  # the table is compared in float32, whatever a run will compute in
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, compute_dtype="float32"))
    graphdef, template = nnx.split(parts.abstract_module(part.name, config))
    module = nnx.merge(graphdef, parts.filled(template, part.read()))
    rows: list[Row] = []
    print(f"{'':28}{'relative RMS':>14}{'worst':>12}")
    for weights in export.open_weights(folder)[0]:
        inner = getattr(module, weights.name) if part.name == "vl_jepa" else module
        with tempfile.TemporaryDirectory() as scratch, jax.default_matmul_precision("highest"):
            try:
                reference = _reference(weights, conversion, pathlib.Path(scratch))
            except UsageError:
                raise
            except Exception as error:  # the library raises what it likes
                raise UsageError(
                    f"--verify: transformers cannot open the source ({first_line(error)}): nothing was kept; "
                    "without --verify it is converted unchecked"
                ) from error
            for row in part_rows(weights.name, inner, weights.config, reference):
                rows.append(row)
                mark = "" if row.good else "  beyond tolerance"
                print(f"{row.name:28}{row.rms:14.2e}{row.worst:12.2e}{mark}")
            del reference
    bad = [row.name for row in rows if not row.good]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} within {RMS_TOLERANCE:g} relative RMS and "
        f"{WORST_TOLERANCE:g} at the worst element"
    )
    return not bad
