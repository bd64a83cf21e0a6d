"""The media of a benchmark: one folder, in whatever layout it was downloaded."""

import os
import pathlib
from collections import defaultdict

from jepa_jax.flags import UsageError

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEOS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
SUFFIXES = {*IMAGES, *VIDEOS}


class MissingMediaError(ValueError):
    """No file, or no single one, for a name."""


def _without_suffix(path: pathlib.PurePosixPath) -> tuple[str, ...]:
    # All of a kind: what re-encodes may append one, as the downloader of DiDeMo does ("ID.mov.mp4"); but
    # "ID.mp4.jpg" is a picture of it.
    kind = IMAGES if path.suffix.lower() in IMAGES else VIDEOS
    while path.suffix.lower() in kind:
        path = path.with_suffix("")
    return path.parts


def _in_order(folders: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether `folders` occur in a path in that order."""
    rest = iter(path)
    return all(folder in rest for folder in folders)


class MediaFolder:
    """Finds files by the names that annotations give them.

    Suffixes do not count: annotations often name a format that was re-encoded since. The folders of a
    name must occur in a file's path in their order, others before and between them or not. Names are
    looked up among the files that are there and never joined to a path, so none leads out of the folder.
    """

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder).absolute()
        if not self._folder.is_dir():
            raise UsageError(f"--media={folder}: no such folder")
        self._by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        self._files: dict[tuple[str, ...], list[pathlib.Path]] = defaultdict(list)
        self._links: list[pathlib.Path] = []  # to folders, which are not gone into
        for place, folders, names in os.walk(self._folder):
            self._links += [path for x in folders if (path := pathlib.Path(place, x)).is_symlink()]
            for name in names:
                file = pathlib.Path(place, name)
                if file.suffix.lower() in SUFFIXES:
                    parts = _without_suffix(pathlib.PurePosixPath(file.relative_to(self._folder)))
                    if not self._files[parts]:
                        self._by_name[parts[-1]].append(parts)
                    self._files[parts].append(file)

    def find(self, name: str) -> pathlib.Path:
        """The file of a name such as "id", "id.mp4" or "folder/id".

        Raises:
          MissingMediaError: there is none, there are several, or it leads out of the folder.
        """
        wanted = _without_suffix(pathlib.PurePosixPath(name))
        found = self._by_name.get(wanted[-1], []) if wanted else []
        fitting = [parts for parts in found if _in_order(wanted[:-1], parts[:-1])]
        files = [file for parts in fitting for file in self._files[parts]]
        if not files:
            link = f", and {self._links[0].name} is a link, not gone into" if self._links else ""
            raise MissingMediaError(f"no such media file{link}")
        if len(files) > 1:
            some = ", ".join(str(file.relative_to(self._folder)) for file in sorted(files)[:3])
            raise MissingMediaError(f"{len(files)} media files of that name: {some}")
        # Folders that are links were not gone into. To resolve each path asks for all folders above it, for
        # every question: on a network's file system that takes longer than the model.
        if files[0].is_symlink() and not files[0].resolve().is_relative_to(self._folder.resolve()):
            raise MissingMediaError("media outside its folder: a link leads there")
        return files[0]
