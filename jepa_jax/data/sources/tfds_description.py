"""TFDS's description of a dataset's features, before TFDS reads it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

FEATURES = "features.json"
# What in it is a class's name, and how those of TFDS itself begin.
_NAME_A_CLASS = ("pythonClassName", "python_class_name", "type")
_OWN = "tensorflow_datasets."


def check_classes(file: epath.Path) -> None:
    """Raise ValueError where a description names a class that is not TFDS's own. What cannot be read is
    TFDS's to tell.

    TFDS imports the module of a class that it does not know, which runs it: that of a dataset's own folder,
    say, where the working directory is around it.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return
    try:
        foreign = [name for name in _classes_of(content) if not name.startswith(_OWN)]
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deep: refused") from error
    if foreign:
        raise ValueError(f"{file} names {foreign[0][:200]!r}, which is none of TFDS's own classes: refused")


def _classes_of(node: Any) -> Iterator[str]:
    """The classes that are named in either of TFDS's forms, also in texts that are descriptions."""
    if isinstance(node, str) and node.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            node = json.loads(node)
    if isinstance(node, list):
        for element in node:
            yield from _classes_of(element)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key in _NAME_A_CLASS and isinstance(value, str):
                yield value
            yield from _classes_of(value)


def videos_as_images(node: Any) -> Any:
    """TFDS's description of features, every Video written as the Sequence of Images that it is."""
    if isinstance(node, list):
        return [videos_as_images(element) for element in node]
    if not isinstance(node, Mapping):
        return node
    if "video" not in node or not str(node.get("pythonClassName")).endswith(".Video"):
        return {key: videos_as_images(value) for key, value in node.items()}
    module, video = "tensorflow_datasets.core.features", node["video"]
    length, *shape = video.get("shape", {}).get("dimensions") or ["-1", "-1", "-1", "3"]
    image = {"dtype": video.get("dtype", "uint8"), "shape": {"dimensions": shape}}
    image = {"pythonClassName": f"{module}.image_feature.Image", "image": image}
    sequence = {"feature": image, "length": length}
    return {"pythonClassName": f"{module}.sequence_feature.Sequence", "sequence": sequence}
