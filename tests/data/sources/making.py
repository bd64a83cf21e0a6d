"""Small datasets of every kind, made by what people make them with."""

import io
import tarfile

import numpy as np
from etils import epath
from PIL import Image

from jepa_jax.config import DatasetConfig, FieldMap
from jepa_jax.data.records import BadRecordError, Limits, Source, TextOptional
from jepa_jax.data.sources import open_source

LIMITS = Limits(max_pixels=1000, max_media_bytes=20_000, max_text_characters=50)
NO_TEXT = TextOptional(**vars(LIMITS))


def opened(path, limits=LIMITS, split="train", **fields) -> Source:
    """The source of a folder or file."""
    return open_source(DatasetConfig(path=str(path), split=split, fields=FieldMap(**fields)), limits)


def png(width=5, height=7, level=0) -> bytes:
    """An image's file."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level, 2, 3)).save(file, "png")
    return file.getvalue()


def write(folder: epath.Path, **files: bytes | str) -> epath.Path:
    """Files by name, "__" for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        encoded = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(encoded)
    return folder


def write_tar(path, members, form=tarfile.PAX_FORMAT) -> epath.Path:
    """A tar of (name, content), or of `TarInfo`s as they are."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def cause_of(source: Source, index: int) -> str | None:
    """Why a record cannot be used; None if it can."""
    try:
        source[index]
    except BadRecordError as error:
        if error.name != source.name(index):
            raise AssertionError(f"{error.name} in place of {source.name(index)}") from error
        return error.cause
    return None


def skipped_causes(source: Source) -> list[str]:
    return [error.cause for error in source.skipped]


def same(a, b) -> bool:
    """Whether two records are equal, frames too."""
    frames = [x.media.content for x in (a, b)]
    if isinstance(frames[0], np.ndarray):
        return np.array_equal(*frames) and (a.name, a.pairs, a.metadata) == (b.name, b.pairs, b.metadata)
    return a == b
