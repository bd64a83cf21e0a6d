"""The run as a whole, in processes of its own: kills, resumes, mistakes, what it leaves behind."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from etils import epath

from jepa_jax import flags, train
from tests.processes import environment

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / "tests" / "tiny_config.py"


def start(workdir: pathlib.Path, data_dir: pathlib.Path, *arguments: str) -> subprocess.Popen:
    """A training process of the tiny config."""
    command = [sys.executable, "-m", "jepa_jax.train", f"--config={CONFIG}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [*command, f"--config.data.data_dir={data_dir}", *arguments],
        cwd=ROOT,
        env=environment(2, data_dir / "compiled"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train_here(workdir: pathlib.Path, data_dir: pathlib.Path, *arguments: str) -> int:
    """The exit status of the tiny config's training in this process: what is refused is so at once."""
    given = [f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data.data_dir={data_dir}"]
    cache = jax.config.jax_compilation_cache_dir
    try:
        return flags.run(train.main, [*given, *arguments])
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)


@pytest.mark.parametrize(
    ("workdir", "set_before", "of_gpus"),
    [("/runs/one", None, True), ("gs://bucket/one", None, False), ("gs://bucket/one", "/mine", True)],
)
def test_xla_keeps_nothing_of_its_own_in_a_bucket(workdir, set_before, of_gpus):
    """With a place beyond its file systems it would compile nothing for a GPU."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(names[0], set_before)
        train.keep_programs(epath.Path(workdir))
        cache = set_before or f"{workdir}/compilation_cache"
        assert jax.config.jax_compilation_cache_dir == cache
        kept = jax.config.jax_persistent_cache_enable_xla_caches
        assert kept == (before[names[1]] if of_gpus else "none")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def losses(workdir: pathlib.Path) -> list[tuple]:
    """(step, loss, grad_norm, ...) of every line that training wrote."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "alignment", "uniformity", "accuracy", "temperature", "grad_norm")
    return [tuple(row[name] for name in names) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def whole_run(data_dir, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    output = finish(start(workdir, data_dir))
    return workdir, output


def wait_for(process: subprocess.Popen, condition) -> None:
    """Until the condition holds or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(0.001)


def test_a_run_leaves_what_it_promises(whole_run):
    workdir, _ = whole_run
    assert json.loads((workdir / "config.json").read_text())["name"] == "tiny"
    assert [row[0] for row in losses(workdir)] == list(range(1, 25))
    assert (workdir / "loss.png").stat().st_size > 1000
    assert list((workdir / "tensorboard").glob("events*"))
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())[-1] == 24
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"samples_per_second", "data_wait", "learning_rate"} <= row.keys()


def test_another_seed_gives_another_run_and_a_second_training_in_its_place_is_refused(
    whole_run, data_dir, tmp_path, capsys
):
    """The same seed's same numbers are in the tests of kills, from the first step on. Two trainings would
    move each other's half-written checkpoints and write their lines into one metrics.jsonl."""
    workdir = tmp_path / "run"
    process = start(workdir, data_dir, "--config.seed=1")
    try:
        wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and losses(workdir))
        process.send_signal(signal.SIGSTOP)  # at work, however fast it is
        assert process.poll() is None
        assert train_here(workdir, data_dir, "--config.seed=1") == 2
    finally:
        process.kill()
        process.wait()
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: another training is at work in {workdir}" in error
    assert losses(workdir)[0] != losses(whole_run[0])[0]


def test_killed_at_any_moment_it_ends_with_the_same_numbers(whole_run, data_dir, tmp_path):
    """SIGKILL before the first save, in the middle of saves, and at random; then to the end."""
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"
    kills = []

    def saving():
        return checkpoints.exists() and any("tmp" in p.name for p in checkpoints.iterdir())

    def lines(count):
        file = workdir / "metrics.jsonl"
        return file.exists() and file.read_text().count("\n") >= count

    rng = random.Random(0)
    moments = [lambda: lines(2), saving, lambda: lines(13), saving]
    for moment in moments:
        process = start(workdir, data_dir)
        wait_for(process, moment)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.wait()
        kills.append(process.returncode)
    assert kills.count(-signal.SIGKILL) == len(moments), kills
    output = finish(start(workdir, data_dir))
    assert "resuming from step" in output
    assert losses(workdir) == losses(whole_run[0])


def test_sigterm_saves_and_the_same_command_goes_on(whole_run, data_dir, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, data_dir)
    wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and len(losses(workdir)) >= 7)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    stopped = len(losses(workdir))
    assert f"SIGTERM: saved step {stopped}" in output
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    assert f"resuming from step {stopped} of 24" in finish(start(workdir, data_dir))
    assert losses(workdir) == losses(whole_run[0])


def test_a_finished_run_trains_no_further_and_what_it_started_from_may_be_gone(whole_run, data_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run[0], workdir)
    file = workdir / "config.json"
    file.write_text(file.read_text().replace('"model": null', '"model": "/nowhere"'))
    assert "resuming from step 24 of 24" in finish(start(workdir, data_dir, "--config.init.model=/nowhere"))
    assert losses(workdir) == losses(whole_run[0])


def test_a_work_directory_of_another_config_is_refused(whole_run, data_dir, capsys):
    workdir, _ = whole_run
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    assert train_here(workdir, data_dir, "--config.optim.learning_rate=0.5") == 2
    error = capsys.readouterr().err
    assert "another config (optim.learning_rate is 0.003 there, 0.5 now): name another --workdir\n" in error
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_a_work_directory_where_nothing_was_saved_may_be_removed(whole_run, data_dir, tmp_path, capsys):
    """As after a first try that the machine's memory ended."""
    shutil.copy(whole_run[0] / "config.json", tmp_path)
    assert train_here(tmp_path, data_dir, "--config.optim.learning_rate=0.5") == 2
    assert "remove this one: the run had saved nothing yet" in capsys.readouterr().err


def test_a_single_pair_has_no_negatives(data_dir, tmp_path, capsys):
    """Its loss is 0, and its gradient too: nothing would be trained."""
    assert train_here(tmp_path / "run", data_dir, "--config.batch_size=1", "--config.fsdp=1") == 2
    assert "error: loss.objective='info_nce' tells a pair from others" in capsys.readouterr().err


def test_a_mistake_is_one_sentence_and_status_2(data_dir, tmp_path):
    process = start(tmp_path / "run", data_dir, "--config.optim.learning_rat=1")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "did you mean learning_rate?" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--config.batch_size=9", "batch_size=9 is not a multiple of fsdp=2"),
        ("--config.batch_size=9 --config.fsdp=1", "batch_size=9 is not a multiple of the 8 devices"),
        ("--config.fsdp=3 --config.batch_size=24", "fsdp=3 does not divide the 8 devices"),
        ("--config.data.split=trian", "split 'trian': no such split: it has train"),
        ("--config.eval.splits=('trian',)", "split 'trian': no such split: it has train"),
        ("--config.data.dataset=no_such_dataset", "no such dataset"),
        ("--config.data.query_tokenizer=/nowhere", "tokenizer '/nowhere' cannot be loaded"),
        ("--config.model.predictor.vocab_size=7", "vocab_size=7: raise it"),
        ("--config.data.pair_weights=(('poem',1.0),)", "gives no odds to any"),
    ],
)
def test_a_mistake_leaves_nothing_written(data_dir, tmp_path, capsys, argument, sentence):
    assert train_here(tmp_path / "run", data_dir, *argument.split()) == 2
    error = capsys.readouterr().err
    assert sentence in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(data_dir, tmp_path):
    workdir = tmp_path / "run"
    changes = ("optim.learning_rate=1e38", "optim.warmup_steps=12", "data.length_buckets=((16,16),)")
    process = start(workdir, data_dir, *(f"--config.{change}" for change in changes))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 1, output
    assert "is nan at step" in output
    assert "Traceback" not in output
    step = int(output.split("at step ")[1].split(";")[0])
    kept = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    assert all(k < step for k in kept)
