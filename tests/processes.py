"""Processes that tests start: their environment, and a port to talk over."""

import os
import pathlib
import socket


def environment(devices: int = 1, compiled: pathlib.Path | None = None) -> dict[str, str]:
    """Of a process that compiles much and runs little, on so many devices.

    Args:
      compiled: the folder in which it leaves what it compiles, and finds what others did.
    """
    found = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    if compiled is not None:
        found["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
        found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return found


def free_port() -> int:
    """Of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
