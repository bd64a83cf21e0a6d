"""Processes that tests start: their environment, and a port to talk over."""

import functools
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


@functools.cache
def xla_flags() -> str:
    """XLA_FLAGS of what compiles much and runs little: with each program's plainest code, in one piece, it
    takes half the time. Flags that are set already come last, and win."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = f"--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 {given}".strip()
    # XLA ends a process for a flag that it does not know, as another release may not.
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    environ = {**os.environ, "XLA_FLAGS": flags}
    return given if subprocess.run(probe, env=environ, capture_output=True, check=False).returncode else flags


def environment(devices: int = 1, compiled: pathlib.Path | None = None) -> dict[str, str]:
    """Of a process that compiles much and runs little, on so many devices.

    Args:
      compiled: the folder in which it leaves what it compiles, and finds what others did.
    """
    found = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    found |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": xla_flags()}
    if compiled is not None:
        found["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return found


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# How a program for `on_two_hosts` begins.
JOIN = """
import pathlib, sys
import jax

port, index, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, heartbeat_timeout_seconds=10)
"""


def on_two_hosts(program: str, folder: pathlib.Path, devices: int = 1) -> list[tuple[int, str]]:
    """(exit status, what it wrote to stderr) of two processes that run JOIN and a program."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN + program, port, str(i), str(folder)],
            cwd=ROOT,
            env=environment(devices),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]
