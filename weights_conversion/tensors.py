"""Named tensors in files: shapes first, contents one at a time.

Nothing here keeps a file mapped: pages of a mapped file count as memory once they were touched.
"""

import pathlib
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jepa_jax.errors import first_line
from jepa_jax.flags import UsageError

_SAFETENSORS_TYPES = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
# A mapped PyTorch file is opened again after so many bytes were read from it.
_REOPEN_AFTER = 2**28


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Protocol):
    """What a source holds.

    Attributes:
      info: shape and type by name.
      files: the files they come from.
    """

    info: dict[str, TensorInfo]
    files: list[pathlib.Path]

    def read(self, name: str) -> np.ndarray: ...


def _check_new(name: str, file: pathlib.Path, before: pathlib.Path | None) -> None:
    """Raise UsageError for a tensor that another file of the same checkpoint has as well."""
    if before is not None:
        raise UsageError(
            f"{before} and {file.name} both hold {name}: download both again, one is of another checkpoint"
        )


class Safetensors:
    """One safetensors file or the shards of one checkpoint."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self.files = list(files)
        self.info: dict[str, TensorInfo] = {}
        self._file_of: dict[str, pathlib.Path] = {}
        for file in self.files:
            try:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                        _check_new(name, file, self._file_of.get(name))
                        found = opened.get_slice(name)
                        dtype = _SAFETENSORS_TYPES.get(found.get_dtype(), np.void)
                        self.info[name] = TensorInfo(tuple(found.get_shape()), np.dtype(dtype))
                        self._file_of[name] = file
            except (SafetensorError, OSError) as error:
                raise UsageError(
                    f"{file} is truncated or no safetensors file ({error}): download it again"
                ) from error

    def read(self, name: str) -> np.ndarray:
        with safe_open(self._file_of[name], framework="numpy") as opened:
            return opened.get_tensor(name)


def import_torch():
    """PyTorch, which only pickled checkpoints and the reference need."""
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            "this needs PyTorch: pip install 'jepa_jax[convert]' (a CPU build is enough)"
        ) from error
    return torch


def _check_size(file: pathlib.Path) -> None:
    """Raise UsageError for an archive that expands, to any size: PyTorch itself compresses nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > file.stat().st_size:
            raise UsageError(
                f"{file} says that it expands to {size:,} bytes, and PyTorch's own files are not compressed: "
                "ask for safetensors"
            )


def load_pickle(file: pathlib.Path):
    """What a .pt, .pth or .bin file holds: tensors and plain containers, never code.

    Raises:
      UsageError: the file is damaged, or holds anything else.
    """
    torch = import_torch()
    try:
        _check_size(file)
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # The format before PyTorch 1.6 cannot be mapped.
            return torch.load(file, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        found = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if found:
            raise UsageError(
                f"{file} holds more than tensors ({found}) and is refused, for loading it could run code: "
                "ask for safetensors"
            ) from error
        raise UsageError(f"{file} is truncated or no PyTorch file: download it again") from error
    except Exception as error:  # the reader raises whatever a cut file leads it to
        reason = first_line(error)
        raise UsageError(f"{file} is truncated or no PyTorch file ({reason}): download it again") from error


def _torch_info(tensor) -> TensorInfo:
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = {"bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}.get(name)
    try:
        return TensorInfo(tuple(tensor.shape), np.dtype(dtype or name))
    except TypeError:
        return TensorInfo(tuple(tensor.shape), np.dtype(np.void))


def _is_plain(tensor, size: int) -> bool:
    """Not sparse, not without contents, and no more numbers, in a view or not, than a file of `size` has."""
    torch = import_torch()
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes() <= size


def to_numpy(tensor) -> np.ndarray:
    """A copy of a PyTorch tensor in its own type."""
    torch = import_torch()
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


class Pickled:
    """The tensors of one dictionary inside a PyTorch file.

    Args:
      select: from what the file holds to {name: tensor}.
    """

    def __init__(self, file: pathlib.Path, select=lambda content: content):
        self.files = [file]
        self._select = select
        self._open()
        self.info = {name: _torch_info(x) for name, x in self._tensors.items()}

    def _open(self):
        found = self._select(load_pickle(self.files[0]))
        if not isinstance(found, dict):
            raise UsageError(f"{self.files[0]} holds a {type(found).__name__}, not a state dict")
        self._tensors = {str(name): x for name, x in found.items() if hasattr(x, "shape")}
        size = self.files[0].stat().st_size
        for name, x in self._tensors.items():
            if not _is_plain(x, size):
                raise UsageError(
                    f"{self.files[0]}: {name} is not plain numbers, each of them in the file: ask for "
                    "safetensors"
                )
        self._touched = 0

    def read(self, name: str) -> np.ndarray:
        found = to_numpy(self._tensors[name])
        self._touched += found.nbytes
        if self._touched > _REOPEN_AFTER:
            self._open()  # at once: what was touched would count until the next read
        return found


class Joined:
    """Several sources as one, (prefix before its names, source) each."""

    def __init__(self, sources: Sequence[tuple[str, Tensors]]):
        self.files = [file for _, source in sources for file in source.files]
        self._place = {}
        for prefix, source in sources:
            for name in source.info:
                before, _ = self._place.get(prefix + name, (None, ""))
                _check_new(prefix + name, source.files[0], before and before.files[0])
                self._place[prefix + name] = (source, name)
        self.info = {full: source.info[name] for full, (source, name) in self._place.items()}

    def read(self, name: str) -> np.ndarray:
        source, inner = self._place[name]
        return source.read(inner)


def _joined(shapes: Sequence[tuple[int, ...]], axis: int | None) -> tuple[int, ...] | None:
    """The shape of slices put together along an axis, or of copies; None where they do not fit."""
    first = shapes[0]
    if axis is None:
        return first if set(shapes) == {first} else None
    around = {(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}
    if len(around) > 1 or len(first) <= axis:
        return None
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


class ModelParallel:
    """Meta's consolidated.NN.pth: every file holds a slice of each matrix.

    Args:
      axis_of: the axis a tensor of this name is cut along; None where every file has the whole.
    """

    def __init__(self, shards: Sequence[Tensors], axis_of):
        self._shards = list(shards)
        self.files = [file for shard in shards for file in shard.files]
        self._axis_of = axis_of
        names = [set(shard.info) for shard in shards]
        if any(other != names[0] for other in names):
            raise UsageError(f"{self.files[0].parent}: the consolidated files hold different tensors")
        self.info = {}
        for name, info in shards[0].info.items():
            shapes = [shard.info[name].shape for shard in shards]
            shape = _joined(shapes, axis_of(name))
            if shape is None:
                found = ", ".join(map(str, shapes))
                raise UsageError(f"{self.files[0].parent}: the slices of {name} do not fit together: {found}")
            if len(types := {shard.info[name].dtype for shard in shards}) > 1:
                found = ", ".join(sorted(map(str, types)))
                raise UsageError(
                    f"{self.files[0].parent}: the slices of {name} come in different types: {found}"
                )
            self.info[name] = TensorInfo(shape, info.dtype)

    def read(self, name: str) -> np.ndarray:
        axis = self._axis_of(name)
        if axis is None or len(self._shards) == 1:
            return self._shards[0].read(name)
        return np.concatenate([shard.read(name) for shard in self._shards], axis)


def _gguf_reader(gguf, file: pathlib.Path):
    """A reader for which the end of the file is an error. The library's own goes on with nothing, as often as
    the file says that there is more."""

    class Reader(gguf.GGUFReader):
        def _get(self, offset, dtype, count=1, *more, **options):
            found = super()._get(offset, dtype, count, *more, **options)
            if len(found) < count:
                raise EOFError("it ends too early")
            return found

    return Reader(file)


class GGUF:
    """A GGUF file; quantised tensors are read as float32.

    Attributes:
      metadata: its key-value pairs; of arrays (the vocabulary) those of booleans alone.
    """

    def __init__(self, file: pathlib.Path):
        try:
            import gguf
        except ImportError as error:
            raise UsageError("GGUF files need the gguf package: pip install 'jepa_jax[convert]'") from error
        self._gguf = gguf
        self.files = [file]
        try:
            reader = _gguf_reader(gguf, file)
            self._tensors = {t.name: t for t in reader.tensors}
        except Exception as error:  # the reader raises whatever a cut file leads it to
            reason = first_line(error)
            raise UsageError(f"{file} is truncated or no GGUF file ({reason}): download it again") from error
        kinds = gguf.GGUFValueType
        self.metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if field.types and (field.types[0] != kinds.ARRAY or field.types[1:] == [kinds.BOOL])
        }
        types = gguf.GGMLQuantizationType
        self.info = {
            # GGUF writes the fastest axis first.
            name: TensorInfo(
                tuple(int(n) for n in reversed(t.shape)),
                np.dtype(
                    {types.F16: np.float16, types.BF16: ml_dtypes.bfloat16}.get(t.tensor_type, np.float32)
                ),
            )
            for name, t in self._tensors.items()
        }

    def read(self, name: str) -> np.ndarray:
        tensor, info = self._tensors[name], self.info[name]
        types = self._gguf.GGMLQuantizationType
        if tensor.tensor_type in (types.F32, types.F16):
            return np.array(tensor.data).reshape(info.shape)
        if tensor.tensor_type == types.BF16:
            return np.array(tensor.data).view(ml_dtypes.bfloat16).reshape(info.shape)
        try:
            return self._gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise UsageError(f"{self.files[0]}: {name} has type {kind}, which is not read") from error
