"""A checkpoint is whole or it is not used; a failing disk does not stop training."""

import contextlib
import json
import logging
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import AxisType

from jepa_jax.checkpoint import Checkpointer, DamagedCheckpointError, fingerprint
from jepa_jax.config import CheckpointConfig
from jepa_jax.sharding import make_mesh, parameter_shardings


def items(seed: int) -> dict:
    """Arrays of several types, one of them large enough for a file of its own."""
    key = jax.random.key(seed)
    return {
        "params": {"kernel": jax.random.normal(key, (257, 128)), "scale": jnp.full((3,), seed, jnp.bfloat16)},
        "training": {"step": jnp.asarray(seed), "key": key, "flag": jnp.asarray([True, False])},
    }


def template(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(a, b) -> bool:
    return all(bool(jnp.all(x == y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints 1, 2, 3 and the Checkpointer's arguments."""
    config = CheckpointConfig(keep=3, best_metric="loss")
    checkpointer = Checkpointer(tmp_path / "checkpoints", config)
    for step in (1, 2, 3):
        checkpointer.save(step, items(step), {"next_index": step}, {"loss": float(step)})
    checkpointer.close()
    return tmp_path / "checkpoints", config


def test_restores_what_was_saved(saved):
    checkpointer = Checkpointer(*saved)
    step, found, data = checkpointer.restore_latest(template(items(0)))
    assert step == 3
    assert data == {"next_index": 3}
    assert equal(found, items(3))
    checkpointer.close()


def test_a_run_that_is_only_read_is_left_as_it_is(saved):
    """What a save under way has written so far above all: another process trains there."""
    directory, config = saved
    unfinished = directory / "4.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    checkpointer = Checkpointer(directory, config, read_only=True)
    checkpointer.restore_latest(template(items(0)))
    checkpointer.close()
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    unfinished.rmdir()
    nothing = Checkpointer(directory / "gone", config, read_only=True)
    assert nothing.restore_latest(template(items(0))) is None
    nothing.close()
    assert not (directory / "gone").exists()


def test_restores_one_item_alone(saved):
    checkpointer = Checkpointer(*saved, read_only=True)
    found, _ = checkpointer.restore({"params": template(items(0))["params"]}, 2)
    assert list(found) == ["params"]
    assert equal(found["params"], items(2)["params"])
    checkpointer.close()


@pytest.mark.parametrize("restarts", [(), (3,), (2, 4, 5)])
@pytest.mark.parametrize("metric", ["recall_at_1", "loss"])
def test_keeps_the_latest_and_the_best(metric, restarts, tmp_path):
    """However often the run is stopped and goes on."""
    open_it = lambda: Checkpointer(tmp_path / "c", CheckpointConfig(keep=2, best_metric=metric))
    checkpointer = open_it()
    for step, recall in enumerate((0.1, 0.9, 0.3, 0.2, 0.4, 0.3), start=1):
        if step in restarts:
            checkpointer.close()
            checkpointer = open_it()
        checkpointer.save(step, items(step), {}, {"recall_at_1": recall, "loss": 1.0 - recall})
    checkpointer.wait()
    assert checkpointer.steps() == [2, 5, 6]
    checkpointer.close()


def test_a_checkpoint_that_was_not_scored_is_not_the_best(tmp_path):
    for step, metrics in ((1, {"recall_at_1": 0.1}), (2, {}), (3, {}), (4, {"recall_at_1": 0.0})):
        checkpointer = Checkpointer(tmp_path / "c", CheckpointConfig(keep=1, best_metric="recall_at_1"))
        checkpointer.save(step, items(step), {}, metrics)
        checkpointer.close()
        assert checkpointer.steps() == sorted({1, step})


def damage_by_flipping(step_dir: pathlib.Path) -> None:
    file = largest_file(step_dir)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x01
    file.write_bytes(data)


def damage_by_cutting(step_dir: pathlib.Path) -> None:
    file = largest_file(step_dir)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_by_deleting(step_dir: pathlib.Path) -> None:
    largest_file(step_dir).unlink()


def damage_by_emptying(step_dir: pathlib.Path) -> None:
    shutil.rmtree(step_dir)
    step_dir.mkdir()


def damage_by_another_form(step_dir: pathlib.Path) -> None:
    """One flipped bit in the name of what the checksums are of."""
    file = step_dir / "fingerprint/metadata"
    file.write_text(file.read_text().replace('"params"', '"parals"'))


def damage_by_another_position(step_dir: pathlib.Path) -> None:
    """One flipped bit in a digit, or the file of another run."""
    file = step_dir / "data/metadata"
    file.write_text(file.read_text().replace("3", "7"))


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_flipping,
        damage_by_cutting,
        damage_by_deleting,
        damage_by_emptying,
        damage_by_another_form,
        damage_by_another_position,
    ],
)
def test_damage_falls_back_to_the_last_whole_one_and_says_so(saved, damage, caplog):
    directory, config = saved
    damage(directory / "3")
    checkpointer = Checkpointer(directory, config)
    with caplog.at_level(logging.ERROR):
        step, found, data = checkpointer.restore_latest(template(items(0)))
    assert step == 2
    assert data == {"next_index": 2}
    assert equal(found, items(2))
    assert "3 is damaged" in caplog.text
    assert (directory.parent / "damaged-3").is_dir()
    # The step that was set aside can be saved again.
    checkpointer.save(3, items(3), {"next_index": 3}, {"loss": 3.0})
    checkpointer.close()
    again = Checkpointer(directory, config)
    assert again.restore_latest(template(items(0)))[0] == 3
    again.close()


@pytest.mark.parametrize("content", [b"", b'{"loss": 1', b"\xff", b"[]", b'{"lors": 3.0}', b'{"loss": "3"}'])
def test_without_its_metrics_a_checkpoint_is_whole_but_never_the_best(saved, content, caplog):
    directory, config = saved
    (directory / "1/metrics/metrics").write_bytes(content)  # the best until now
    reader = Checkpointer(directory, config, read_only=True)
    assert equal(reader.restore(template(items(0)), 1)[0], items(1))
    reader.close()
    assert (directory / "1/metrics/metrics").read_bytes() == content
    checkpointer = Checkpointer(directory, config)
    assert "1/metrics/metrics is damaged" in caplog.text
    for step in (4, 5):
        checkpointer.save(step, items(step), {"next_index": step}, {"loss": float(step)})
    checkpointer.close()
    assert (checkpointer.failed_saves, checkpointer.steps()) == (0, [2, 3, 4, 5])


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_of_its_position(saved):
    directory, config = saved
    file = directory / "3/fingerprint/metadata"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "data"}))
    checkpointer = Checkpointer(directory, config)
    assert checkpointer.restore_latest(template(items(0)))[0] == 3
    checkpointer.close()


def test_nothing_whole_is_an_error_not_a_fresh_start(saved):
    directory, config = saved
    for step in (1, 2, 3):
        damage_by_cutting(directory / str(step))
    for _ in range(2):  # a cluster starts it again
        checkpointer = Checkpointer(directory, config)
        with pytest.raises(DamagedCheckpointError, match="none of the checkpoints"):
            checkpointer.restore_latest(template(items(0)))
        checkpointer.close()


def test_reading_moves_nothing(saved):
    directory, config = saved
    damage_by_cutting(directory / "3")
    checkpointer = Checkpointer(directory, config, read_only=True)
    assert checkpointer.restore_latest(template(items(0)))[0] == 2
    assert (directory / "3").is_dir()
    checkpointer.close()


def test_a_run_that_goes_on_while_it_is_read_has_lost_nothing(tmp_path, monkeypatch, caplog):
    """It may keep one checkpoint, and put the next in its place before that one is read."""
    config = CheckpointConfig(keep=1, best_metric="loss")
    with contextlib.closing(Checkpointer(tmp_path, config)) as run:
        save = lambda step: run.save(step, items(step), {"next_index": step}, {"loss": -float(step)})
        save(1)
        run.wait()
        restore, asked = Checkpointer.restore, []

        def late(self, template, step):
            asked.append(step)
            if len(asked) < 3:
                save(step + 1)
                run.wait()
            return restore(self, template, step)

        monkeypatch.setattr(Checkpointer, "restore", late)
        with contextlib.closing(Checkpointer(tmp_path, config, read_only=True)) as reader:
            step, found, _ = reader.restore_latest(template(items(0)))
    assert (step, asked) == (3, [1, 2, 3])
    assert equal(found, items(3))
    assert "damaged" not in caplog.text


def test_no_checkpoint_yet_is_none(tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", CheckpointConfig())
    assert checkpointer.restore_latest(template(items(0))) is None
    checkpointer.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, which the first checkpoint nearly fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_save_that_failed_twice_over_is_closed_all_the_same(tmp_path, monkeypatch):
    """Orbax's checkpointer keeps the second error and raises it, once, when it is closed."""
    checkpointer = Checkpointer(tmp_path / "c", CheckpointConfig(best_metric="loss"))
    checkpointer.save(1, items(0), {}, {"loss": 1.0})
    close, errors = checkpointer._manager.close, [OSError("the disk is full")]

    def close_with_errors():
        if errors:
            raise errors.pop()
        close()

    monkeypatch.setattr(checkpointer._manager, "close", close_with_errors)
    checkpointer.close()
    assert not errors


def test_what_is_left_of_a_failed_save_and_cannot_be_removed_ends_no_training(tmp_path, monkeypatch, caplog):
    """As while other threads of the same save still write there."""
    checkpointer = Checkpointer(tmp_path / "c", CheckpointConfig(best_metric="loss"))

    def save(*_, **__):
        (tmp_path / "c" / "1.orbax-checkpoint-tmp").mkdir()
        raise OSError("the disk is full")

    def rmtree(*_, **__):
        raise OSError("Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer._manager, "save", save)
        patch.setattr(type(checkpointer._directory), "rmtree", rmtree)
        checkpointer.save(1, items(0), {}, {"loss": 1.0})
    assert "saving step 1 failed, training goes on (last good checkpoint: none)" in caplog.text
    checkpointer.save(2, items(0), {}, {"loss": 1.0})
    checkpointer.close()
    assert (checkpointer.failed_saves, checkpointer.steps()) == (1, [2])
    assert [folder.name for folder in (tmp_path / "c").iterdir()] == ["2"]


def test_what_a_killed_save_left_is_removed_and_what_cannot_be_is_no_hindrance(tmp_path, monkeypatch):
    """As a file that NFS still holds: Orbax made each save fail for it."""
    folder = tmp_path / "c"
    config = CheckpointConfig(best_metric="loss")
    for number in (1, 2):
        (folder / f"{number}.orbax-checkpoint-tmp/params").mkdir(parents=True)
    rmtree = type(epath.Path(folder)).rmtree

    def held(path, *arguments, **options):
        if path.name.startswith("2"):
            raise OSError("Directory not empty")
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(type(epath.Path(folder)), "rmtree", held)
    checkpointer = Checkpointer(folder, config)
    assert [file.name for file in folder.iterdir()] == ["2.orbax-checkpoint-tmp"]
    checkpointer.save(3, items(0), {}, {"loss": 1.0})
    checkpointer.close()
    assert (checkpointer.failed_saves, checkpointer.steps()) == (0, [3])


def test_a_full_disk_is_reported_and_the_last_good_checkpoint_stays(small_disk, caplog):
    big = {
        "params": {"kernel": jax.random.normal(jax.random.key(0), (300, 1000))},
        "training": {"step": jnp.asarray(1)},
    }
    checkpointer = Checkpointer(small_disk / "c", CheckpointConfig(keep=5, best_metric="loss"))
    with caplog.at_level(logging.ERROR):
        for step in (1, 2, 3):
            checkpointer.save(step, big, {"next_index": step}, {"loss": 1.0})
        checkpointer.wait()
    assert checkpointer.failed_saves == 2
    assert "saving step 2 failed, training goes on (last good checkpoint: step 1)" in caplog.text
    assert checkpointer.steps() == [1]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    checkpointer.save(4, big, {"next_index": 4}, {"loss": 1.0})
    checkpointer.close()
    again = Checkpointer(small_disk / "c", CheckpointConfig(keep=5, best_metric="loss"))
    # Not sooner: a thread of Orbax may write for a while after its save has failed.
    left = sorted(f.name for f in (small_disk / "c").iterdir())
    assert left == ["1", "4"], "half-written files are left behind"
    step, found, _ = again.restore_latest({"params": template(big["params"])})
    assert step == 4
    assert equal(found["params"], big["params"])
    again.close()


def test_fingerprint_does_not_depend_on_the_mesh():
    tree = items(5)["params"]
    split = jax.device_put(tree, parameter_shardings(tree, make_mesh(4)))
    assert not split["kernel"].sharding.is_fully_replicated
    np.testing.assert_array_equal(fingerprint(split), fingerprint(tree))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_restore_does_not_depend_on_the_mesh_in_context(saved, kind):
    """A program that has set a mesh of its own loads a model as well."""
    expected = items(3)["params"]
    checkpointer = Checkpointer(*saved, read_only=True)
    with contextlib.closing(checkpointer), jax.set_mesh(jax.make_mesh((4,), ("mine",), axis_types=(kind,))):
        _, found, _ = checkpointer.restore_latest({"params": template(expected)})
    assert equal(found["params"], expected)


def test_fingerprint_sees_a_swap_and_a_single_bit():
    x = jnp.arange(1.0, 12.0)
    swapped = x.at[jnp.array([2, 7])].set(x[jnp.array([7, 2])])
    bit = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.uint32) ^ 1, jnp.float32)
    checksums = {int(fingerprint({"x": y})[0]) for y in (x, swapped, x.at[3].set(bit[3]))}
    assert len(checksums) == 3
