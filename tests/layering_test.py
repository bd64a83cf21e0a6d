"""Imports run one way: what a file may know of the rest."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(f for top in ("jepa_jax", "weights_conversion") for f in (ROOT / top).rglob("*.py"))


def name_of(file: pathlib.Path) -> str:
    """Dotted module name: `jepa_jax/models/llama.py` -> `jepa_jax.models.llama`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in FILES}


def imports_of(source: str) -> set[str]:
    """Everything a file imports, wherever in it the statement stands. `from a import b` counts as
    `a.b` where that is a module of ours, else as `a`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


IMPORTS = {name: imports_of(file.read_text()) for name, file in MODULES.items()}


def imports_under(*packages: str) -> list[tuple[str, str]]:
    """(importer, imported) pairs of the modules under some packages."""
    pairs = [(m, i) for m in sorted(IMPORTS) if within(m, *packages) for i in sorted(IMPORTS[m])]
    assert pairs, f"nothing found under {packages}"
    return pairs


def ours(name: str) -> bool:
    return within(name, "jepa_jax", "weights_conversion")


def test_the_reader_of_imports_sees_every_form():
    source = """
import jax.numpy as jnp
from jepa_jax import train
from jepa_jax.config import Config
def f():
    from jepa_jax.data import pipeline
"""
    assert imports_of(source) == {
        "jax.numpy",
        "jepa_jax.train",
        "jepa_jax.config",
        "jepa_jax.data.pipeline",
    }


def test_config_knows_nothing_of_the_package():
    found = imports_under("jepa_jax.config")
    wrong = [p for p in found if ours(p[1]) and not within(p[1], "jepa_jax.config")]
    assert not wrong


def test_models_know_only_config_and_each_other():
    allowed = ("jepa_jax.config", "jepa_jax.models", "jax", "flax", "numpy")
    wrong = [
        pair
        for pair in imports_under("jepa_jax.models")
        if not within(pair[1], *allowed) and pair[1].split(".")[0] not in sys.stdlib_module_names
    ]
    assert not wrong


@pytest.mark.parametrize(
    "module", [f"jepa_jax.{name}" for name in ("losses", "sharding", "places", "figures")]
)
def test_what_all_may_use_knows_nothing_of_the_package(module):
    assert not [p for p in imports_under(module) if ours(p[1]) and not within(p[1], module)]


# Commands that stand among the data they make: they may know the rest, and nobody knows them.
DATA_COMMANDS = ("jepa_jax.data.build.__main__", "jepa_jax.data.cache_features")


def test_data_knows_only_config_places_words_and_figures():
    allowed = [f"jepa_jax.{name}" for name in ("config", "data", "errors", "places", "figures")]
    wrong = [
        pair
        for pair in imports_under("jepa_jax.data")
        if ours(pair[1]) and not within(pair[1], *allowed) and pair[0] not in DATA_COMMANDS
    ]
    assert not wrong


def test_nobody_imports_the_commands_of_the_data():
    everyone = imports_under("jepa_jax", "weights_conversion")
    assert not [pair for pair in everyone if pair[1] in DATA_COMMANDS]


def test_nobody_imports_train():
    everyone = imports_under("jepa_jax", "weights_conversion")
    assert not [pair for pair in everyone if within(pair[1], "jepa_jax.train")]


def test_the_package_does_not_import_the_conversion():
    assert not [p for p in imports_under("jepa_jax") if within(p[1], "weights_conversion")]


# The one exception: the same model in PyTorch, for the benchmark to compare with.
TORCH = "jepa_jax.torch_assembly"


def test_transformers_is_for_data_and_torch_and_tensorflow_for_nobody():
    for importer, imported in imports_under("jepa_jax"):
        if importer == TORCH and not within(imported, "tensorflow"):
            continue
        assert not within(imported, "torch", "tensorflow"), importer
        if within(imported, "transformers"):
            assert within(importer, "jepa_jax.data"), importer


def test_the_pytorch_assembly_is_loaded_by_its_worker_alone():
    importers = [importer for importer, imported in imports_under("jepa_jax") if imported == TORCH]
    assert importers == ["jepa_jax.comparison"]
    program = f"import sys, jepa_jax.benchmark; print([m for m in ('torch', {TORCH!r}) if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_private_modules_of_libraries_are_left_alone():
    for importer, imported in imports_under("jepa_jax", "weights_conversion"):
        private = [part for part in imported.split(".") if part.startswith("_")]
        assert not private or imported == "__future__", f"{importer} imports {imported}"


def test_importing_the_package_is_cheap():
    """Data workers need none of them."""
    heavy = "jax", "flax", "torch", "tensorflow", "transformers"
    program = f"import sys, jepa_jax; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
