"""Parts: folders of converted parameters, with their configuration and where they came from.

A part is written by `python -m weights_conversion` and holds `params/` (Orbax, in the type of the
source), `part.json`, and the source's tokenizer where it has one.
"""

import contextlib
import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from orbax.checkpoint import type_handlers
from pydantic import Field, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from jepa_jax.checkpoint import fingerprint, raise_if_damaged
from jepa_jax.config import BertConfig, Config, LlamaConfig, XEncoderConfig, YEncoderConfig
from jepa_jax.errors import first_line
from jepa_jax.models.llama import LanguageModel
from jepa_jax.models.vl_jepa import VLJEPA, make_y_encoder
from jepa_jax.models.x_encoder import XEncoder
from jepa_jax.places import place

_FILE, _ARRAYS = "part.json", "params"
_FORMAT = 1


@checked_dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """A whole causal Llama: `head` is "tied" to the token embedding or has its "own" weights."""

    llama: LlamaConfig
    head: Literal["tied", "own"] = "tied"


# What a part can be, and the configuration that describes it.
CONFIGS = {
    "x_encoder": XEncoderConfig,
    "predictor": LlamaConfig,
    "y_encoder": Annotated[YEncoderConfig | BertConfig, Field(discriminator="kind")],
    "y_decoder": LanguageModelConfig,
    "vl_jepa": Config,
}


def abstract_module(name: str, config, *, dtype=jnp.float32) -> nnx.Module:
    """The module whose parameters a part holds, with shapes in their place; layers run under one scan."""
    return nnx.eval_shape(lambda: _make_module(name, config, dtype))


def _make_module(name: str, config, dtype) -> nnx.Module:
    rngs = nnx.Rngs(0)
    options = {"dtype": dtype, "remat": "none", "scan": True, "rngs": rngs}
    match name:
        case "x_encoder":
            return XEncoder(config, **options)
        case "predictor":
            return LanguageModel(config, None, **options)
        case "y_encoder":
            return make_y_encoder(config, None, **options)
        case "y_decoder":
            return LanguageModel(config.llama, config.head, **options)
    return VLJEPA(config.model, config.loss, rngs=rngs)


class NotAPartError(ValueError):
    """A folder that is not a part, or not one this version can read."""


@dataclasses.dataclass
class LazyArray:
    """An array that is made when it is written, so that only one is in memory at a time.

    Attributes:
      checksum: of the array as it was written; None before.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    checksum: int | None = None


class _LazyHandler(type_handlers.NumpyHandler):
    """Orbax's writer of NumPy arrays, one after the other."""

    async def serialize(self, values, infos, args=None):
        args = [None] * len(values) if args is None else args
        for value, info, arg in zip(values, infos, args, strict=True):
            await self._write(value, info, arg)
        return []

    async def _write(self, value: LazyArray, info, arg) -> None:
        # A function of its own, so that nothing of an array is left when the next is made.
        array = value.read()
        assert (array.shape, array.dtype) == (value.shape, value.dtype), info.name
        value.checksum = int(fingerprint(array)[0])
        for written in await super().serialize([array], [info], [arg]):
            written.result()

    def memory_size(self, values):
        sizes = [math.prod(v.shape) * v.dtype.itemsize for v in values]
        return [(size, size) for size in sizes]


def write(
    directory: epath.PathLike,
    name: str,
    config,
    arrays: Mapping[str, LazyArray],
    *,
    max_length: int | None,
    provenance: Mapping[str, Any],
) -> None:
    """Write a part into an existing folder; `arrays` by parameter name, a/b/c.

    Args:
      config: as `CONFIGS[name]` says.
      max_length: tokens the source's tokenizer cuts a text to, if it does.
      provenance: JSON: source, hashes, options, licence of the weights.
    """
    directory = epath.Path(directory)
    registry = type_handlers.create_type_handler_registry(
        (LazyArray, _LazyHandler()), (jax.Array, type_handlers.ArrayHandler())
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory / _ARRAYS, _nested(arrays))
    content = {
        "format": _FORMAT,
        "part": name,
        "config": dataclasses.asdict(config),
        "arrays": {
            path: {"shape": a.shape, "dtype": str(a.dtype), "checksum": a.checksum}
            for path, a in arrays.items()
        },
        "max_length": max_length,
        "provenance": provenance,
    }
    (directory / _FILE).write_text(json.dumps(content, indent=2) + "\n")


def _nested(flat: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


@dataclasses.dataclass(frozen=True)
class Part:
    """A part on disk.

    Attributes:
      name: one of `CONFIGS`.
      config: its configuration.
      shapes: {parameter name: shape and type as stored}.
      max_length: tokens its tokenizer cuts a text to, or None.
      provenance: where it came from.
    """

    directory: epath.Path
    name: str
    config: Any
    shapes: dict[str, jax.ShapeDtypeStruct]
    checksums: dict[str, int]
    max_length: int | None
    provenance: dict[str, Any]

    @property
    def identity(self) -> str:
        """A text that is another where any array is."""
        return f"{zlib.crc32(json.dumps(sorted(self.checksums.items())).encode()):08x}"

    def select(self, names) -> "Part":
        """The same part, of which only some arrays are read."""
        return dataclasses.replace(self, shapes={n: x for n, x in self.shapes.items() if n in names})

    def read(self, shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> dict[str, jax.Array]:
        """The arrays by name, in the type they are stored in.

        Args:
          shardings: where each shall live (default: on the first local device).

        Raises:
          DamagedCheckpointError: they cannot be read or are not those that were written.
        """
        if shardings is None:
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = dict.fromkeys(self.shapes, here)
        template = {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[path])
            for path, x in self.shapes.items()
        }
        failure, places = None, shardings.values()
        # Not by a checkpointer, in which hosts that can read wait for one that cannot.
        handler = ocp.PyTreeCheckpointHandler()
        try:
            with contextlib.closing(handler):
                tree = handler.restore(
                    self.directory / _ARRAYS,
                    args=ocp.args.PyTreeRestore(
                        _nested(template),
                        restore_args=ocp.checkpoint_utils.construct_restore_args(_nested(template)),
                        partial_restore=True,
                    ),
                )
            found = flatten(tree)
            for path, array in found.items():
                if not isinstance(array, jax.Array):  # Orbax leaves in its place what it was to be like
                    failure = f"{self.directory} lacks {path}: convert it again"
        except Exception as error:  # tensorstore raises bare Exceptions on bad files
            failure = f"{self.directory}: {first_line(error)}"
        raise_if_damaged(failure, places)
        for path, array in found.items():
            if int(fingerprint(array)[0]) != self.checksums[path]:
                failure = f"{self.directory}: {path} differs from what was written; convert it again"
        raise_if_damaged(failure, places)
        return found


def flatten(tree) -> dict[str, Any]:
    """The leaves of a state or nested dict by name, a/b/c, in the tree's own order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(k.key) for k in path if hasattr(k, "key")): x for path, x in leaves}


def filled(template, arrays: Mapping[str, jax.Array]):
    """A state whose arrays are those of a part, in the types that the template's have.

    Raises:
      ValueError: they are not exactly the template's, by name and shape.
    """
    wanted = {name: x.shape for name, x in flatten(template).items()}
    given = {name: x.shape for name, x in arrays.items()}
    if wanted != given:
        odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise ValueError(f"the arrays do not fit the model: {', '.join(odd[:3])}")
    leaves, treedef = jax.tree.flatten(template)
    names = list(flatten(template))
    return jax.tree.unflatten(
        treedef, [arrays[name].astype(x.dtype) for name, x in zip(names, leaves, strict=True)]
    )


def is_part(directory: epath.PathLike) -> bool:
    """Whether a folder says it is a part."""
    return (place(directory) / _FILE).is_file()


def open_part(directory: epath.PathLike) -> Part:
    """Read what a part is; its arrays are read by `Part.read`.

    Raises:
      NotAPartError: the folder is no part, or one of a format this version does not know.
      PlaceError: it cannot be reached.
    """
    directory = place(directory)
    if not is_part(directory):
        raise NotAPartError(
            f"{directory} holds no converted weights: make them with "
            f"python -m weights_conversion --source=SOURCE --out={directory}"
        )
    try:
        content = json.loads((directory / _FILE).read_bytes())
        if content["format"] != _FORMAT:
            raise NotAPartError(
                f"{directory / _FILE} has format {content['format']}, this version reads {_FORMAT}"
            )
        config = TypeAdapter(CONFIGS[content["part"]]).validate_json(json.dumps(content["config"]))
        max_length = TypeAdapter(PositiveInt | None).validate_python(content["max_length"], strict=True)
        return Part(
            directory=directory,
            name=content["part"],
            config=config,
            shapes={
                path: jax.ShapeDtypeStruct(tuple(a["shape"]), np.dtype(a["dtype"]))
                for path, a in content["arrays"].items()
            },
            checksums={path: a["checksum"] for path, a in content["arrays"].items()},
            max_length=max_length,
            provenance=content["provenance"],
        )
    except NotAPartError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotAPartError(f"{directory / _FILE} does not describe a part ({first_line(error)})") from error
