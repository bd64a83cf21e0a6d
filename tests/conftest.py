"""Shared by all tests. The small configs and models are in `tests/tiny.py`."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # of processes that tests start, too; libtpu would look for its chips

import jax

# Before the first use of a device: tests of sharding need several.
jax.config.update("jax_num_cpu_devices", 8)
# Accelerators round float32 products to less by default; parity needs all the digits.
jax.config.update("jax_default_matmul_precision", "highest")
# Tests compile much and run little: this halves their time. Tests that start a process of their own
# run what users run.
jax.config.update("jax_disable_most_optimizations", True)
