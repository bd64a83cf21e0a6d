"""The strict engine: name tables in, arrays out, or one report of all that does not fit."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from jepa_jax.flags import UsageError
from jepa_jax.parts import LazyArray
from weights_conversion.tensors import Tensors

# Types whose every value float32 holds, so that going through it and back loses nothing.
TYPES = tuple(np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16))
_SHOWN = 12


class ConversionError(UsageError):
    """A source that does not fit: what is wrong, all of it, and what to do."""


def require(config, **wanted) -> None:
    """Raise ConversionError where a source's configuration asks for something that is not built."""
    for name, value in wanted.items():
        found = getattr(config, name, value)
        if found != value:
            raise ConversionError(f"config.json: {name}={found!r}; only {value!r} is built")


def require_plain_rope(metadata: Mapping[str, Any], architecture: str, head_size: int) -> None:
    """Raise ConversionError where a GGUF file asks for rotary positions that are scaled, but by divisors
    among its tensors, or that turn part of a head."""
    get = lambda key, default: metadata.get(f"{architecture}.rope.{key}", default)
    # Linear is what llama.cpp takes where the file has no type, and 0 is its word for no factor.
    kind, factor = get("scaling.type", "linear"), get("scaling.factor", get("scale_linear", 1.0))
    if kind != "none" and (kind != "linear" or factor not in (0.0, 1.0)):
        raise ConversionError(
            f"the GGUF file: rotary scaling {kind!r} by {factor}; only llama3's and none are built"
        )
    turned = get("dimension_count", head_size)
    if turned != head_size:
        raise ConversionError(
            f"the GGUF file: rotary positions for {turned} of a head's {head_size} numbers; all are built"
        )


@dataclass(frozen=True)
class Transform:
    """How a source tensor becomes ours, and its exact inverse."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]

    def then(self, other: "Transform") -> "Transform":
        return Transform(lambda x: other.forward(self.forward(x)), lambda x: self.backward(other.backward(x)))


SAME = Transform(lambda x: x, lambda x: x)
TRANSPOSE = Transform(lambda x: x.T, lambda x: x.T)


def neighbours_to_halves(heads: int) -> Transform:
    """Rows of a query or key projection from rotary pairs (2i, 2i + 1), as Meta and GGUF store them,
    to (i, i + A/2), as this code and `transformers` do."""

    def regroup(x, inner):
        rest = x.shape[1:]
        return x.reshape(heads, *inner(x.shape[0] // heads), *rest).swapaxes(1, 2).reshape(x.shape)

    return Transform(
        lambda x: regroup(x, lambda size: (size // 2, 2)),
        lambda x: regroup(x, lambda size: (2, size // 2)),
    )


@dataclass(frozen=True)
class Rule:
    """One line of a name table.

    Attributes:
      ours: parameter name, a/b/c.
      theirs: source name; with `layers`, "{}" stands for the layer's number and the tensors are
        stacked along a new first axis in that order.
      share: (k, n): the k-th of n equal parts of the source's first axis (fused query, key, value).
    """

    ours: str
    theirs: str
    transform: Transform = SAME
    share: tuple[int, int] = (0, 1)
    layers: Sequence[int] | None = None

    def names(self) -> list[str]:
        return [self.theirs] if self.layers is None else [self.theirs.format(i) for i in self.layers]


@dataclass(frozen=True)
class Unused:
    """Source names (a regular expression over the whole name) that are known not to be needed."""

    pattern: str
    reason: str


def prefixed(rules: Sequence[Rule], *, ours: str = "", theirs: str = "") -> list[Rule]:
    """The rules with both names inside something larger."""
    return [replace(r, ours=ours + r.ours, theirs=theirs + r.theirs) for r in rules]


def prefixed_unused(unused: Sequence[Unused], theirs: str) -> list[Unused]:
    """What is not needed, inside something larger."""
    return [replace(u, pattern=re.escape(theirs) + u.pattern) for u in unused]


def _cut(x: np.ndarray, share: tuple[int, int]) -> np.ndarray:
    k, n = share
    size = x.shape[0] // n
    return x[k * size : (k + 1) * size] if n > 1 else x


def _shape_after(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape a source tensor of this shape would have as ours, None where it has too few or too many
    axes; nothing is allocated."""
    placeholder = np.broadcast_to(np.zeros((), np.bool_), shape)
    try:
        return rule.transform.forward(_cut(placeholder, rule.share)).shape
    except (ValueError, IndexError):
        return None


def _problems_of(rule: Rule, tensors: Tensors, expected: tuple[int, ...]) -> Iterator[str]:
    """What is wrong with the tensors a rule names."""
    wanted = expected if rule.layers is None else expected[1:]
    types = set()
    for name in rule.names():
        info = tensors.info.get(name)
        if info is None:
            yield f"{rule.ours}: the source has no {name}"
            continue
        types.add(info.dtype)
        if info.dtype not in TYPES:
            yield f"{name}: type {info.dtype}; float32, bfloat16 and float16 are read"
            continue
        if _shape_after(rule, info.shape) != wanted or (info.shape[:1] and info.shape[0] % rule.share[1]):
            yield f"{name}: shape {info.shape} does not give {rule.ours} {wanted}"
    if len(types) > 1:
        yield f"{rule.ours}: its layers come in different types ({', '.join(sorted(map(str, types)))})"


def _copy(x: np.ndarray, to: np.ndarray) -> None:
    """A transposed matrix by a few columns at a time: in one go it would miss the cache at every number."""
    if x.flags.c_contiguous:
        to[...] = x
        return
    for i in range(0, x.shape[-1], 32):
        to[..., i : i + 32] = x[..., i : i + 32]


def _lazy(rule: Rule, tensors: Tensors, expected: tuple[int, ...]) -> LazyArray:
    names = rule.names()
    dtype = tensors.info[names[0]].dtype

    def piece(name: str) -> np.ndarray:
        return rule.transform.forward(_cut(tensors.read(name), rule.share))

    def read() -> np.ndarray:
        if rule.layers is None:
            return np.ascontiguousarray(piece(names[0]))
        stack = np.empty(expected, dtype)
        for i, name in enumerate(names):
            _copy(piece(name), stack[i])
        return stack

    return LazyArray(expected, dtype, read)


def plan(
    tensors: Tensors,
    rules: Sequence[Rule],
    unused: Sequence[Unused],
    expected: Mapping[str, tuple[int, ...]],
    kept: Sequence[Rule] = (),
) -> tuple[dict[str, LazyArray], dict[str, LazyArray]]:
    """Check everything, read nothing.

    Args:
      expected: the model's parameters and their shapes: each must be filled, none twice.
      kept: rules for tensors the model does not use, but the way back needs; `ours` is their name
        there. Where the source has none of a rule's tensors, the rule is passed over.

    Returns:
      The model's arrays and the kept ones.

    Raises:
      ConversionError: all of: source tensors nobody takes, parameters nobody fills, wrong shapes and
        types.
    """
    most = max((len(rule.layers) for rule in rules if rule.layers is not None), default=0)
    if most > len(tensors.info):
        raise ConversionError(f"the model has {most} layers, the source has {len(tensors.info)} tensors")
    problems: list[str] = []
    filled = [rule.ours for rule in rules]
    problems += [f"{name}: no rule of the table fills it" for name in expected if name not in filled]
    problems += [f"{name}: the model has no such parameter" for name in filled if name not in expected]
    problems += [f"{name}: filled twice" for name in sorted(set(filled)) if filled.count(name) > 1]
    for rule in rules:
        if rule.ours in expected:
            problems += _problems_of(rule, tensors, expected[rule.ours])
    present = [rule for rule in kept if any(name in tensors.info for name in rule.names())]
    shapes = {}
    for rule in present:
        first = tensors.info.get(rule.names()[0])
        layers = () if rule.layers is None else (len(rule.layers),)
        shapes[rule.ours] = layers + ((first and _shape_after(rule, first.shape)) or ())
        problems += _problems_of(rule, tensors, shapes[rule.ours])
    taken = {name for rule in (*rules, *present) for name in rule.names()}
    known = re.compile("|".join(f"(?:{u.pattern})" for u in unused) or r"(?!)")
    problems += [
        f"{name}: nobody takes it"
        for name in sorted(tensors.info)
        if name not in taken and not known.fullmatch(name)
    ]
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "\n  ".join(problems[:_SHOWN])
        raise ConversionError(
            f"the source does not fit the model; nothing was written ({len(problems)} problems):\n  "
            f"{listed}{more}"
        )
    arrays = {rule.ours: _lazy(rule, tensors, expected[rule.ours]) for rule in rules}
    return arrays, {rule.ours: _lazy(rule, tensors, shapes[rule.ours]) for rule in present}


def invert(rules: Sequence[Rule], read: Callable[[str], np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The way back: (source name, tensor) of every rule, each of our arrays read once.

    Args:
      read: our array by its name.
    """
    shares: dict[str, dict[int, np.ndarray]] = {}
    for rule in rules:
        array = read(rule.ours)
        for i, name in enumerate(rule.names()):
            x = np.ascontiguousarray(rule.transform.backward(array if rule.layers is None else array[i]))
            k, n = rule.share
            if n == 1:
                yield name, x
                continue
            parts = shares.setdefault(name, {})
            parts[k] = x
            if len(parts) == n:
                yield name, np.concatenate([parts[j] for j in range(n)])
                del shares[name]
