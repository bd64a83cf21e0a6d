"""Files of a source: nothing in them is believed before it is looked at."""

import hashlib
import json
import pathlib
from typing import Any

from jepa_jax.flags import UsageError


def read_json(file: pathlib.Path, kind: type = dict) -> Any:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no JSON file ({error}): download it again") from error
    if not isinstance(found, kind):
        wanted = "object" if kind is dict else "list"
        raise UsageError(f"{file} does not hold the JSON {wanted} it should: download it again")
    return found


def inside(root: pathlib.Path, name: str) -> pathlib.Path:
    """A path that a file of the source names; it must stay in the source's folder."""
    found = (root / name).resolve()
    if not found.is_relative_to(root.resolve()):
        raise UsageError(f"{root} names {name!r}, which lies outside of it: refused")
    return root / name


def sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
