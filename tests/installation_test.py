"""The package as `pip install` leaves it, without the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# What a run needs of the package besides its code, found from any folder.
PROGRAM = """
import jepa_jax, weights_conversion
from jepa_jax import config, flags
from jepa_jax.data.emoji_motion.pack import load_pack
from jepa_jax.data.tokenizer import load_tokenizers

run = flags.load_config(flags.DEFAULT_CONFIG)
flags.load_config("configs/demo_decoder.py", config.DecoderConfig)
load_tokenizers(run)
load_pack()
print(jepa_jax.__file__, run.name)
"""


def test_an_installed_package_finds_all_that_belongs_to_it(tmp_path):
    copy = tmp_path / "checkout"
    for name in ("jepa_jax", "weights_conversion", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, copy)
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, f"--target={target}", str(copy)], check=True, capture_output=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(target / "jepa_jax/__init__.py"), "demo"]
