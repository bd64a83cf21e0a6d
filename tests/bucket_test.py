"""Work directories and weights in a bucket, with the libraries that speak to Google's and a server here."""

import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import jepa_jax
from jepa_jax import parts
from jepa_jax.checkpoint import Checkpointer
from jepa_jax.config import CheckpointConfig, DatasetConfig
from jepa_jax.data.sources.tfds import builder_by_name
from jepa_jax.data.tokenizer import SHIPPED, Tokenizer
from jepa_jax.evaluation.report import write_json
from jepa_jax.figures import save_figure
from jepa_jax.places import place
from tests import distributed_test as hosts
from tests import tiny
from tests.checkpoint_test import equal, items, template
from tests.parts_test import weights, write
from tests.processes import free_port

DEVICES = 4


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket, for this process and those that it starts."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bucket", str(port)]
    # Its pipe breaks whenever a client has heard enough, and it says so each time.
    server = subprocess.Popen(
        command, cwd=hosts.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout.readline() == "up\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{port}")
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://localhost:{port}")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        # Whether it is hierarchical is asked of another service.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield place("gs://bucket")
    server.kill()
    server.wait()


def copied(folder, to: epath.Path) -> epath.Path:
    for file in pathlib.Path(folder).rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder)).write_bytes(file.read_bytes())
    return to


@pytest.fixture(scope="module")
def runs(bucket, data_dir, tmp_path_factory):
    """One on a disk, the same in the bucket (two hosts, killed after a checkpoint, then one host), and the
    step that this went on from."""
    place = tmp_path_factory.mktemp("runs")
    alone, workdir = place / "alone", bucket / "runs/one"
    hosts.succeed(alone, data_dir, 1, DEVICES)
    copied(data_dir / "emoji_motion", bucket / "data/emoji_motion")
    processes = hosts.start(place / "host", data_dir, 2, DEVICES // 2, *there(workdir))
    hosts.wait_for(processes, (workdir / "checkpoints/4/commit_success.txt").exists)
    for process in processes:
        process.kill()
    hosts.finish(processes, place / "host")
    output = hosts.succeed(place / "host", data_dir, 1, DEVICES, *there(workdir))[0]
    return alone, workdir, int(re.search(r"resuming from step (\d) of", output)[1])


def there(workdir: epath.Path) -> list[str]:
    """Flags of a run that has nothing on the disk."""
    return [f"--workdir={workdir}", f"--config.data.data_dir={workdir.parent.parent}/data"]


def test_a_run_in_a_bucket_is_that_on_a_disk(runs, tmp_path):
    alone, workdir, resumed = runs
    np.testing.assert_allclose(hosts.losses(workdir), hosts.losses(alone), rtol=1e-5)
    for folder in ("", "checkpoints"):
        names = [{path.name for path in (run / folder).iterdir()} for run in (alone, workdir)]
        assert names[0] == names[1], folder
    # Every start has its own file of events.
    events = max((workdir / "tensorboard").iterdir(), key=lambda file: file.name)
    (tmp_path / "events").write_bytes(events.read_bytes())
    found = [e.step for e in EventFileLoader(str(tmp_path / "events")).Load() if e.HasField("summary")]
    assert sorted(set(found)) == list(range(resumed + 1, hosts.STEPS + 1))


def test_what_evaluation_leaves_is_written_there(bucket):
    file = write_json(bucket / "runs/evaluated", "task", {"metric": {"value": 1.0}})
    assert '"value": 1.0' in file.read_text()
    write_json(bucket / "runs/evaluated", "task", {})
    assert file.read_text() == "{}\n"
    save_figure(Figure(), bucket / "runs/evaluated/picture.png")
    assert (bucket / "runs/evaluated/picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_is_loaded_from_where_it_is(runs):
    alone, workdir, _ = runs
    texts = ["a red bird", "a dog spins"]
    here, there = (jepa_jax.load(run).embed_text(texts) for run in (alone, workdir))
    np.testing.assert_allclose(there, here, atol=1e-4)


def test_a_damaged_checkpoint_is_set_aside(bucket):
    folder, config = bucket / "runs/damaged/checkpoints", CheckpointConfig(best_metric="loss")
    checkpointer = Checkpointer(folder, config)
    for step in (1, 2):
        checkpointer.save(step, items(step), {"next_index": step}, {"loss": 1.0})
    checkpointer.close()
    damaged = next((folder / "2/params/d").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-10])
    checkpointer = Checkpointer(folder, config)
    step, found, data = checkpointer.restore_latest(template(items(0)))
    assert (step, data) == (1, {"next_index": 1})
    assert equal(found, items(1))
    assert checkpointer.steps() == [1]
    checkpointer.close()
    assert (folder.parent / "damaged-2/params").is_dir()


def test_converted_weights_and_their_tokenizer(bucket, tmp_path):
    section = tiny.llama()
    arrays = weights(section, "predictor")
    here = write(tmp_path / "predictor", arrays, "predictor", section)
    shutil.copytree(SHIPPED["emoji_motion"], here / "tokenizer")
    there = copied(here, bucket / "weights/predictor")
    read = parts.open_part(there).read()
    assert read.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(read[name], x)
    tokenizer = Tokenizer(str(there / "tokenizer"))
    assert tokenizer("a red bird", 8)[0].tolist() == Tokenizer("emoji_motion")("a red bird", 8)[0].tolist()


def test_a_dataset_is_not_built_there(bucket):
    dataset = DatasetConfig(dataset="emoji_motion/tiny", data_dir=str(bucket / "empty"))
    with pytest.raises(ValueError, match=r"is not in gs://bucket/empty, .* built on a disk alone"):
        builder_by_name(dataset)


def test_a_bucket_that_is_not_there_is_one_sentence(bucket, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jepa_jax.train", "--workdir=gs://another/run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
