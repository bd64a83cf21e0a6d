"""One run on several hosts: real processes that talk over the loopback."""

import argparse
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import jax
import numpy as np
import pytest

from jepa_jax import benchmark, distributed, evaluate, flags, train
from tests.processes import environment, free_port

ROOT = pathlib.Path(__file__).parent.parent
STEPS, DEVICES = 9, 4


def start(
    workdir, data_dir, processes: int, devices: int, *arguments: str, of_each=None
) -> list[subprocess.Popen]:
    """The processes of a run, each with so many devices; each writes to WORKDIR-I.log. `of_each`: lists of
    arguments, one for each process."""
    port = free_port()
    command = [sys.executable, "-m", "jepa_jax.train", "--config=tests/tiny_config.py"]
    command += ["--config.data.length_buckets=((16,16),)"]
    command += [f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", f"--config.steps={STEPS}"]
    started = []
    for i in range(processes):
        own = list(of_each[i]) if of_each else []
        if processes > 1:
            own += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={i}"]
        log = open(f"{workdir}-{i}.log", "w")  # noqa: SIM115 - the process writes to it
        started.append(
            subprocess.Popen(
                [*command, *arguments, *own, "--heartbeat=10"],
                cwd=ROOT,
                env=environment(devices, data_dir / "compiled"),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )
    return started


def finish(processes: list[subprocess.Popen], workdir) -> list[tuple[int, str]]:
    """(exit status, output) of each; killed where they hang."""
    try:
        for process in processes:
            process.wait(timeout=240)
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, pathlib.Path(f"{workdir}-{i}.log").read_text())
        for i, process in enumerate(processes)
    ]


def succeed(workdir, data_dir, processes: int, devices: int, *arguments: str) -> list[str]:
    ended = finish(start(workdir, data_dir, processes, devices, *arguments), workdir)
    assert all(status == 0 for status, _ in ended), ended
    return [output for _, output in ended]


def losses(workdir) -> np.ndarray:
    """[steps, 4] of every step that training wrote."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "grad_norm", "temperature")
    return np.array([[row[name] for name in names] for row in rows if "loss" in row])


def steps_done(workdir) -> int:
    file = workdir / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def saved(workdir, step: int) -> bool:
    """Whether the checkpoint of a step is committed: files are written behind the steps that follow."""
    return (workdir / "checkpoints" / str(step)).is_dir()


def wait_for(processes: list[subprocess.Popen], condition) -> None:
    """Until it holds or a process has ended; processes that hang are killed, and the test fails."""
    deadline = time.monotonic() + 240
    while all(process.poll() is None for process in processes) and not condition():
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
            pytest.fail("the processes hang")
        time.sleep(0.01)


EVALUATED = (
    "--config.checkpoint.best_metric=recall_at_1",
    "--config.checkpoint.every=5",
    "--config.eval.splits=('validation',)",
    "--config.eval.clips=20",
    "--config.eval.retrieval_clips=12",
    "--config.eval.batch_size=6",
)


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The run on one host."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    succeed(workdir, data_dir, 1, DEVICES, *EVALUATED)
    return workdir


def test_two_hosts_are_one_run(alone, data_dir, tmp_path):
    """The same losses, the same evaluation, one writer. Four hosts are in the test of SIGTERM."""
    workdir = tmp_path / "run"
    outputs = succeed(workdir, data_dir, 2, DEVICES // 2, *EVALUATED)
    assert losses(workdir)[:, 0].tolist() == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    for output in outputs[1:]:
        assert "step/s" not in output
        assert "retrieval" not in output
    assert {p.name for p in workdir.iterdir()} == {p.name for p in alone.iterdir()}
    for file in (alone / "eval").iterdir():
        ours, theirs = (json.loads(path.read_text()) for path in (workdir / "eval" / file.name, file))
        assert ours.keys() == theirs.keys()
        for name, metric in theirs.items():
            # A near tie between two clips may fall either way; no more than one of them.
            assert abs(ours[name]["value"] - metric["value"]) <= 1.01 / min(metric["n"], 12), name
    assert "what_is_it" in outputs[0]


@pytest.mark.parametrize("killed", [1, 0], ids=["a host", "the coordinator"])
def test_a_lost_host_stops_the_others_and_the_same_command_goes_on(alone, data_dir, tmp_path, killed):
    workdir = tmp_path / "run"
    processes = start(workdir, data_dir, 2, DEVICES // 2)
    wait_for(processes, lambda: steps_done(workdir) >= 5 and saved(workdir, 4))
    processes[killed].send_signal(signal.SIGKILL)
    status, output = finish(processes, workdir)[1 - killed]
    assert status not in (0, -signal.SIGKILL), output
    assert "another host was lost" in output or "another task died" in output
    if killed == 1:  # it is one and the same way back
        outputs = succeed(workdir, data_dir, 2, DEVICES // 2)
        assert "resuming from step" in outputs[0]
        np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)


def test_sigterm_to_one_host_saves_on_all_and_one_host_goes_on(alone, data_dir, tmp_path):
    """Four hosts stop after the same step; the run ends on one, with one device and no fsdp. All losses
    are those of one host."""
    workdir = tmp_path / "run"
    processes = start(workdir, data_dir, 4, 1)
    wait_for(processes, lambda: steps_done(workdir) >= 4)
    processes[2].send_signal(signal.SIGTERM)
    ended = finish(processes, workdir)
    assert [status for status, _ in ended] == [128 + signal.SIGTERM] * 4, ended
    done = int(losses(workdir)[-1, 0])
    assert f"SIGTERM: saved step {done}" in ended[0][1]
    (output,) = succeed(workdir, data_dir, 1, 1, "--config.fsdp=1", "--config.micro_batches=2")
    assert f"resuming from step {done} of {STEPS}" in output
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)


def test_sigterm_to_one_host_ends_the_last_evaluation_on_all(alone, data_dir, tmp_path):
    """JAX takes the signal, which would do nothing where nobody asks for it."""
    workdir = shutil.copytree(alone, tmp_path / "run")
    (begun := workdir / "config.json").unlink()
    processes = start(workdir, data_dir, 2, DEVICES // 2, *EVALUATED)
    wait_for(processes, begun.exists)  # seconds before the evaluation, and JAX looks once a second
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes, workdir)
    assert [status for status, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert f"SIGTERM: stopping before step {STEPS} is evaluated to the end" in ended[0][1]


def test_a_host_that_cannot_start_stops_the_others_at_once(data_dir, tmp_path):
    """Its data is not there, say; the others must not wait for it."""
    workdir, file = tmp_path / "run", tmp_path / "file"
    file.touch()
    last = [], [f"--config.data.data_dir={file}"]
    ended = finish(start(workdir, data_dir, 2, 1, f"--workdir={workdir}", of_each=last), workdir)
    assert [status for status, _ in ended] == [2, 2], ended
    assert "error: process 1 could not start, and has said why" in ended[0][1]
    assert str(file) in ended[1][1].splitlines()[-1]
    assert not (workdir / "metrics.jsonl").exists()


def test_hosts_of_other_numbers_of_devices_are_told_so(monkeypatch):
    devices = [mock.Mock(process_index=host) for host in (0, 0, 0, 1)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(flags.UsageError, match=r"as many devices, .* 3 of process 0, 1 of process 1"):
        distributed.check_devices()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--processes=2"], "--processes goes with the other two flags of several hosts: add --coordinator"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], "--process=2 is not one of the 2"),
        (["--coordinator=h", "--processes=2", "--process=0"], "--coordinator='h' is no HOST:PORT"),
        (["--coordinator=h:", "--processes=2", "--process=1"], "--coordinator='h:' is no HOST:PORT"),
        (["--coordinator=h:65536", "--processes=2", "--process=0"], "--coordinator='h:65536' is no HOST"),
        (["--coordinator=http://h:1", "--processes=2", "--process=1"], "='http://h:1' is no HOST:PORT"),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(arguments, sentence):
    with pytest.raises(flags.UsageError) as error:
        distributed.initialize(given(*arguments))
    assert sentence in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_that_is_taken_is_one_sentence(host, monkeypatch):
    """JAX ends the process for it, or takes it too, and two runs are mixed."""
    monkeypatch.setattr(jax.distributed, "initialize", mock.Mock(side_effect=ValueError("reached")))
    with socket.create_server((host, 0)) as taken:
        taken_by = f"--coordinator=127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(flags.UsageError, match=r"cannot listen at port \d+ \(Address already in use\)"):
            distributed.initialize(given(taken_by, "--processes=2", "--process=0"))
    collectives = jax.config.jax_cpu_collectives_implementation
    try:  # the port is the first process's own, and it was taken for no longer than to look
        for index in (1, 0):
            with pytest.raises(flags.UsageError, match="reached"):
                distributed.initialize(given(taken_by, "--processes=2", f"--process={index}"))
    finally:
        jax.config.update("jax_cpu_collectives_implementation", collectives)


ENDED = """
import argparse, os, signal, sys, time
from jepa_jax import distributed

parser = argparse.ArgumentParser()
distributed.add_arguments(parser)
given = parser.parse_args([f"--coordinator=127.0.0.1:{sys.argv[1]}", "--processes=1", "--process=0"])
distributed.initialize(given, stops_by_step=sys.argv[2] == "True")
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("stops_by_step", "status"), [(True, 0), (False, -signal.SIGTERM)])
def test_sigterm_ends_what_does_not_ask_for_it(stops_by_step, status):
    """JAX takes the signal in every process that has joined others."""
    command = [sys.executable, "-c", ENDED, str(free_port()), str(stops_by_step)]
    assert subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode == status


ASKED = """
time.sleep(3)  # JAX looks once a second
distributed.jax.process_count = lambda: 2
sys.exit(7 * distributed.asked_to_stop())
"""


def test_sigterm_before_a_run_has_done_a_step_stops_it_after_the_first():
    """Whichever step it goes on from: JAX, given nothing yet, says so at the number 1 and at no other."""
    command = [sys.executable, "-c", ENDED + ASKED, str(free_port()), "True"]
    assert subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode == 7


def test_ctrl_c_ends_a_host_that_waits_for_others():
    """JAX's call comes back to Python after five minutes."""
    command = [sys.executable, "-m", "jepa_jax.train", "--config=tests/tiny_config.py", "--workdir=/nowhere"]
    command += [f"--coordinator=127.0.0.1:{(port := free_port())}", "--processes=2", "--process=0"]
    # A shell that was itself started in the background hands down that Ctrl-C is not for it.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, env=environment() | {"JEPA_JAX_HUGE_PAGES": "1"})
    signal.signal(signal.SIGINT, heard)
    try:
        wait_for([process], lambda: listens(port))
        time.sleep(0.5)  # into the call
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
    finally:
        process.kill()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_host_says_what_it_waits_for(monkeypatch, capsys):
    def timer(seconds, function, arguments, options):
        assert seconds > 10  # most starts say nothing
        return mock.Mock(start=lambda: function(*arguments, **options))

    monkeypatch.setattr(distributed.threading, "Timer", timer)
    monkeypatch.setattr(jax.distributed, "initialize", mock.Mock(side_effect=RuntimeError("before any JAX")))
    with pytest.raises(flags.UsageError, match="start a new process"):
        distributed.initialize(given("--coordinator=h:1", "--processes=2", "--process=0"))
    assert capsys.readouterr().err == "waiting for the other hosts of this run at h:1\n"


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
        # Which JAX asks first; so has Kaggle it.
        ({"TPU_PROCESS_ADDRESSES": "host-0:8476,host-1:8476"}, True),
        ({"TPU_PROCESS_ADDRESSES": "local"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "n[1-2]"}, True),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        # An interactive allocation: nothing was started on the other nodes.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_only_a_manager_of_several_processes_is_waited_for(environ, several):
    assert distributed.on_a_cluster(environ) is several


def given(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distributed.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x24)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, [0, 1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, [0, 1]),  # what /dev has
        # Every process of several takes its own, as JAX does it.
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x3)", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,8", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x3)", "CUDA_VISIBLE_DEVICES": "5"}, [0]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "CUDA_VISIBLE_DEVICES": ""}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "JAX_LOCAL_DEVICE_IDS": "3"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, [0, 1]),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, None),
    ],
)
def test_the_only_process_of_a_machine_takes_all_its_gpus(environ, gpus, monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    assert distributed.gpus_of_its_own(environ) == gpus


def test_a_notebook_whose_tpu_is_in_use_is_alone(monkeypatch):
    jax.devices()
    monkeypatch.setattr(distributed, "_may_have_others", lambda: True)
    distributed.initialize(given())
    assert not jax.distributed.is_initialized()
    with pytest.raises(flags.UsageError, match="JAX was used before"):
        distributed.initialize(given("--coordinator=127.0.0.1:1", "--processes=2", "--process=0"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        # Of JAX_PLATFORMS=cuda on a machine without a GPU, and of a TPU that another process has.
        (AssertionError(), "names$"),
        (RuntimeError("Unable to initialize backend 'tpu': in use\nby 7"), "names: Unable to .*: in use$"),
    ],
)
@pytest.mark.parametrize("command", [train, evaluate, benchmark])
def test_a_machine_without_the_device_is_told_in_a_sentence(command, error, reason, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.chdir(tmp_path)
    for name in ("devices", "local_devices", "process_count", "process_index", "default_backend"):
        monkeypatch.setattr(jax, name, fail)
    arguments = [f"--checkpoint={tmp_path}"] if command is evaluate else []
    with pytest.raises(flags.UsageError, match=f"^JAX finds no device that JAX_PLATFORMS=cpu {reason}"):
        command.main(arguments)
    assert not list(tmp_path.iterdir())


# Colab and containers, Kaggle, GKE.
TOLD = ("TPU_SKIP_MDS_QUERY", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")


def on_a_tpu(monkeypatch, *told: str) -> None:
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    for name in told:
        monkeypatch.setenv(name, "localhost")


@pytest.mark.parametrize("name", [None, *TOLD])
def test_where_there_is_no_metadata_server_nobody_is_asked(name, monkeypatch):
    on_a_tpu(monkeypatch, *[name] * (name is not None))
    assert distributed._may_have_others() is (name is None)


@pytest.mark.parametrize(
    ("tpu", "libtpu", "error", "sentence"),
    [
        # What JAX says of Open MPI 5.
        (
            False,
            True,
            ValueError("coordinator_address should be defined."),
            "give --coordinator, --processes",
        ),
        (
            True,
            False,
            ValueError("coordinator_address should be defined."),
            "libtpu, its library, is not inst",
        ),
        # As of `requests`.
        (
            True,
            True,
            ConnectionError("Failed to resolve"),
            r"resolve\): set TPU_SKIP_MDS_QUERY=1 if there are n",
        ),
    ],
)
def test_hosts_that_jax_cannot_find_are_a_sentence(tpu, libtpu, error, sentence, monkeypatch):
    if tpu:
        on_a_tpu(monkeypatch)
    else:
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: libtpu or None)
    monkeypatch.setattr(jax.distributed, "initialize", mock.Mock(side_effect=error))
    collectives = jax.config.jax_cpu_collectives_implementation
    try:
        with pytest.raises(flags.UsageError, match=sentence):
            distributed.initialize(given())
    finally:
        jax.config.update("jax_cpu_collectives_implementation", collectives)
