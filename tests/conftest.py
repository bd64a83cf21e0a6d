"""Shared by all tests. The small configs and models are in `tests/tiny.py`."""

import errno
import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # of processes that tests start, too; libtpu would look for its chips

import jax
import pytest

from tests.processes import xla_flags

# Before the first use of a device: tests of sharding need several.
jax.config.update("jax_num_cpu_devices", 8)
# XLA reads the flags with the first use of a device, libtpu later: it ends a process for those of CPUs.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", xla_flags())
    jax.devices()
# Accelerators round float32 products to less by default; parity needs all the digits.
jax.config.update("jax_default_matmul_precision", "highest")
# As `environment` in processes.py.
jax.config.update("jax_disable_most_optimizations", True)
# Tracing leaves many objects that stay: looking through them again and again takes a twelfth of the time.
gc.set_threshold(100_000, 50, 100)

# Files that take minutes, because they wait for processes or compile the largest models.
_LONGEST = (
    "distributed_test.py",
    "train_test.py",
    "bucket_test.py",
    "benchmark_test.py",
    "full_size_test.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that none of them is what everything else has ended and waits for."""
    places = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """One dataset for the training processes of a file, and one compilation cache for those of all files."""
    base = tmp_path_factory.getbasetemp()
    compiled = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    compiled.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("data")
    (folder / "compiled").symlink_to(compiled)
    return folder


@pytest.fixture
def name_of_other_bytes(tmp_path_factory):
    """A stem for files that is not UTF-8; macOS's file systems refuse such names."""
    stem = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path_factory.mktemp("names") / stem).touch()
    except OSError as error:
        if error.errno != errno.EILSEQ:
            raise
        pytest.skip("this file system has no names but in UTF-8")
    return stem


@pytest.fixture
def prepares_for_gpus(monkeypatch):
    """JAX prepares programs for GPUs where there are none, but for one question: which cuDNN is there."""
    version = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(version, lambda: 91000)
