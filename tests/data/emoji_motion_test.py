"""Emoji in motion: artwork, scenes, clips, splits, and the TFDS dataset made of them."""

import collections
import dataclasses
import hashlib
import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jepa_jax.data.emoji_motion import build_pack, clips, compose
from jepa_jax.data.emoji_motion.builder import NAMED, EmojiMotion, make_config
from jepa_jax.data.emoji_motion.pack import PACK_PATH, load_pack
from jepa_jax.data.emoji_motion.scene import (
    BACKGROUNDS,
    DIRECTIONS,
    MOTIONS,
    Background,
    SceneStyle,
    sample_background,
    sample_scene,
)
from jepa_jax.data.emoji_motion.splits import seen_pairs, spread, unseen_pairs
from jepa_jax.data.emoji_motion.things import THINGS, with_article

NAMES = [thing.name for thing in THINGS]
TINY = NAMED["tiny"]
ALONE = SceneStyle(second_chance=0.0)
PACK_SHA256 = "41cca62c4b9e97f058936c21e61a1c25bb2ef0cd4e0de75722177692ee414605"


# Things and artwork


def test_names_are_unique_and_no_word_of_another():
    assert len(THINGS) == len(set(NAMES)) == 120
    assert len({thing.codepoint for thing in THINGS}) == 120
    assert {t.category for t in THINGS} == {"animal", "food", "vehicle", "object", "plant"}
    taken = collections.Counter(word for name in NAMES for word in name.split())
    assert set(taken.values()) == {1}
    assert all(1 <= len(name.split()) <= 2 and name == name.lower() for name in NAMES)


def test_articles():
    assert [with_article(n) for n in ("owl", "cat", "unicorn", "umbrella")] == [
        "an owl", "a cat", "a unicorn", "an umbrella"
    ]  # fmt: skip


def test_pack_is_the_one_the_script_built():
    contents = PACK_PATH.read_bytes()
    assert len(contents) < 12_000_000
    assert hashlib.sha256(contents).hexdigest() == PACK_SHA256


def test_pack_holds_every_thing_twice_and_most_animated():
    pack = load_pack()
    for stills in (pack.google, pack.fluent_3d):
        assert stills.shape == (120, 64, 64, 4)
        assert (stills[..., 3] > 128).mean(axis=(1, 2)).min() > 0.1  # nothing is nearly empty
    moving = np.abs(np.diff(pack.animated.astype(int), axis=1)).sum(axis=(1, 2, 3, 4))
    assert len(moving) == len(pack.animated_thing) >= 80
    assert moving.min() > 0
    assert (np.diff(pack.animated_thing) > 0).all()


def test_bad_packs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_pack"):
        load_pack(tmp_path / "absent.npz")
    np.savez_compressed(tmp_path / "short.npz", google=np.zeros((7, 64, 64, 4), np.uint8))
    with pytest.raises(ValueError, match="expected"):
        load_pack(tmp_path / "short.npz")


def test_a_changed_tarball_is_refused(tmp_path):
    (tmp_path / build_pack.GOOGLE.tarball).write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        build_pack.fetch(build_pack.GOOGLE, tmp_path)


def test_shrink_ignores_the_colour_of_transparent_pixels():
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[:, :130] = (200, 100, 50, 255)
    pixels[:, 130:] = (0, 255, 0, 0)
    small = build_pack.shrink(Image.fromarray(pixels))
    assert small.shape == (64, 64, 4)
    edge = small[:, 32]
    assert np.abs(edge[:, :3].astype(int) - (200, 100, 50)).max() <= 2
    assert 100 < edge[0, 3] < 150
    assert not small[:, 33:].any()
    # A picture that is not square is centred, not stretched.
    tall = build_pack.shrink(Image.fromarray(np.full((256, 128, 4), 255, np.uint8)))
    assert (tall[..., 3] > 0).any(axis=0).sum() == 32


def test_animations_are_sampled_evenly_in_time():
    # Nine grey levels; the first lasts as long as the other eight together.
    frames = [Image.new("RGBA", (64, 64), (25 * level,) * 3 + (255,)) for level in range(9)]
    file = io.BytesIO()
    rest, times = frames[1:], [80] + [10] * 8
    frames[0].save(file, "WEBP", save_all=True, append_images=rest, duration=times, lossless=True)
    sampled = build_pack.sample_animation(file.getvalue())
    assert sampled[:, 5, 5, 0].tolist() == [0, 0, 0, 0, 25, 75, 125, 175]
    still = io.BytesIO()
    frames[0].save(still, "WEBP")
    assert build_pack.sample_animation(still.getvalue()) is None


# Scenes and their pixels


def clip_and_background(scene, frames=8, size=37):
    artwork = compose.load_artwork("google")
    return (
        compose.render(scene, artwork, frames, size),
        compose.render_background(scene.background, size),
    )


def measure(scene):
    """Returns the centroid (x, y) [T,2] and the weight [T] of what is not black behind black."""
    black = dataclasses.replace(scene, background=Background("plain", (0, 0, 0), (0, 0, 0)))
    clip, _ = clip_and_background(black)
    weight = clip.astype(float).sum(axis=-1)
    area = weight.sum(axis=(1, 2))
    at = np.arange(clip.shape[1])
    x = (weight * at[None, None, :]).sum(axis=(1, 2)) / area
    y = (weight * at[None, :, None]).sum(axis=(1, 2)) / area
    return np.stack([x, y], axis=1), area


def scenes_of(motion, count=24, style=ALONE):
    for seed in range(count):
        yield sample_scene(np.random.default_rng(seed), NAMES[seed * 5 % 120], motion, style)


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_directions_move_that_way_at_constant_speed(motion):
    way = np.array(DIRECTIONS[motion])
    # Wholly inside the canvas, or what leaves it would shift the centroid.
    inside = {"size": 0.4, "travel": 0.4, "start": tuple(0.5 - 0.2 * way)}
    for scene in scenes_of(motion):
        steps = np.diff(measure(dataclasses.replace(scene, **inside))[0], axis=0)
        np.testing.assert_allclose(steps, np.tile(way * 0.4 * 37 / 7, (7, 1)), atol=0.08)


def test_growing_and_shrinking():
    for motion, sign in (("grows", 1), ("shrinks", -1)):
        for scene in scenes_of(motion):
            area = measure(dataclasses.replace(scene, start=(0.5, 0.5)))[1]
            assert (sign * np.diff(area) > 0).all()
            ratio = (area[-1] / area[0]) ** sign
            assert ratio == pytest.approx(scene.zoom**2, rel=0.1)


def test_blinking_shows_half_of_the_frames():
    for scene in scenes_of("blinks"):
        clip, background = clip_and_background(scene)
        shown = (clip != background).any(axis=(1, 2, 3))
        assert shown.sum() == 4
        assert (shown[: -scene.period] == shown[scene.period :]).all()
        assert (clip[shown] == clip[shown][0]).all()


def test_spinning_turns_about_the_centre():
    plain = Background("plain", (9, 9, 9), (0, 0, 0))
    for scene in scenes_of("spins"):
        assert 40 <= abs(scene.degrees) <= 70
        quarter = dataclasses.replace(scene, size=0.5, start=(0.5, 0.5), degrees=90.0, background=plain)
        clip, _ = clip_and_background(quarter)
        # Quarter turns, clockwise, are exact up to the resampling.
        turned = np.rot90(clip[0], k=-1).astype(int)
        assert np.abs(turned - clip[1]).mean() < 1.0
    assert {np.sign(scene.degrees) for scene in scenes_of("spins")} == {-1, 1}


def test_still_clips_are_still_and_hold_one_thing():
    for scene in scenes_of("stays still", style=SceneStyle(second_chance=1.0)):
        clip, background = clip_and_background(scene)
        assert not scene.second
        assert (clip == clip[0]).all()
        assert (clip[0] != background).any()


def test_things_stay_mostly_inside():
    size = 60
    for motion in MOTIONS:
        way = np.array(DIRECTIONS.get(motion, (0, 0)))
        for scene in scenes_of(motion, count=12):
            sprite, side = compose.load_artwork("google")[scene.thing], scene.size * size
            whole = compose.place(sprite, (size, size), side, 2 * size)[..., 3].sum(dtype=float)
            for share in (0.0, 1.0):
                centre = (np.array(scene.start) + way * scene.travel * share) * size
                inside = compose.place(sprite, centre, side, size)[..., 3].sum(dtype=float)
                assert inside / whole > 0.85, scene


def test_second_things_are_other_things_beside_the_main_one():
    style = SceneStyle(second_chance=1.0)
    seen = 0.0
    for scene in scenes_of("moves left", count=60, style=style):
        assert scene.second in NAMES
        assert scene.second != scene.thing
        alone = dataclasses.replace(scene, second="")
        differs = clip_and_background(scene)[0] != clip_and_background(alone)[0]
        seen += differs.any(axis=-1).mean() / scene.second_size**2
    assert seen / 60 > 0.4  # of its square, a picture fills about two thirds
    crowded = [bool(s.second) for s in scenes_of("spins", count=400, style=SceneStyle())]
    assert 0.15 < np.mean(crowded) < 0.35


def test_scenes_and_pixels_are_reproducible_and_depend_on_the_seed():
    def once(seed):
        scene = sample_scene(np.random.default_rng(seed), "fox", "spins")
        return scene, clip_and_background(scene)[0]

    (scene, clip), (again, same), (other, different) = once(3), once(3), once(5)
    assert scene == again
    assert (clip == same).all()
    assert scene != other
    assert (clip != different).any()


def test_mirroring_swaps_left_and_right():
    scene = sample_scene(np.random.default_rng(1), "snail", "stays still", ALONE)
    plain = Background("plain", (10, 20, 30), (0, 0, 0))
    scene = dataclasses.replace(scene, start=(0.5, 0.5), background=plain)
    clip, _ = clip_and_background(scene)
    mirrored, _ = clip_and_background(dataclasses.replace(scene, mirrored=True))
    assert np.abs(clip[:, :, ::-1].astype(int) - mirrored).max() <= 1


def test_every_kind_of_background_is_drawn_and_is_what_it_says():
    drawn = [sample_background(np.random.default_rng(seed), SceneStyle()) for seed in range(60)]
    assert {background.kind for background in drawn} == set(BACKGROUNDS)
    for background in drawn:
        pixels = compose.render_background(background, 31)
        assert pixels.shape == (31, 31, 3)
        assert pixels.dtype == np.uint8
        low = np.minimum(background.first, background.second) - 1
        high = np.maximum(background.first, background.second) + 1
        assert (low <= pixels).all()
        assert (pixels <= high).all()
        assert (pixels.std(axis=(0, 1)).max() < 1e-6) == (background.kind == "plain")


def test_clips_scale_with_the_canvas():
    """The same scene at twice the size, averaged down, is nearly the same clip."""
    for motion in MOTIONS:
        scene = next(scenes_of(motion))
        small = clip_and_background(scene, size=32)[0].astype(float)
        large = clip_and_background(scene, size=64)[0].astype(float)
        reduced = large.reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
        assert np.abs(small - reduced).mean() < 4


# Splits


def test_unseen_pairs_leave_every_thing_and_motion_to_training():
    unseen, seen = set(unseen_pairs()), set(seen_pairs())
    assert (len(unseen), len(seen), len(unseen & seen)) == (120, 960, 0)
    assert unseen | seen == {(name, motion) for name in NAMES for motion in MOTIONS}
    per_thing = collections.Counter(name for name, _ in unseen)
    assert set(per_thing) == set(NAMES)
    assert set(per_thing.values()) == {1}
    assert min(collections.Counter(motion for _, motion in seen).values()) >= 106


def test_the_choice_of_unseen_pairs_is_pinned():
    """Checkpoints outlive versions: a pair one was trained on must not become a test pair."""
    digest = hashlib.sha256(repr(unseen_pairs()).encode()).hexdigest()
    assert digest.startswith("36a0eedf06e94e45")


def test_enough_unseen_clips_differ_in_their_caption():
    """Retrieval is measured over 256 of them."""
    config = clips.ClipConfig()
    shown = set()
    for index, pair in enumerate(clips.split_pairs(config, "unseen_pairs")):
        rng = np.random.default_rng([config.seed, clips.SPLITS.index("unseen_pairs"), index])
        shown.add((*pair, sample_scene(rng, *pair, config.style).second))
    assert len(shown) >= 256


def test_spread_takes_evenly():
    pairs = tuple((str(number), "") for number in range(10))
    assert [int(n) for n, _ in spread(pairs, 5)] == [0, 2, 4, 6, 8]
    assert collections.Counter(spread(pairs, 23))[("0", "")] == 3
    assert len(spread(pairs, 23)) == 23


# The dataset


def test_the_number_of_processes_changes_nothing():
    alone = list(clips.make_clips(TINY, "unseen_pairs", workers=0))
    shared = list(clips.make_clips(TINY, "unseen_pairs", workers=2))
    assert [clip["id"] for clip in alone] == [clip["id"] for clip in shared]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_equal(one, other)


def test_pipes_that_cannot_grow_change_nothing(monkeypatch):
    """Linux lets a user without privileges have some sixty wide ones: a machine may have more cores."""
    alone = next(clips.make_clips(TINY, "unseen_pairs", workers=0))
    # Linux refuses more than this to anybody.
    monkeypatch.setattr(clips, "PIPE_BYTES", 2**30 + 2**29)
    shared = next(clips.make_clips(TINY, "unseen_pairs", workers=1))
    assert np.array_equal(alone["frames"], shared["frames"])


def test_rendering_processes_load_neither_jax_nor_tfds():
    program = (
        "import sys, jepa_jax.data.emoji_motion.clips\n"
        "print([m for m in ('jax', 'flax', 'grain', 'tensorflow_datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_stops_early_leaves_no_process_behind():
    started = clips.make_clips(TINY, "train", workers=2)
    assert next(started)["id"] == "train_000000"
    started.close()  # raises if a process cannot be ended


def test_style_reaches_the_pixels_of_the_processes():
    large = dataclasses.replace(TINY, style=SceneStyle(size=(0.9, 0.9)))
    one, other = (next(clips.make_clips(c, "validation", workers=1)) for c in (TINY, large))
    assert (one["frames"] != other["frames"]).any()


def test_configs_have_names_of_their_own_and_sane_counts():
    names = [config.name for config in EmojiMotion.BUILDER_CONFIGS]
    assert names == ["32px", "48px", "tiny"]
    other = make_config(clips.ClipConfig(seed=1)).name
    assert other.startswith("32px_")
    assert other != make_config(clips.ClipConfig(frames=16)).name
    with pytest.raises(ValueError, match="frames is 0"):
        clips.ClipConfig(frames=0)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji_motion")
    builder = tfds.builder("emoji_motion/tiny", data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return tfds.data_source("emoji_motion/tiny", data_dir=folder)


def test_tfds_reads_what_was_made(sources):
    assert set(sources) == set(clips.SPLITS)
    made = {clip["id"]: clip for clip in clips.make_clips(TINY, "validation", workers=0)}
    assert len(sources["validation"]) == len(made) == 64
    for record in sources["validation"]:
        clip = made.pop(record["id"].decode())
        np.testing.assert_array_equal(record["frames"], clip["frames"])
        assert record["frames"].shape == (4, 32, 32, 3)
        assert record["frames"].dtype == np.uint8
        for key, column in clip["pairs"].items():
            assert [text.decode() for text in record["pairs"][key]] == column
        for key in ("thing", "motion", "second"):
            assert record[key].decode() == clip[key]
    assert not made


def test_built_again_by_one_process_the_files_are_the_same_bytes(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "available_cores", lambda: 1)
    builder = EmojiMotion(config=make_config(TINY), data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    paths = sorted(path for path in builder.data_path.iterdir() if "array_record" in path.name)
    assert len(paths) >= len(clips.SPLITS)
    for path in paths:
        first = pathlib.Path(sources["train"].dataset_info.data_dir) / path.name
        assert path.read_bytes() == first.read_bytes(), path.name


def test_no_unseen_pair_is_trained_on(sources):
    def shown(split):
        return {(r["thing"].decode(), r["motion"].decode()) for r in sources[split]}

    assert shown("train") == set(seen_pairs())
    assert shown("unseen_pairs") == set(unseen_pairs())
    assert shown("validation") | shown("unseen_art") <= set(seen_pairs())
    assert {motion for _, motion in shown("animations")} == {""}
    assert len(shown("animations")) == len(load_pack().animated_thing)


def test_the_data_needs_no_tensorflow(sources):
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 7), (None, 7)],
)
def test_a_container_s_share_of_the_processor_bounds_the_renderers(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(clips.os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert clips.available_cores(tmp_path / "cpu.max") == cores
