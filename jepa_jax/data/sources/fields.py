"""Which of a dataset's fields hold media and texts, and the pairs that their values make."""

import dataclasses
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jepa_jax.config import FieldMap
from jepa_jax.config.types import MOST_WEIGHT
from jepa_jax.data.records import BadRecordError, Limits, Pair
from jepa_jax.errors import printable

# What people call them; a nested field goes by its last part.
MEDIA = ("media", "video", "image", "frames", "path", "file", "filename", "file_name")
TARGETS = ("target", "targets", "caption", "captions", "text", "texts", "answer", "answers")
QUERIES = ("query", "queries", "question", "questions")
# Beside the targets by these names.
BESIDE = ("kind", "weight")
SPAN = ("start", "end")
# Fields are not looked for deeper: what some row has beside its texts can be nested as deep as Python goes.
_DEEPEST = 64
# So many of their names are told.
_LISTED = 50
# Categories of characters that alone show nothing: controls, zero-width marks and joiners, spaces.
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")


def leaf(path: str) -> str:
    """The last part of a field's path."""
    return path.rpartition("/")[2]


def is_within(path: str, top: str) -> bool:
    """Whether a path is of a field or of one nested in it."""
    return path == top or path.startswith(f"{top}/")


def named(paths: Iterable[str], names: Sequence[str]) -> list[str]:
    """The paths whose last part is one of the names, whatever its case."""
    return [path for path in paths if leaf(path).lower() in names]


def the_one(role: str, candidates: Sequence[str], known: Sequence[str], label: str) -> str:
    """The only candidate.

    Raises:
      ValueError: there is none, or there are several.
    """
    if len(candidates) == 1:
        return candidates[0]
    found = f"{_listed(candidates)} could all be" if candidates else "no field seems to be"
    raise ValueError(f"{label}: {found} the {role}: say which in fields.{role} (it has {_listed(known)})")


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence may have them: a JSON object by someone's numbers has as many as these are."""
    more = f", ... of {len(names):,}" if len(names) > _LISTED else ""
    return (", ".join(printable(name) for name in names[:_LISTED]) or "none") + more


def find(
    fields: FieldMap,
    known: Sequence[str],
    media: Sequence[str],
    targets: Sequence[str],
    label: str,
    limits: Limits,
) -> FieldMap:
    """The map with what was left out found: `media` and `targets` from their candidates, the query, kind
    and weight by their names beside the targets (or, the query alone, at the top). Where no text is
    needed, and none or several could be the targets, there are none.

    Args:
      known: paths of all fields there are.
      label: what a message calls the dataset.

    Raises:
      ValueError: a field that is named does not exist, or none or several could be meant.
    """
    for role, path in dataclasses.asdict(fields).items():
        if path is not None and path not in known:
            raise ValueError(f"{label}: fields.{role}={path!r} is none of its fields: {_listed(known)}")
    found = {"media": fields.media or the_one("media", media, known, label)}
    if fields.targets is None and len(targets) != 1 and not limits.needs_text:
        return dataclasses.replace(fields, **found)
    found["targets"] = fields.targets or the_one("targets", targets, known, label)
    beside = found["targets"].rpartition("/")[0]
    siblings = [path for path in known if path.rpartition("/")[0] == beside and path != found["targets"]]
    queries = named(siblings, QUERIES) or named([path for path in known if "/" not in path], QUERIES)
    if fields.query is None and queries:
        found["query"] = the_one("query", queries, known, label)
    for role in BESIDE:
        same = named(siblings, (role,))
        if getattr(fields, role) is None and same:
            found[role] = the_one(role, same, known, label)
    return dataclasses.replace(fields, **found)


def find_by_name(fields: FieldMap, known: Sequence[str], label: str, limits: Limits) -> FieldMap:
    """`find` where names are all there is to go by: a manifest's columns, the keys of a JSON object.
    There `start` and `end`, by these names, are seconds of a span."""
    top = [path for path in known if "/" not in path]
    same = {role: named(top, (role,)) for role in SPAN if getattr(fields, role) is None}
    spans = {role: the_one(role, paths, known, label) for role, paths in same.items() if paths}
    fields = dataclasses.replace(fields, **spans)
    return find(fields, known, named(known, MEDIA), named(known, TARGETS), label, limits)


def value_at(row: Any, path: str) -> Any:
    """What stands at a path of nested mappings; a list on the way gives the list of its elements' values.
    None where there is nothing. A key may have "/" in it, as columns do."""
    if isinstance(row, list):
        return [value_at(element, path) for element in row]
    if not isinstance(row, Mapping):
        return None
    if path in row:
        return row[path]
    head, _, rest = path.partition("/")
    return value_at(row[head], rest) if rest and head in row else None


def paths_of(row: Mapping[str, Any], depth: int = 1) -> list[str]:
    """Paths of all leaves of a row, and of what is nested deeper than that; lists of mappings count as
    mappings."""
    paths: dict[str, None] = {}
    for key, value in row.items():
        inner = value if isinstance(value, list) else [value]
        maps = [element for element in inner if isinstance(element, Mapping) and depth < _DEEPEST]
        for path in (f"{key}/{rest}" for element in maps for rest in paths_of(element, depth + 1)):
            paths[path] = None
        if not maps:
            paths[key] = None
    return list(paths)


def metadata_of(row: Mapping[str, Any], fields: FieldMap) -> dict[str, Any]:
    """The top of a row without what the map uses."""
    used = [path for path in dataclasses.asdict(fields).values() if path]
    return {key: value for key, value in row.items() if not any(is_within(path, key) for path in used)}


def text_of(value: Any, name: str, limits: Limits, *, may_be_empty: bool = False) -> str:
    """A text, checked, without the white space around it; "" where no character of it is seen.

    Raises:
      BadRecordError: it is empty, too long, not UTF-8, or no text at all.
    """
    if value is None:
        value = ""
    if type(value) is int:  # the answer to "how many?", as JSON and Parquet have it; True is none
        value = str(value)
    if isinstance(value, bytes):
        # At most four bytes a character: what is longer need not be decoded.
        if len(value) > 4 * limits.max_text_characters:
            raise BadRecordError("text too long", name, f"{len(value)} bytes")
        try:
            value = value.decode().removeprefix("\ufeff")  # editors of Windows put this mark first
        except UnicodeDecodeError as error:
            raise BadRecordError("text not UTF-8", name, str(error.reason)) from error
    if not isinstance(value, str):
        raise BadRecordError("line not readable", name, f"a {type(value).__name__} in place of a text")
    if len(value) > limits.max_text_characters:
        raise BadRecordError("text too long", name, f"{len(value)} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, as JSON can spell it
        raise BadRecordError("text not UTF-8", name, str(error.reason)) from error
    value = value.strip()
    if all(unicodedata.category(x) in _UNSEEN for x in value):  # as a rule the first is seen
        value = ""
    if not value and not may_be_empty:
        raise BadRecordError("text empty", name)
    return value


def number_of(value: Any, role: str, name: str) -> float | None:
    """A finite number, or None for none.

    Raises:
      BadRecordError: it is something else.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRecordError("line not readable", name, f"{role} is {str(value)[:40]!r}")
    return number


def span_of(start: Any, end: Any, name: str) -> tuple[float | None, float | None]:
    """Seconds of a span.

    Raises:
      BadRecordError: they are no numbers, or not in order.
    """
    first, last = number_of(start, "start", name), number_of(end, "end", name)
    if (first or 0.0) < 0 or (last is not None and last <= (first or 0.0)):
        raise BadRecordError("span outside the media", name, f"from {first} to {last} seconds")
    return first, last


def _column(value: Any, count: int, role: str, name: str) -> list:
    """A value for each of `count` pairs: a list of so many, or one for all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise BadRecordError("line not readable", name, f"{len(value)} of {role} for {count} of targets")
    return value


def make_pairs(
    targets: Any, query: Any, kind: Any, weight: Any, name: str, limits: Limits
) -> tuple[Pair, ...]:
    """Values of the fields, as lists or single ones, to pairs.

    A list of queries (or kinds, or weights) goes with a list of as many targets, each of them a text or a
    list of right answers. One query, or none, with a list of targets is one pair: all are right answers.
    Where no text is needed, targets that are none at all, or empty, make no pairs.

    Raises:
      BadRecordError: a text is none, or the lists are not equally long.
    """
    said = targets if isinstance(targets, list) else [targets]
    if not limits.needs_text and all(text in (None, "", b"") for text in said):
        return ()
    aligned = isinstance(targets, list) and any(isinstance(value, list) for value in (query, kind, weight))
    answers = targets if aligned else [targets]
    queries = _column(query, len(answers), "query", name)
    kinds = _column(kind, len(answers), "kind", name)
    weights = [number_of(w, "weight", name) for w in _column(weight, len(answers), "weight", name)]
    if any(number is not None and not 0 < number <= MOST_WEIGHT for number in weights):
        raise BadRecordError("line not readable", name, f"weight is {weight}")
    pairs = [
        Pair(
            query=text_of(q, name, limits, may_be_empty=True),
            targets=tuple(text_of(text, name, limits) for text in (a if isinstance(a, list) else [a])),
            kind=text_of(k, name, limits, may_be_empty=True),
            weight=1.0 if w is None else w,
        )
        for a, q, k, w in zip(answers, queries, kinds, weights, strict=True)
    ]
    if not pairs or not all(pair.targets for pair in pairs):
        raise BadRecordError("text empty", name, "no targets")
    return tuple(pairs)


def pairs_of_row(row: Mapping[str, Any], fields: FieldMap, name: str, limits: Limits) -> tuple[Pair, ...]:
    """The pairs of a row of nested mappings and lists. Raises as `make_pairs`."""
    paths = (fields.targets, fields.query, fields.kind, fields.weight)
    values = [value_at(row, path) if path else None for path in paths]
    return make_pairs(*values, name, limits)
