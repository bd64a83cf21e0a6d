"""Loads `emoji.npz`, the artwork; `build_pack.py` makes it."""

import dataclasses
import functools
import pathlib

import numpy as np

from jepa_jax.data.emoji_motion.things import THINGS

PACK_PATH = pathlib.Path(__file__).with_name("emoji.npz")


@dataclasses.dataclass(frozen=True)
class Pack:
    """The artwork: uint8 RGBA with straight alpha, 64 px square.

    Attributes:
      google: [K,64,64,4], thing k of `THINGS` drawn for Google's Noto set.
      fluent_3d: [K,64,64,4], the same things drawn for Microsoft's Fluent 3D set.
      animated: [M,8,64,64,4], Fluent animations, 8 frames evenly spaced over each one's duration.
      animated_thing: [M] int32, the index in `THINGS` of each animation, ascending.
    """

    google: np.ndarray
    fluent_3d: np.ndarray
    animated: np.ndarray
    animated_thing: np.ndarray


@functools.cache
def load_pack(path: str | pathlib.Path = PACK_PATH) -> Pack:
    """Returns the checked artwork.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: an array is missing or has another shape or dtype than `THINGS` implies.
    """
    path = pathlib.Path(path)
    rebuild = "python -m jepa_jax.data.emoji_motion.build_pack"
    if not path.exists():
        raise FileNotFoundError(f"The artwork {path} is missing: reinstall or run {rebuild}.")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    count = len(arrays.get("animated_thing", ()))
    expected = {
        "google": ((len(THINGS), 64, 64, 4), np.uint8),
        "fluent_3d": ((len(THINGS), 64, 64, 4), np.uint8),
        "animated": ((count, 8, 64, 64, 4), np.uint8),
        "animated_thing": ((count,), np.int32),
    }
    found = {name: (array.shape, array.dtype.type) for name, array in arrays.items()}
    if found != expected:
        raise ValueError(f"{path} holds {found}, expected {expected}: run {rebuild}.")
    return Pack(**arrays)
