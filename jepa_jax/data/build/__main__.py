"""Build a dataset: any source of records to sharded ArrayRecord files that TFDS opens.

    python -m jepa_jax.data.build --out=DIR --name=NAME (--path=FOLDER | --dataset=TFDS_NAME)
        [--splits=train] [--fields.media=NAME ...] [--workers=N] [--remove_duplicate_texts] [--rebalance=K]

The result is DIR/NAME/VERSION, for `--config.data.path`. The same command goes on where it was interrupted.
"""

import dataclasses
import functools
import importlib.util
import logging
import pathlib
import re
import sys

import numpy as np
import tensorflow_datasets as tfds
from pydantic import ValidationError

from jepa_jax import flags
from jepa_jax.config import DataConfig, DatasetConfig, FieldMap
from jepa_jax.data.build import DIRECT_RUNNER
from jepa_jax.data.build.dataset import Options, TooManyBadRecordsError, build
from jepa_jax.data.build.layout import REPORT, BuildError
from jepa_jax.data.decode import read_frames
from jepa_jax.data.records import Limits
from jepa_jax.data.sources import open_source
from jepa_jax.places import PlaceError

# What media are decoded to, to see that they can be: a frame near the beginning and one near the end.
_FRAMES, _PIXELS = 2, 32
_DEFAULTS = DataConfig()
_LIMITS = [field.name for field in dataclasses.fields(Limits)]


class ModelEmbedder:
    """Texts by a trained or converted model, which each worker loads for itself.

    Raises:
      UsageError: there is no such model.
    """

    def __init__(self, directory: str):
        self._directory = directory
        self._model = self._load()

    def __getstate__(self):
        return self.__dict__ | {"_model": None}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """B texts to [B, D]."""
        if self._model is None:
            self._model = self._load()
        return self._model.embed_text(texts)

    def _load(self):
        # JAX only where it is needed.
        from jepa_jax import inference

        model = inference.load(self._directory)
        if not hasattr(model, "embed_text"):
            raise flags.UsageError(f"--embedder={self._directory}: this part embeds no texts")
        return model


def _whole(least: int):
    """A type of flag: a whole number of at least so much."""

    def convert(text: str) -> int:
        number = int(text)
        if number < least:
            raise ValueError
        return number

    convert.__name__ = f"whole number of at least {least}"
    return convert


def _fraction(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number


_fraction.__name__ = "number from 0 to 1"


def _parser():
    parser = flags.parser(__doc__)
    add = parser.add_argument
    add("--out", type=flags.local_path, required=True, help="a folder that all workers see")
    add("--name", required=True, help="of the dataset: small letters, digits and _")
    add("--version", default="1.0.0", help="of the dataset (default: 1.0.0)")
    add("--path", help="the source: a folder or file, as data.path")
    add("--dataset", help="the source: a dataset that TFDS knows, as data.dataset")
    add("--data_dir", help="where TFDS has or puts --dataset")
    add("--splits", default="train", help="with commas between (default: train)")
    for field in FieldMap.__dataclass_fields__:
        add(f"--fields.{field}", help="where in the source's records it is, as in FieldMap")
    for name in _LIMITS:
        default = getattr(_DEFAULTS, name)
        add(f"--{name}", type=_whole(1), default=default, help=f"a record's limit (default: {default})")
    add("--max_bad_fraction", type=_fraction, default=_DEFAULTS.max_bad_fraction, help="of records left out")
    add("--no_decode", metavar="REASON", help="do not see whether media decode, and why not")
    add("--shards", type=_whole(1), help="files of a split (default: by size)")
    add("--remove_duplicate_texts", action="store_true", help="of equal texts the first stays")
    add("--rebalance", type=_whole(2), metavar="K", help="even out K clusters of texts (Action100M: 1000)")
    add("--cluster_size", type=_whole(1), help="of a cluster so many records stay (default: the mean)")
    add("--embedder", help="a run or converted text encoder for --rebalance (default: n-grams)")
    add("--seed", type=int, help="of --rebalance (default: 0)")
    add("--runner", default=DIRECT_RUNNER, help="Beam's runner (default: this machine)")
    add("--workers", type=_whole(1), default=1, help="processes on this machine (default: 1)")
    add("--beam_option", action="append", default=[], metavar="NAME=VALUE", help="for the runner")
    return parser


def _check(values) -> None:
    """Raise UsageError for flags that do not go together."""
    if (values.path is None) == (values.dataset is None):
        raise flags.UsageError("the source is either --path=FOLDER or --dataset=TFDS_NAME")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", values.name):
        raise flags.UsageError(
            f"--name={values.name!r}: TFDS takes small letters, digits and _, a letter first"
        )
    if not tfds.core.Version.is_valid(values.version):
        raise flags.UsageError(f"--version={values.version!r} is no version like 1.0.0")
    for split in values.splits.split(","):
        if not re.fullmatch(r"\w+", split):
            raise flags.UsageError(f"--splits={values.splits!r}: {split!r} is no name of a split")
    if len(set(values.splits.split(","))) < len(values.splits.split(",")):
        raise flags.UsageError(f"--splits={values.splits!r} names a split twice")
    if values.data_dir is not None and values.dataset is None:
        raise flags.UsageError("--data_dir is of --dataset=TFDS_NAME, which is not given")
    for flag in ("cluster_size", "embedder", "seed"):
        if getattr(values, flag) is not None and values.rebalance is None:
            raise flags.UsageError(f"--{flag} is of --rebalance=K, which is not given")
    if values.runner != DIRECT_RUNNER and values.workers != 1:
        raise flags.UsageError("--workers is of this machine: other runners take a --beam_option")


def _sources(values, limits: Limits) -> dict:
    fields = FieldMap(**{name: getattr(values, f"fields.{name}") for name in FieldMap.__dataclass_fields__})
    sources = {}
    for split in values.splits.split(","):
        try:
            dataset = DatasetConfig(
                dataset=values.dataset,
                path=values.path,
                data_dir=values.data_dir,
                split=split,
                fields=fields,
            )
        except ValidationError as error:
            raise flags.UsageError(flags.explain(error, "command line")) from error
        with flags.as_usage_errors(ValueError):
            sources[split] = open_source(dataset, limits)
    return sources


def _print(report: dict, folder: pathlib.Path) -> None:
    for name, found in report["splits"].items():
        left = sum(found["left_out"].values())
        size = found["bytes"] / 1e6
        print(
            f"{name}: {found['records']:,} records, {found['pairs']:,} pairs, {size:,.1f} MB in "
            f"{found['shards']} shards; {left:,} left out"
        )
    print(f"{folder / REPORT} says more")


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    values, overrides = flags.parse(arguments, _parser())
    for package in ("apache_beam", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise flags.UsageError(f"a build needs {package}: pip install 'jepa_jax[build]'")
    from jepa_jax.data.build.runner import BeamRunner, WorkerDiedError

    if overrides:
        raise flags.UsageError("a build has no config: no --config flags here")
    _check(values)
    limits = Limits(**{name: getattr(values, name) for name in _LIMITS})
    check = functools.partial(read_frames, count=_FRAMES, resize=_PIXELS, crop=_PIXELS, limits=limits)
    options = Options(
        limits=limits,
        shards=values.shards,
        not_decoded=values.no_decode or "",
        remove_duplicate_texts=values.remove_duplicate_texts,
        rebalance=values.rebalance,
        cluster_size=values.cluster_size,
        embedder=values.embedder or "",
        seed=values.seed or 0,
    )
    embed = None if values.embedder is None else ModelEmbedder(values.embedder)
    folder = values.out.absolute() / values.name / values.version
    try:
        with flags.as_usage_errors(BuildError, PlaceError):
            report = build(
                _sources(values, limits),
                folder,
                options,
                run=BeamRunner(values.runner, values.workers, [f"--{o}" for o in values.beam_option]),
                check=None if values.no_decode else check,
                embed=embed,
                max_bad_fraction=values.max_bad_fraction,
            )
    except (TooManyBadRecordsError, WorkerDiedError, OSError) as error:
        stays = folder.is_dir() and not isinstance(error, TooManyBadRecordsError)
        goes_on = "; the same command goes on from here" if stays else ""
        print(f"error: {error}{goes_on}", file=sys.stderr)
        return 1
    _print(report, folder)
    return 0


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jepa_jax").setLevel(logging.INFO)
    sys.exit(flags.run(main, sys.argv[1:]))
