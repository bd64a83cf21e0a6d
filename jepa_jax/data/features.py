"""Visual tokens on disk, in place of frames: what `python -m jepa_jax.data.cache_features` wrote.

A cache is a folder of shards and `features.json`. A shard holds its records' tokens one behind the other,
bfloat16 and nothing else, so that a record is one read at a place known beforehand: that is five times
as fast as ArrayRecord, and at a pod's pace a host takes gigabytes a second.
"""

import dataclasses
import hashlib
import math
from typing import Literal

import ml_dtypes
import numpy as np
from etils import epath
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from jepa_jax.config import Config
from jepa_jax.config.types import OPTIONS, Positive
from jepa_jax.data.records import BadRecordError, Limits, Source

FILE = "features.json"
COMMAND = "python -m jepa_jax.data.cache_features"
_DTYPE = np.dtype(ml_dtypes.bfloat16)


@dataclass(**OPTIONS)
class Manifest:
    """What `features.json` says.

    Attributes:
      x_encoder: SHA-256 of the X-Encoder's weights.
      made_with: `made_with` of the configuration.
      dataset: what messages call it; `identity`: SHA-256 of the source's.
      records: of the source, those that cannot be read included.
      tokens: (N, D).
      shard_records: in a shard; the last has what is left.
      bad: {index: (cause, name, detail)} of records that cannot be read; None until all shards are there.
    """

    format: Literal[1] = 1
    x_encoder: str
    made_with: dict[str, int | float | str | bool | None]
    dataset: str
    identity: str
    records: Positive
    tokens: tuple[Positive, Positive]
    shard_records: Positive
    bad: dict[str, tuple[str, str, str]] | None = None

    @property
    def record_bytes(self) -> int:
        return math.prod(self.tokens) * _DTYPE.itemsize

    @property
    def shards(self) -> int:
        return -(-self.records // self.shard_records)

    def records_of(self, shard: int) -> range:
        """The records that a shard holds."""
        start = shard * self.shard_records
        return range(start, min(start + self.shard_records, self.records))

    def shard_name(self, shard: int) -> str:
        return f"{shard:05}-of-{self.shards:05}.bfloat16"

    def has_shard(self, folder: epath.Path, shard: int) -> bool:
        """Whether a shard is there, whole."""
        path = folder / self.shard_name(shard)
        return path.exists() and path.stat().length == len(self.records_of(shard)) * self.record_bytes


def made_with(config: Config) -> dict[str, int | float | str | bool | None]:
    """All of a configuration that visual tokens depend on, weights apart, by field."""
    data, model = config.data, config.model
    (dataset,) = data.datasets
    limits = dataclasses.asdict(Limits.of(data))
    return {
        "data.frames": dataset.frames,
        "data.span": dataset.span,
        "data.resize": data.resize,
        # They say which records are left out.
        **{f"data.{name}": value for name, value in limits.items()},
        **{f"model.x_encoder.{k}": v for k, v in dataclasses.asdict(model.x_encoder).items()},
        "model.compute_dtype": model.compute_dtype,
    }


def identity_of(source: Source) -> str:
    """SHA-256 of what a source says it is."""
    return hashlib.sha256(source.identity.encode(errors="backslashreplace")).hexdigest()


def read_manifest(folder: epath.PathLike) -> Manifest:
    """What a folder's `features.json` says, finished or not.

    Raises:
      ValueError: there is none, or it describes no cache.
    """
    path = epath.Path(folder).expanduser() / FILE
    if not path.exists():
        raise ValueError(f"data.features={str(folder)!r} has no {FILE}: make it with {COMMAND}")
    try:
        manifest = TypeAdapter(Manifest).validate_json(path.read_text())
        for place, bad in (manifest.bad or {}).items():
            if int(place) not in range(manifest.records):
                raise ValueError(f"record {place} of {manifest.records}")
            BadRecordError(*bad)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(f"{path} describes no cache of visual tokens ({reason})") from error
    except ValueError as error:
        raise ValueError(f"{path} describes no cache of visual tokens ({error})") from error
    return manifest


def differences(there: dict[str, object], here: dict[str, object]) -> str:
    """ "data.frames is 8 there and 16 in this run; ...", "" where there are none."""
    return "; ".join(
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} in this run"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    )


def check_preprocessing(config: Config) -> None:
    """Raise ValueError unless the cache `data.features` was made as this run prepares its frames, by the
    same architecture."""
    found = differences(read_manifest(config.data.features).made_with, made_with(config))
    if found:
        raise ValueError(f"data.features={config.data.features!r} was made otherwise: {found}")


def check_weights(folder: str, x_encoder: str) -> None:
    """Raise ValueError unless a cache was made by the X-Encoder of this SHA-256."""
    if read_manifest(folder).x_encoder != x_encoder:
        raise ValueError(
            f"data.features={folder!r} was made by an X-Encoder of other weights than this run's: name the "
            f"init it was made with, or make another cache with {COMMAND}"
        )


class FeatureSource:
    """The visual tokens of a source's records, with random access. It holds no open file, so that threads
    may share it and workers get copies by pickle.

    Raises:
      ValueError: the folder holds no finished cache, one of other data, or has lost a shard.
    """

    def __init__(self, folder: str, source: Source):
        self._folder = epath.Path(folder).expanduser()
        self._manifest = read_manifest(folder)
        if self._manifest.bad is None:
            raise ValueError(f"data.features={folder!r} is not finished: run {COMMAND} again")
        if (self._manifest.records, self._manifest.identity) != (len(source), identity_of(source)):
            raise ValueError(
                f"data.features={folder!r} was made of other data ({self._manifest.dataset}, "
                f"{self._manifest.records} records) than this run's {len(source)} records: make another "
                f"with {COMMAND}"
            )
        for shard in range(self._manifest.shards):
            if not self._manifest.has_shard(self._folder, shard):
                name = self._manifest.shard_name(shard)
                raise ValueError(f"data.features={folder!r} lacks a whole {name}: run {COMMAND} again")

    def __len__(self) -> int:
        return self._manifest.records

    def visual(self, index: int) -> np.ndarray:
        """A record's visual tokens, [N, D] bfloat16, not to be written to.

        Raises:
          BadRecordError: the record could not be read when the cache was made; why.
          OSError: the shard is no longer there, or no longer whole.
        """
        manifest = self._manifest
        if not 0 <= index < manifest.records:
            raise IndexError(f"record {index} of {manifest.records}")
        if (bad := manifest.bad.get(str(index))) is not None:
            raise BadRecordError(*bad)
        shard, place = divmod(index, manifest.shard_records)
        path = self._folder / manifest.shard_name(shard)
        with path.open("rb") as file:
            file.seek(place * manifest.record_bytes)
            content = file.read(manifest.record_bytes)
        if len(content) != manifest.record_bytes:
            raise OSError(f"{path} was cut while it was in use: run {COMMAND} again")
        return np.frombuffer(content, _DTYPE).reshape(manifest.tokens)
