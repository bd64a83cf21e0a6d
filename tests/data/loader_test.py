"""The same batches whoever reads them: threads, worker processes, from any step on."""

import collections
import dataclasses
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jepa_jax import flags
from jepa_jax.config import DatasetConfig
from jepa_jax.data import pipeline
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.loader import Loader, WorkerEndedError
from jepa_jax.data.records import BadRecordError
from jepa_jax.data.tokenizer import load_tokenizers
from tests.records import Records, example

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS = 7
TINY = flags.load_config("tests/tiny_config.py")
# Two shapes of batches from two datasets, the second with every tenth record missing.
CONFIG = dataclasses.replace(
    TINY,
    data=dataclasses.replace(
        TINY.data,
        mixture=(DatasetConfig(path="a"), DatasetConfig(path="b", span="random")),
    ),
)
SOURCES = [
    Records([example(i, long=i % 3 == 0) for i in range(50)]),
    Records(
        [
            BadRecordError("media missing", f"clip {i}") if i % 10 == 0 else example(i, long=i % 2 == 0)
            for i in range(50, 90)
        ]
    ),
]


def loader(bad: BadRecords | None = None, step: int = 0, **settings) -> Loader:
    data = dataclasses.replace(CONFIG.data, **settings)
    dataset = pipeline.batches(CONFIG, SOURCES, load_tokenizers(CONFIG))
    return Loader(dataset, data, BadRecords(1.0) if bad is None else bad, {"step": step})


@pytest.fixture(scope="module")
def expected():
    """The first batches, and how many records were left out of them."""
    bad = BadRecords(1.0)
    read = loader(bad, threads=1, prefetch=1)
    found = [next(read) for _ in range(STEPS)]
    read.close()
    assert bad.total
    return found, bad.total


def assert_same(found, batches):
    for one, other in zip(found, batches, strict=True):
        assert one.keys() == other.keys()
        for name, x in other.items():
            np.testing.assert_array_equal(one[name], x, err_msg=name)


@pytest.mark.parametrize("step", [0, 3])
def test_threads_change_nothing(expected, step):
    read = loader(threads=5, prefetch=9, step=step)
    assert_same([next(read) for _ in range(STEPS - step)], expected[0][step:])
    assert read.get_state() == {"step": STEPS}
    read.close()


def test_workers_change_nothing_and_tell_what_they_left_out(expected, caplog):
    """From step 2 on, so that the first worker reads even steps of what is left, not of the whole; with a
    signal on the way, as a terminal sends it to all."""
    bad = BadRecords(1.0)
    read = loader(bad, workers=2, prefetch=3, step=2)
    found = [next(read)]
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
    found += [next(read) for _ in range(STEPS - 3)]
    assert_same(found, expected[0][2:])
    assert read.get_state() == {"step": STEPS}
    assert bad.total
    assert re.search(r"left out: clip [5-8]0: media missing", caplog.text)
    read.close()
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        pytest.param(signal.SIGBUS, r"SIGBUS \(/dev/shm, .* full: .*\)", id="SIGBUS"),
        pytest.param(
            35,
            r"signal 35",
            id="one without a name",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's number"),
        ),
    ],
)
def test_a_worker_that_dies_is_told_in_a_sentence(number, told):
    """As where a container's /dev/shm is full, or its memory."""
    read = loader(workers=1, prefetch=1)
    next(read)
    (process,) = multiprocessing.active_children()
    os.kill(process.pid, number)
    with pytest.raises(WorkerEndedError, match=f"ended by {told}; data.workers=0"):
        collections.deque(read, maxlen=0)
    read.close()


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks Linux's /proc about other processes")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """In a process of its own, whose main module must not run again in the workers."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT)!r})
print(__name__, flush=True)
from tests.data.loader_test import loader
read = loader(workers=2)
next(read)
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
sys.stdin.read()
"""
    )
    process = subprocess.Popen(
        [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == "__main__\n"
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(runs, workers))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        # They notice by themselves.
        for _ in range(2400):
            if not any(map(runs, workers)):
                break
            time.sleep(0.05)
        assert not any(map(runs, workers))
    finally:
        process.kill()
