"""Sources: every kind of dataset that people have, as records."""

from etils import epath

from jepa_jax.config import DatasetConfig, FieldMap
from jepa_jax.data.records import Limits, Source
from jepa_jax.data.schema import is_built
from jepa_jax.data.sources.array_record import ArrayRecordSource
from jepa_jax.data.sources.built import BuiltSource
from jepa_jax.data.sources.files import IMAGES, VIDEOS, extension, listing, of_split, told_folders
from jepa_jax.data.sources.manifest import EXTENSIONS, FolderSource, ManifestSource
from jepa_jax.data.sources.tar import TarSource
from jepa_jax.data.sources.tfds import INFO, TfdsSource, builder_by_name, builder_of_folder

# A manifest by one of these names counts before anything else in its folder; so does one that is called
# as the split.
MANIFESTS = ("manifest", "metadata")
TARS = (".tar", ".tar.gz", ".tgz")
ARRAY_RECORDS = (".array_record", ".arrayrecord")


def open_source(dataset: DatasetConfig, limits: Limits) -> Source:
    """The records of a dataset's split.

    A `dataset` is one of TFDS, built first where it is not there yet. A `path` is, by what is found in it:
    a folder that TFDS or `python -m jepa_jax.data.build` prepared (dataset_info.json); a manifest called
    as the split, "manifest" or "metadata" (.jsonl, .csv, .parquet); tar shards; ArrayRecord files; any
    other single manifest; media with KEY.txt beside them. It may also be a file of these. A folder in it
    that is called as the split is gone into; else files belong to the split that their names begin with,
    and to "train" if none says a split; media files are of a split by their folder alone.

    Raises:
      ValueError: there is no such dataset, folder, split or field, or nothing in it can be read, or the
        package that reads its object store is not installed.
    """
    try:
        return _open(dataset, limits)
    except ImportError as error:
        # fsspec's, and it names the package.
        extra = " (pip install 'jepa_jax[gcs]')" if (dataset.path or "").startswith("gs://") else ""
        raise ValueError(f"{dataset.label}: {error}{extra}") from error


def _open(dataset: DatasetConfig, limits: Limits) -> Source:
    if dataset.path is None:
        builder = builder_by_name(dataset)
        return TfdsSource(builder, dataset.split, dataset.fields, limits, dataset.label)
    try:
        path = epath.Path(dataset.path).expanduser()
    except KeyError as error:  # of a scheme that is no file system's
        raise ValueError(f"{dataset.label} is on no disk and in no bucket: download it first") from error
    if (path / INFO).exists():
        return _open_prepared(path, dataset, limits)
    if path.is_file():
        files = [path]
        if extension(path.name) in IMAGES + VIDEOS:  # its text is beside it
            names = [f"{path.name.rpartition('.')[0]}.{kind}" for kind in ("txt", "TXT")]
            files += [path.parent / name for name in names if (path.parent / name).exists()][:1]
        source = _open_files(path.parent, files, dataset.split, dataset, limits)
    else:
        source = _open_folder(path, dataset.split, dataset, limits)
    if source is None:
        inside = "" if path.is_file() else told_folders(listing(path))
        raise ValueError(
            f"{dataset.label}: it holds no dataset_info.json, manifest (.jsonl, .csv, .parquet), tar shards, "
            f"ArrayRecord files, or media with texts beside them{inside}"
        )
    return source


def _open_prepared(path: epath.Path, dataset: DatasetConfig, limits: Limits) -> Source:
    builder = builder_of_folder(path)
    if is_built(builder):
        if dataset.fields != FieldMap():
            raise ValueError(f"{dataset.label}: fields are for other datasets: in a built one all are known")
        return BuiltSource(builder, dataset.split, limits, dataset.label, path)
    return TfdsSource(builder, dataset.split, dataset.fields, limits, dataset.label, folder=path)


def _open_folder(
    folder: epath.Path, split: str | None, dataset: DatasetConfig, limits: Limits
) -> Source | None:
    """The source of a split in a folder, or of a folder that is a split (None). None for no source."""
    paths = listing(folder)
    manifests = [path for path in paths if extension(path.name) in EXTENSIONS]
    # One that is called as the split goes first; the others are not of any split that is asked for.
    for names in ((dataset.split,), MANIFESTS if split in (None, "train") else ()):
        if found := [path for path in manifests if path.name.rpartition(".")[0] in names]:
            return ManifestSource(_only(found, dataset.label), dataset.fields, limits)
    if split is not None and (folder / split).is_dir():
        source = _open_folder(folder / split, None, dataset, limits)
        if source is not None:
            return source
    return _open_files(folder, paths, split, dataset, limits)


def _open_files(
    folder: epath.Path,
    paths: list[epath.Path],
    split: str | None,
    dataset: DatasetConfig,
    limits: Limits,
) -> Source | None:
    """The source that files of a folder are, by what there is. None for no source."""

    def ending(*ends: str) -> list[epath.Path]:
        return [path for path in paths if path.name.lower().endswith(ends)]

    fields, label = dataset.fields, dataset.label
    if tars := ending(*TARS):
        return TarSource(of_split(tars, split, label), fields, limits, label)
    if records := ending(*ARRAY_RECORDS):
        return ArrayRecordSource(of_split(records, split, label), fields, limits, label)
    # After the tars: img2dataset leaves a Parquet file beside each.
    if manifests := ending(*(f".{kind}" for kind in EXTENSIONS)):
        return ManifestSource(_only(of_split(manifests, split, label), label), fields, limits)
    if ending(*(f".{kind}" for kind in IMAGES + VIDEOS)):
        # Not by their names: "train_01.mp4" may well show a train.
        if split not in (None, "train"):
            raise ValueError(f"{label}: its media files are in no folder of this split, {folder / split}")
        if fields != FieldMap():
            raise ValueError(
                f"{label}: it holds media files with texts beside them, which have no fields: set none, or "
                "name the texts in a manifest (.jsonl, .csv, .parquet)"
            )
        return FolderSource(folder, paths, limits)
    return None


def _only(manifests: list[epath.Path], label: str) -> epath.Path:
    if len(manifests) > 1:
        names = ", ".join(path.name for path in manifests)
        raise ValueError(f"{label}: several manifests ({names}): give the path of one")
    return manifests[0]
