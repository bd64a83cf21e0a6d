"""Signals while training: what is saved, what is said, what is returned. Nothing here computes."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from unittest import mock

import jax
import numpy as np
import pytest

from jepa_jax import distributed, flags, inference, loop, train, train_decoder
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.loader import WorkerEndedError
from jepa_jax.metrics import NotFiniteError
from jepa_jax.sharding import make_mesh
from tests.tiny_config import config as run_config
from tests.tiny_decoder import config

LAST = config.steps


class Batches:
    def __iter__(self):
        return self

    def __next__(self):
        return {}

    def get_state(self):
        return {"step": 0}

    def close(self):
        pass


class Checkpoints:
    """Keeps the numbers of steps; `disk` is the disk's part in the last wait."""

    def __init__(self, disk=lambda saved: saved):
        self._saved, self._disk = [], disk

    def save(self, step, items, data, metrics):
        self._saved.append(step)

    def wait(self):
        self._saved = self._disk(self._saved)

    def steps(self):
        return self._saved


def run(
    tmp_path,
    monkeypatch,
    checkpoints: Checkpoints,
    *,
    signal_in: int | None = None,
    number=signal.SIGTERM,
    score=None,
):
    """`run_steps` with the state being the step; a signal comes while one of them is computed."""
    monkeypatch.setattr(loop, "to_items", lambda state: {})

    def step_fn(state, batch):
        if state + 1 == signal_in:
            os.kill(os.getpid(), number)
        return state + 1, {"loss": np.float32(1.0), "grad_norm": np.float32(1.0)}

    mesh = make_mesh(devices=jax.devices()[:1])
    places = {"mesh": mesh, "checkpointer": checkpoints, "bad": BadRecords(0.0), "identity": {}}
    return loop.run_steps(step_fn, 0, Batches(), 0, config, tmp_path, score=score, **places)


@pytest.mark.parametrize("step", [LAST - 1, LAST])
def test_a_signal_stops_the_run_with_its_step_saved_be_it_the_last(step, tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints()
    assert run(tmp_path, monkeypatch, checkpoints, signal_in=step) == (step, signal.SIGTERM)
    assert checkpoints.steps()[-1] == step
    assert f"SIGTERM: saved step {step}, stopping" in capsys.readouterr().out


def test_a_signal_while_the_last_checkpoint_is_written_stops_the_run(tmp_path, monkeypatch):
    def disk(saved):
        os.kill(os.getpid(), signal.SIGTERM)
        return saved

    assert run(tmp_path, monkeypatch, Checkpoints(disk)) == (LAST, signal.SIGTERM)
    assert run(tmp_path, monkeypatch, Checkpoints()) == (LAST, None)


@pytest.mark.parametrize(("step", "scored"), [(5, [3]), (6, [3, 6]), (LAST, [*range(3, LAST, 3), LAST])])
def test_a_signal_does_not_wait_for_a_score(step, scored, tmp_path, monkeypatch):
    found = []
    score = lambda state: found.append(state) or {"recall_at_1": 0.5}
    run(tmp_path, monkeypatch, checkpoints := Checkpoints(), signal_in=step, score=score)
    assert found == scored
    assert checkpoints.steps()[-1] == step


def test_a_step_that_could_not_be_saved_is_not_said_to_be(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch, Checkpoints(lambda saved: []), signal_in=5) == (5, signal.SIGTERM)
    assert "SIGTERM: step 5 could not be saved, stopping" in capsys.readouterr().out


def test_batches_that_wait_for_a_device_are_not_told_as_late_data(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "shard_global_batch", lambda batch, mesh: time.sleep(0.01) or batch)
    run(tmp_path, monkeypatch, Checkpoints())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.median([row["data_wait"] for row in rows]) < 0.3


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_stops_the_run_but_under_nohup(ignored, tmp_path, monkeypatch, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        checkpoints = Checkpoints()
        stopped = run(tmp_path, monkeypatch, checkpoints, signal_in=5, number=signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stopped == ((LAST, None) if ignored else (5, signal.SIGHUP))
    assert ("SIGHUP: saved step 5, stopping" in capsys.readouterr().out) != ignored


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_of_several_hosts_a_closed_terminal_and_ctrl_c_are_told_as_sigterm(number, monkeypatch):
    """JAX takes SIGTERM there, and tells the others. A second Ctrl-C is one."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    told = []
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: told.append(number))}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with loop.StopFlag():
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            assert told == [signal.SIGTERM]
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert told == [signal.SIGTERM]


def test_a_signal_sent_twice_at_once_is_one():
    """As `timeout` does, to the process and to its group: the second must not kill a run that saves."""
    process, ready = os.getpid(), []

    def send_again():
        ready.append(signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
        if all(ready):  # or it would end the tests
            os.kill(process, signal.SIGTERM)

    with loop.StopFlag() as stop:
        timer = threading.Timer(0.05, send_again)
        timer.start()
        os.kill(process, signal.SIGTERM)
        timer.join()
        time.sleep(0.01)
        assert ready == [True]
        assert stop.look()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "one that comes later ends it at once"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_of_the_other_kind_ends_a_run_at_once_too(first):
    with loop.StopFlag() as stop:
        os.kill(os.getpid(), first)
        assert stop.look()
        for number in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(number) == signal.SIG_DFL
        assert stop.signal == first


def test_nobody_to_read_what_is_said_ends_no_run(tmp_path, monkeypatch):
    """Ctrl-C in `train | tee LOG` ends tee as well."""
    reader, writer = os.pipe()
    os.close(reader)
    gone = os.fdopen(writer, "w", buffering=1)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", gone)
        found = run(tmp_path, monkeypatch, Checkpoints(), signal_in=3)
        os.dup2(1, writer)  # or the flush of its closing would fail
    gone.close()
    assert found == (3, signal.SIGTERM)


def test_the_memory_of_an_evaluation_may_change_and_its_clips_may_not(tmp_path):
    (tmp_path / "config.json").write_text(flags.config_to_json(run_config))
    smaller = dataclasses.replace(run_config, eval=dataclasses.replace(run_config.eval, batch_size=3))
    loop.check_workdir(smaller, tmp_path, train._FREE_TO_CHANGE)
    fewer = dataclasses.replace(run_config, eval=dataclasses.replace(run_config.eval, clips=3))
    with pytest.raises(flags.UsageError, match=r"eval\.clips is 1024 there, 3 now"):
        loop.check_workdir(fewer, tmp_path, train._FREE_TO_CHANGE)


def test_a_run_whose_checkpoints_could_not_be_read_does_not_begin(tmp_path, capsys):
    folder = tmp_path / "lr[1e-4]"
    command = ["--config=tests/tiny_config.py", f"--workdir={folder / 'run'}"]
    assert flags.run(train.main, command) == 2
    assert "has [ in its path" in capsys.readouterr().err
    assert not folder.exists()


def test_the_second_host_of_a_run_that_goes_on_names_the_data_as_it_is_there(tmp_path, monkeypatch):
    with loop.take_workdir(run_config, tmp_path):
        pass
    elsewhere = dataclasses.replace(run_config, data=dataclasses.replace(run_config.data, path="/there"))
    with pytest.raises(flags.UsageError, match=r"data\.path is None there, '/there' now"):
        loop.check_workdir(elsewhere, tmp_path, set())
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    loop.check_workdir(elsewhere, tmp_path, set())
    with pytest.raises(flags.UsageError, match="steps is"):
        loop.check_workdir(dataclasses.replace(elsewhere, steps=7), tmp_path, set())


def test_what_is_left_of_a_failed_run_is_said(tmp_path, capsys):
    assert loop.report_failure(ValueError("loss is nan at step 3"), tmp_path) == 1
    assert capsys.readouterr().err == "error: loss is nan at step 3; nothing had been saved yet\n"
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    loop.report_failure(ValueError("loss is nan at step 3"), tmp_path)
    assert capsys.readouterr().err.endswith(f"step 3; the last good checkpoint is in {tmp_path}\n")


@pytest.mark.parametrize(("error", "at_once"), [(NotFiniteError, 0), (WorkerEndedError, 1)])
def test_of_several_hosts_one_that_failed_alone_ends_at_once(error, at_once, tmp_path, monkeypatch, capsys):
    """And says what it was, not that a host was lost."""
    ended = mock.Mock(side_effect=SystemExit)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "end_at_once", ended)
    with contextlib.suppress(SystemExit):
        assert loop.report_failure(error("so it is"), tmp_path) == 1
    assert ended.call_count == at_once
    assert capsys.readouterr().err == "error: so it is; nothing had been saved yet\n"


@pytest.mark.parametrize("command", [train, train_decoder])
def test_a_worker_that_died_is_an_end_with_a_sentence(command, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise WorkerEndedError("a worker ended")

    monkeypatch.setattr(command, "train", fail)
    model = mock.Mock(spec=inference.Model, step=3, config=None)
    monkeypatch.setattr(inference, "load", lambda _: model)
    of_run = ["--checkpoint=x"] if command is train_decoder else []
    assert command.main([*of_run, f"--workdir={tmp_path}"]) == 1
    assert capsys.readouterr().err == "error: a worker ended; nothing had been saved yet\n"


@pytest.mark.parametrize(
    ("was", "words"),
    [
        ({"sources": "same", "tokenizers": "same"}, []),
        ({"sources": "same"}, []),  # of an earlier version
        ({"sources": "other", "tokenizers": "same"}, ["the data has changed"]),
        (
            {"sources": "other", "tokenizers": "other"},
            ["the data has changed", "a tokenizer or its library has changed"],
        ),
    ],
)
def test_going_on_with_other_data_or_another_tokenizer_is_said(was, words, caplog, capsys):
    loop.going_on(4, run_config, was, {"sources": "same", "tokenizers": "same"})
    assert capsys.readouterr().out == f"resuming from step 4 of {run_config.steps}\n"
    assert [message.partition(" since step 4")[0] for message in caplog.messages] == words
