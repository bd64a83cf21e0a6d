"""Preflight: the TPU's own compiler on this machine, at the size of the tiny model."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("libtpu", reason="the TPU's compiler, of the extras `preflight` and `test`")

from jepa_jax import flags, preflight
from jepa_jax.chips import CHIPS
from jepa_jax.flops import model_flops
from jepa_jax.hlo import Cost, Program
from jepa_jax.models.attention_tpu import splash_attention
from jepa_jax.step import SCOPES
from tests.tiny_config import config as tiny
from tests.train_test import CONFIG, ROOT

LENGTHS = tiny.data.length_buckets[-1]


@pytest.fixture(autouse=True)
def no_machine_to_look_for(monkeypatch):
    """What the command sets before it imports JAX."""
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5p-8"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_WORKER_ID", "0"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        monkeypatch.setenv(name, value)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jepa_jax.preflight", f"--config={CONFIG}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_prints_and_writes_what_a_step_costs(tmp_path):
    out = tmp_path / "preflight.json"
    done = run("--topology=v5p:2x2x1", f"--out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert (found["chips"], found["chip"]["name"], found["fits"]) == (4, "TPU v5p", True)
    memory = dict(found["memory_bytes"])
    assert memory.pop("total") == pytest.approx(sum(memory.values()))
    assert all(value >= 0 for value in memory.values())
    assert "between slices" not in done.stdout
    # One uint8 frame batch and its texts, a fourth on each chip.
    texts = tiny.batch_size * (LENGTHS[0] + LENGTHS[1]) * 5 + tiny.batch_size * 4
    frames = tiny.batch_size * tiny.data.frames * 32 * 32 * 3
    assert memory["batch"] == (frames + texts) / 4
    assert found["model_flops"] == sum(model_flops(tiny, *LENGTHS).values()) * tiny.batch_size / 4
    # What the program does is at least what the definition asks for, and not much more.
    assert 0.98 < found["flops"] / found["model_flops"] < 1.5
    chip, bounds = found["chip"], found["bound_seconds"]
    assert bounds["compute"] == found["flops"] / chip["flops"]
    assert bounds["memory"] == found["memory_traffic_bytes"] / chip["hbm_bandwidth"]
    assert bounds["network"] == sum(found["network_bytes"].values()) / chip["link_bandwidth"]
    worst = max(bounds.values())
    assert worst <= found["seconds_in_turn"] < bounds["compute"] + bounds["memory"] + bounds["network"]
    by_part = found["seconds_in_turn_by_part"]
    assert by_part.keys() == {*SCOPES, "other"}
    assert sum(by_part.values()) <= found["seconds_in_turn"] * (1 + 1e-9)
    assert by_part["other"] < 0.1 * sum(by_part.values())
    assert found["samples_per_second_per_chip"] == pytest.approx(tiny.batch_size / 4 / worst)
    assert found["model_flops_utilisation"] == pytest.approx(found["model_flops"] / worst / chip["flops"])
    assert sum(row["bytes"] for row in found["collectives"]) == pytest.approx(
        sum(found["network_bytes"].values())
    )
    for word in (
        "total",
        "collective-permute",
        "utilisation at most",
        "one instruction after the other",
        "bound by",
        chip["source"],
    ):
        assert word in done.stdout


@pytest.mark.parametrize("configured", ["none", "layer", "mlp"])
def test_every_remat_is_compiled_once_as_configured(configured, monkeypatch, tmp_path, capsys):
    """Without recomputation it fits in pieces alone, of "elementwise" nearly nothing is left, and "layer" the
    compiler does only where it is the run's own."""
    needed = {"none": 30e9, "elementwise": 16e9, "mlp": 11e9, "layer": 5e9}
    flops = {"none": 1.0, "elementwise": 1.0, "mlp": 1.2, "layer": 1.4}
    tried = []

    def compile_step(config, devices, lengths):
        remat = config.model.remat
        tried.append((remat, config.micro_batches))
        if remat == "layer" != configured:
            raise ValueError("the TPU's compiler cannot do this step: UNIMPLEMENTED")
        memory = {"total": needed[remat] / config.micro_batches}
        return preflight.Compiled(memory, Cost(flops=flops[remat]), 0.0)

    monkeypatch.setattr(preflight, "compile_step", compile_step)
    out = tmp_path / "preflight.json"
    arguments = [f"--config={CONFIG}", "--topology=v5e:2x2", "--every-remat", f"--out={out}"]
    assert preflight.main([*arguments, f"--config.model.remat={configured}"]) == 0
    pieces = [("none", 2)] if configured == "none" else []
    assert sorted(tried) == sorted([*((remat, 1) for remat in needed), *pieces])
    rows = json.loads(out.read_text())["remat"]
    fit = ["elementwise", "mlp", *(["layer"] if configured == "layer" else [])]
    assert [name for name, row in rows.items() if row["fits"]] == fit
    assert rows["none"].get("micro_batches") == (2 if configured == "none" else None)
    assert "--config.model.remat=mlp\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fixed", "room", "smallest"),
    [(0, 900, 2), (0, 500, 4), (0, 80, 24), (0, 60, None), (300, 900, 3), (300, 400, 24), (70, 360, 8)],
)
def test_the_smallest_number_of_pieces_that_fits_is_found(fixed, room, smallest, monkeypatch):
    """A step that takes 1,800 bytes over the number of pieces beside what stays, on a compiler that
    refuses above 1,000."""
    tried = []

    def compile_step(config, devices, lengths):
        needed = fixed + 1800 / config.micro_batches
        tried.append(config.micro_batches)
        if needed > 1000:
            raise preflight.DoesNotFitError(needed)
        return preflight.Compiled({"total": needed}, Cost(), 0.0)

    monkeypatch.setattr(preflight, "compile_step", compile_step)
    config = dataclasses.replace(tiny, batch_size=48, fsdp=2)
    chip = dataclasses.replace(CHIPS[0], hbm_bytes=room)
    found = preflight.smallest_that_fits(config, [None] * 2, LENGTHS, chip, fixed + 1800)
    assert (found and found[0]) == smallest
    assert len(tried) <= 3, "of the seven numbers that divide 24 clips"


def test_what_the_compiler_says_does_not_fit_is_read():
    """A batch whose frames alone are more than a chip has."""
    devices, _ = preflight.open_topology("v5e:2x2")
    config = dataclasses.replace(tiny, batch_size=4 * 2**21)
    with pytest.raises(preflight.DoesNotFitError) as error:
        preflight.compile_step(config, devices, LENGTHS)
    assert error.value.needed > 16e9


@pytest.mark.parametrize("refused", [16.9e9, 20e9])
def test_what_the_compiler_refuses_does_not_fit(refused, monkeypatch, tmp_path):
    """Of 16 GiB it gives a program 15.75."""
    tried = []

    def compile_step(config, devices, lengths):
        tried.append(config.micro_batches)
        if config.micro_batches == 1:
            raise preflight.DoesNotFitError(refused)
        return preflight.Compiled({"total": 9e9}, Cost(flops=1.0), 0.0)

    monkeypatch.setattr(preflight, "compile_step", compile_step)
    out = tmp_path / "preflight.json"
    assert preflight.main([f"--config={CONFIG}", "--topology=v5e:2x2", f"--out={out}"]) == 0
    found = json.loads(out.read_text())
    assert (found["fits"], found["micro_batches"]) == (False, 2)
    assert tried == [1, 2]
    with pytest.raises(flags.UsageError, match="File exists"):
        preflight.main([f"--config={CONFIG}", "--topology=v5e:2x2", f"--out={out}/inside.json"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["optim.factors.x_encoder=0"],
            "more chips or a larger fsdp or model.remat=layer or keep_visual_tokens=False",
        ),
        (["fsdp=4", "model.remat=layer", "keep_visual_tokens=False"], "more chips"),
    ],
)
def test_where_nothing_fits_what_could_still_be_set_is_said(changes, words, monkeypatch, capsys):
    def compile_step(config, devices, lengths):
        raise preflight.DoesNotFitError(1e12)

    monkeypatch.setattr(preflight, "compile_step", compile_step)
    overrides = [f"--config.{change}" for change in changes]
    assert preflight.main([f"--config={CONFIG}", "--topology=v5e:2x2", *overrides]) == 1
    assert capsys.readouterr().err.endswith(f"error: no micro_batches fits: take {words}\n")


def test_of_a_mixture_the_longest_clips_count(monkeypatch, tmp_path):
    seen = []

    def compile_step(config, devices, lengths):
        seen.append(config.data.frames)
        return preflight.Compiled({"total": 9e9}, Cost(flops=1.0), 0.0)

    monkeypatch.setattr(preflight, "compile_step", compile_step)
    mixture = (
        "({'dataset': 'emoji_motion/tiny', 'frames': 12}, {'dataset': 'emoji_motion/tiny', 'frames': 1})"
    )
    arguments = [f"--config={CONFIG}", "--topology=v5e:2x2", f"--out={tmp_path / 'out.json'}"]
    assert preflight.main([*arguments, f"--config.data.mixture={mixture}"]) == 0
    assert seen == [12]


@pytest.mark.parametrize(("more", "slices"), [((), 3), (("--chips=4",), 1), (("--chips=8",), 2)])
def test_the_slices_are_those_that_are_compiled_for(more, slices, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "compile_within", lambda *_: None)
    monkeypatch.setattr(preflight, "report", lambda *_: {})
    monkeypatch.setattr(preflight, "print_report", lambda _: None)
    out = tmp_path / "found.json"
    given = [f"--config={CONFIG}", "--topology=v5e:2x2", "--slices=3", f"--out={out}", *more]
    assert preflight.main(given) == 0
    assert json.loads(out.read_text())["slices"] == slices


def test_a_step_that_the_compiler_cannot_do_is_one_sentence(monkeypatch, capsys):
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: some fusion\nand where")

    step = type("Step", (), {"lower": lambda self, *arguments, **options: Lowered()})()
    monkeypatch.setattr(preflight, "jit_train_step", lambda template, config: step)
    assert flags.run(preflight.main, [f"--config={CONFIG}", "--topology=v5e:2x2"]) == 2
    assert capsys.readouterr().err == (
        "error: the TPU's compiler cannot do this step: UNIMPLEMENTED: some fusion\n"
    )


def test_what_goes_from_slice_to_slice_is_counted():
    """A sum over three slices of four chips, each of which sums its own first and sends a fourth; and a ring,
    which leaves a slice at one of the four chips of a host."""
    devices, chip = preflight.open_topology("v5e:2x2", 3)
    mesh = preflight.make_mesh(2, devices)
    axes, rows = mesh.axis_names, PartitionSpec(mesh.axis_names)

    def on_a_device(x):
        onward = [(i, (i + 1) % 12) for i in range(12)]
        x = jax.lax.fori_loop(0, 5, lambda _, x: jax.lax.ppermute(2 * x, axes, onward), x)
        return jax.lax.psum(x, axes)

    function = jax.shard_map(on_a_device, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())
    x = jax.ShapeDtypeStruct((12 * 64, 128), "float32", sharding=NamedSharding(mesh, rows))
    cost = Program(jax.jit(function).lower(x).compile().as_text(), chips_a_host=4).cost()
    size = 64 * 128 * 4
    sent = {kind: (times, sent) for (kind, _), (times, sent) in cost.transfers.items()}
    assert sent["one-to-one between slices"] == (5, 5 * size / 4)
    assert sent["all-reduce between slices"] == (1, pytest.approx(2 * 2 / 3 * size / 4))
    found = preflight.report(tiny, devices, chip, LENGTHS, preflight.Compiled({"total": 1e9}, cost, 0.0))
    assert found["between_slices_bytes"] == pytest.approx(size * (5 / 4 + 1 / 3))
    # 2 x 100 Gbit/s of a host of eight chips.
    assert found["bound_seconds"]["between slices"] == pytest.approx(found["between_slices_bytes"] / 3.125e9)
    assert found["bound_by"] == "between slices"
    assert {row["kind"] for row in found["collectives"]} >= sent.keys()
    preflight.print_report(found | {"memory_bytes": {}})


def test_devices_and_chips():
    """The compiler's default for v4 is a device a core, as no machine shows them; of TPU7x machines do."""
    for name, count, devices_a_chip in (("v4:2x2x1", 4, 1), ("tpu7x:2x2x1", 8, 2)):
        devices, chip = preflight.open_topology(name)
        assert (len(devices), chip.devices) == (count, devices_a_chip)
        preflight.make_mesh(2, devices)


def gather_and_sum(topology: str):
    """Over pairs and over all of eight devices, compiled; for a TPU7x its SparseCores do both."""
    devices, chip = preflight.open_topology(topology)
    mesh = preflight.make_mesh(2, devices)
    rows = PartitionSpec(mesh.axis_names)

    def on_a_device(x):
        return jax.lax.psum(jax.lax.all_gather(x, "fsdp") @ jax.numpy.ones((128, 256)), mesh.axis_names)

    function = jax.shard_map(
        on_a_device, mesh=mesh, in_specs=rows, out_specs=PartitionSpec(), check_vma=False
    )
    x = jax.ShapeDtypeStruct((8 * 512, 128), "float32", sharding=NamedSharding(mesh, rows))
    return devices, chip, preflight.compile_to_text(jax.jit(function).lower(x))[1]


def test_of_a_chip_with_two_devices_both_count():
    _, _, text = gather_and_sum("v5e:2x4")
    one = Program(text).cost()
    devices, chip, text = gather_and_sum("tpu7x:2x2x1")
    assert "sparsecore" in text
    cost = Program(text).cost()
    assert cost.by_kind() == one.by_kind()
    assert cost.flops == one.flops > 0
    compiled = preflight.Compiled({"total": 3e9}, cost, 0.0)
    found = preflight.report(tiny, devices, chip, LENGTHS, compiled)
    assert (found["chips"], found["memory_bytes"]["total"]) == (4, 6e9)
    assert found["flops"] == 2 * cost.flops
    assert found["memory_traffic_bytes"] == 2 * cost.memory_bytes
    assert sum(row["bytes"] for row in found["collectives"]) == 2 * cost.network_bytes
    assert found["bound_seconds"]["network"] == 2 * cost.network_bytes / chip.link_bandwidth
    worst = max(found["bound_seconds"].values())
    assert found["samples_per_second_per_chip"] == pytest.approx(tiny.batch_size / 4 / worst)


def test_attention_s_gradient_on_a_tpu_is_seven_products():
    """By the real compiler: two forward, five backward in one kernel."""
    devices, _ = preflight.open_topology("v5e:1x1")
    place = jax.sharding.SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16, sharding=place)

    def total(q, k, v):
        return splash_attention(q, k, v, None, window=None, causal=False, scale=0.1).astype(jnp.float32).sum()

    with jax.default_matmul_precision("default"):  # of bfloat16 the kernel knows no other
        _, text = preflight.compile_to_text(jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, x, x))
    assert Program(text).cost().flops == 7 * 2 * (2 * 4) * 256 * 256 * 64


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--topology=v5p:5x7"], "no topology that libtpu knows"),
        (["--topology=v5e:0x2"], "a side of 0 chips"),
        (["--topology=v5p:2x2x00"], "a side of 0 chips"),
        (["--topology=abacus:2x2"], "no topology that libtpu knows"),
        (["--topology=v5e:2x2", "--bucket=7"], "--bucket=7: data.length_buckets has 2"),
        (["--topology=v5e:4x4"], "batch_size=8 is not a multiple of the 16 devices"),
        (["--topology=v5e:2x2", "--config.fsdp=8"], "fsdp=8 does not divide the 4 devices"),
        (["--topology=v5e:2x4", "--chips=3", "--config.fsdp=1"], "the first 3 devices fill no rectangle"),
        (["--topology=v5e:2x2", "--chips=5"], "--chips=5: v5e:2x2 has 4"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys):
    assert flags.run(preflight.main, [f"--config={CONFIG}", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1


def test_every_question_has_a_report_of_its_own():
    more = ({}, {"slices": 2}, {"chips": 1}, {"bucket": 0}, {"bucket": 1, "chips": 2})
    names = [preflight.default_report("demo", "v5e:2x2", **asked).as_posix() for asked in more]
    assert names[0] == "runs/demo/preflight-v5e-2x2.json"
    assert len(set(names)) == len(more)
