"""The benchmark as a user runs it: in a process of its own, on the tiny model."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import types

import pytest

from jepa_jax import benchmark, comparison, flags, timing
from jepa_jax.config import DatasetConfig
from jepa_jax.data import pipeline, synthetic
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.flops import model_flops
from tests.processes import environment, free_port
from tests.tiny_config import config as tiny

ROOT = pathlib.Path(__file__).parent.parent
PARTS = ["data_wait", "host_to_device", "x_encoder", "predictor", "y_encoder", "loss", "optimizer"]


def run(out: pathlib.Path, *arguments: str, hosts: int = 1) -> tuple[dict, str]:
    """What a benchmark of the tiny model writes, and what it prints. Of several hosts, of two devices each,
    the first does both."""
    command = [sys.executable, "-m", "jepa_jax.benchmark", "--config=tests/tiny_config.py", "--steps=2"]
    command += [f"--out={out}", f"--config.fsdp={hosts}", *arguments]
    if hosts > 1:
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={hosts}", "--heartbeat=10"]
    started = [
        subprocess.Popen(
            [*command, f"--process={i}"] if hosts > 1 else command,
            cwd=ROOT,
            env=environment(2 if hosts > 1 else 1),  # no time is looked at
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(hosts)
    ]
    try:
        ended = [process.communicate(timeout=500) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * hosts, ended
    assert not any("samples/s" in printed for printed, _ in ended[1:])
    return json.loads(out.read_text()), ended[0][0]


def check_parts(found: dict, printed: str) -> None:
    """Every part has its time, and its work where it has any."""
    assert list(found["parts"]) == PARTS
    for name, part in [*found["parts"].items(), ("whole step", found["step"])]:
        assert part["seconds"] > 0, name
        assert name.replace("_", " ") in printed
    assert found["peak_flops"] > 1e8
    assert "measured in this run" in found["peak_source"]
    # The longest bucket, 16 and 16 tokens, and 8 clips a step.
    flops = {name: 8 * x for name, x in model_flops(tiny, 16, 16).items()}
    assert {name: p["flops"] for name, p in found["parts"].items() if "flops" in p} == flops
    step = found["step"]
    assert step["flops"] == sum(flops.values())
    assert math.isclose(step["utilisation"], step["flops"] / step["seconds"] / found["peak_flops"])
    assert math.isclose(found["samples_per_second"], 8 / step["seconds"])


def test_every_part_of_a_step_on_two_hosts_in_two_pieces_is_timed(tmp_path):
    arguments = [
        f"--config.data.data_dir={tmp_path}",
        "--config.micro_batches=2",
        f"--trace={tmp_path / 'trace'}",
    ]
    found, printed = run(tmp_path / "found.json", *arguments, hosts=2)
    assert (found["data"], found["devices"]) == ("emoji_motion/tiny", 4)
    assert "data: emoji_motion/tiny" in printed
    profiles = list((tmp_path / "trace").glob("plugins/profile/*/*.xplane.pb"))
    assert profiles
    assert all(b"train_step" in file.read_bytes() for file in profiles)
    check_parts(found, printed)


def test_a_dataset_that_is_not_to_be_had_is_replaced_and_that_is_said():
    config = flags.override(tiny, [("data.dataset", "nowhere")])
    batches, source = benchmark.open_batches(config, wanted=False)
    assert "synthetic" in source
    assert "nowhere" in source
    found, expected = next(batches), synthetic.batch(config, 0)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_of_a_mixture_the_longest_clips_are_timed(tmp_path):
    """Their steps alone have one shape: `data.frames` may be none of the mixture's."""
    given = tuple(DatasetConfig(dataset="emoji_motion/tiny", frames=n) for n in (8, None, 16))
    data = dataclasses.replace(tiny.data, data_dir=str(tmp_path), mixture=given)
    config = timing.longest(dataclasses.replace(tiny, data=data))
    assert (config.data.mixture, config.data.length_buckets) == ((given[2],), ((16, 16),))
    for wanted in (True, False):
        batches, _ = benchmark.open_batches(config, wanted)
        assert {next(batches)["frames"].shape[:2] for _ in range(4)} == {(8, 16)}
    assert timing.longest(tiny).data == dataclasses.replace(tiny.data, length_buckets=((16, 16),))


def test_in_turns_with_pytorch(tmp_path):
    pytest.importorskip("torch", reason="the comparison is with PyTorch, of the extra `convert`")
    found, printed = run(tmp_path / "found.json", "--compare=pytorch")
    for side in comparison.SIDES:
        assert min(found[side]["all_seconds"]) > 0
        # Two models of the same size that start from random numbers.
        assert all(0.5 < loss < 20 for loss in found[side]["losses"])
        assert side in printed
    ours, theirs = (found[side]["all_seconds"] for side in comparison.SIDES)
    assert len(ours) == len(theirs) == 2
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    assert found["speedups"] == ratios
    assert math.isclose(found["speedup"], sum(ratios) / 2)


def test_a_part_in_turns_with_pytorch(tmp_path):
    pytest.importorskip("torch", reason="the comparison is with PyTorch, of the extra `convert`")
    found, printed = run(
        tmp_path / "found.json",
        "--compare=pytorch",
        "--part=predictor",
        "--config.optim.factors.x_encoder=0.0",
        "--config.data.pairs_per_clip=2",
    )
    assert found["part"] == "predictor"
    assert found["speedup"] > 0
    assert "predictor" in printed


@pytest.mark.parametrize("part", ["x_encoder", "y_encoder"])
def test_the_other_parts_of_the_assembly_run_alone(part):
    pytest.importorskip("torch", reason="the comparison is with PyTorch, of the extra `convert`")
    from jepa_jax import torch_assembly

    torch_assembly.part(part, tiny)(torch_assembly.to_torch(synthetic.batch(tiny, 0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part=x_encoder"], "--compare=pytorch"),
        (["--steps=0"], "at least 1"),
        (["--compare=tensorflow"], "pytorch"),
        (["--config.batch_size=7", "--config.fsdp=1"], "batch_size=7 is not a multiple"),
        (["--compare=pytorch", "--config.model.compute_dtype=bfloat16"], "float32"),
        (["--compare=pytorch", "--config.micro_batches=2"], "micro_batches=1"),
        (["--compare=pytorch", "--config.optim.name=muon"], "optim.name=adamw"),
        (["--out=tests/tiny.py/found.json"], "tests/tiny.py"),
        (["--trace=tests/tiny.py/trace"], "tests/tiny.py"),
        (["--trace=trace", "--compare=pytorch"], "without --compare"),
        (["--config.nothing=1"], "no field 'nothing'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message, tmp_path, capsys):
    if "--compare=pytorch" in arguments:
        pytest.importorskip("torch", reason="without it, that is what the sentence says")
    given = ["--config=tests/tiny_config.py", "--synthetic", f"--out={tmp_path / 'found.json'}", *arguments]
    assert flags.run(benchmark.main, given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_media_that_cannot_be_used_are_said_in_a_sentence(tmp_path, capsys):
    """They are met when the first batch is made, long after the dataset was opened."""
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes(b"no video")
        (tmp_path / f"{i}.txt").write_text("a thing")
    given = ["--config=tests/tiny_config.py", f"--out={tmp_path / 'found.json'}"]
    given += [f"--config.data.path={tmp_path}", "--config.data.length_buckets=((16,16),)"]
    assert flags.run(benchmark.main, given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "media not decodable" in error


@pytest.mark.parametrize(("platforms", "libtpu"), [("", True), ("cpu", True), ("", False)])
def test_a_trace_that_would_end_the_process_is_refused(platforms, libtpu, monkeypatch):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda _: libtpu or None)
    told = types.SimpleNamespace(jax_platforms=platforms)
    monkeypatch.setattr(benchmark, "jax", types.SimpleNamespace(config=told, default_backend=lambda: "cpu"))
    if platforms or not libtpu:
        benchmark.check_profiler()
        return
    with pytest.raises(flags.UsageError, match="set JAX_PLATFORMS=cpu"):
        benchmark.check_profiler()


def test_what_the_assembly_lacks_is_said_by_its_worker(tmp_path, capsys):
    pytest.importorskip("torch", reason="the comparison is with PyTorch, of the extra `convert`")
    given = ["--config=tests/tiny_config.py", f"--out={tmp_path / 'found.json'}", "--compare=pytorch"]
    lacking = ["--config.fsdp=1", "--config.loss.objective=sigmoid"]
    assert flags.run(benchmark.main, [*given, "--part=y_encoder", *lacking]) == 2
    assert "InfoNCE" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_is_said_by_the_worker(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="the comparison is with PyTorch, of the extra `convert`")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")  # of the worker, a process of its own
    given = ["--config=tests/tiny_config.py", f"--out={tmp_path / 'found.json'}", "--compare=pytorch"]
    assert flags.run(benchmark.main, [*given, "--config.fsdp=1", "--part=y_encoder"]) == 2
    error = capsys.readouterr().err
    assert "batch_size=8 is not a multiple of the 3 devices" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("kind", "flops"), [("TPU v6 lite", 918e12), ("TPU7x", 2307e12 / 2), ("one of tomorrow", None)]
)
def test_the_peak_is_that_of_all_devices_together(kind, flops):
    """Two devices are a chip of TPU7x."""
    device = types.SimpleNamespace(device_kind=kind, platform="tpu")
    found, source = benchmark.peak([device] * 8)
    assert found == (flops and 8 * flops)
    assert kind in source or "https://" in source


def test_synthetic_batches_have_the_pipeline_s_form(tmp_path):
    config = flags.override(
        tiny,
        [
            ("data.pairs_per_clip", "3"),
            ("data.length_buckets", "((9, 13),)"),
            ("data.data_dir", str(tmp_path)),
        ],
    )
    sources = pipeline.open_sources(config.data, BadRecords(0.0))
    real = pipeline.batches(config, sources, load_tokenizers(config))[0].arrays
    made = synthetic.batch(config, 0)
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
        k: (v.shape, v.dtype) for k, v in real.items()
    }
    for name, length in (("query", 9), ("target", 13)):
        filled = made[f"{name}_mask"].sum(axis=1)
        assert filled.min() >= length / 2
        assert filled.max() <= length
