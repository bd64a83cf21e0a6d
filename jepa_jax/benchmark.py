"""Time a training step, part by part, or beside the same model in PyTorch.

    python -m jepa_jax.benchmark [--config=FILE.py] [--steps=N] [--synthetic] [--out=FILE.json] [--trace=DIR]
        [--compare=pytorch [--part=step|x_encoder|predictor|y_encoder]] [--config.SECTION.FIELD=VALUE ...]

On several hosts start the same command on each, as for training; the first writes what is found.
Times are medians over N steps on batches of the longest length bucket, of a mixture those of the datasets
with the most frames. Parameters are drawn from the seed: `init` plays no part. `--trace` leaves a profile of
some of the steps, every operation on every device, for TensorBoard's XProf or Perfetto. A part is its forward
pass and, where anything in it trains, its backward pass; compiled alone, the parts need not add up to the
step.
"""

if __name__ == "__main__":  # before the imports, which take seconds
    from jepa_jax.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()

import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from jepa_jax import comparison, distributed, flags, loop, timing
from jepa_jax.chips import chip_of
from jepa_jax.config import Config
from jepa_jax.data import features, pipeline, synthetic
from jepa_jax.data.bad_records import BadRecords, TooManyBadRecordsError
from jepa_jax.data.loader import Loader, WorkerEndedError
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.errors import first_line
from jepa_jax.flops import model_flops
from jepa_jax.places import write_whole
from jepa_jax.sharding import check_batch, make_mesh, shard_global_batch

_PEAK_SIZE = 2048
_TRACED_STEPS = 3


def measured_peak() -> float:
    """FLOP/s of a large float32 matrix product on this machine: the best of ten."""
    x = jnp.ones((_PEAK_SIZE, _PEAK_SIZE), jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    best = min(timing.seconds(lambda: product(x, x), 1) for _ in range(10))
    return 2 * _PEAK_SIZE**3 / best


def peak(devices: list[jax.Device]) -> tuple[float | None, str]:
    """FLOP/s of all devices together, None where it is not known, and where the figure is from."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        # Several CPU devices are the cores of one machine.
        size, hosts = _PEAK_SIZE, len({device.process_index for device in devices})
        return hosts * measured_peak(), f"measured in this run: float32 product of {size} x {size} matrices"
    chip = chip_of(kind)
    if chip is None:
        return None, f"no published figure at hand for {kind!r}"
    return chip.flops / chip.devices * len(devices), f"{chip.name}, bfloat16, {chip.source}"


def open_batches(config: Config, wanted: bool) -> tuple[Iterator, str]:
    """Batches of this host, endlessly, and where they come from: the config's dataset, or random
    numbers where they are `wanted` or the dataset is not to be had."""
    if not wanted:
        try:
            if config.data.features:
                features.check_preprocessing(config)
            bad = BadRecords(config.data.max_bad_fraction)
            dataset = pipeline.batches(
                config,
                pipeline.open_sources(config.data, bad),
                load_tokenizers(config),
                bad=bad,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            named = ", ".join(d.dataset or d.path for d in config.data.datasets)
            return Loader(dataset, config.data, bad), named
        except (ValueError, OSError, TooManyBadRecordsError) as error:
            why = f"synthetic, because the dataset is not to be had: {first_line(error)}"
    else:
        why = "synthetic, as told"
    rows = slice(jax.process_index(), None, jax.process_count())
    made = [{k: v[rows] for k, v in synthetic.batch(config, seed).items()} for seed in range(4)]
    return itertools.cycle(made), why


def _time_steps(step: timing.Step, batches: Iterator, mesh, steps: int) -> dict[str, float]:
    """Medians over steps run as training runs them: step N is under way before N - 1 is read."""
    waits, whole, previous, last = [], [], None, None
    for i in range(steps + 3):
        begin = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - begin)
        metrics = step(shard_global_batch(batch, mesh))
        if previous is not None:
            jax.device_get(previous)
        previous = metrics
        now = time.perf_counter()
        if i > 2:  # the first compiles; from the third on each waits for the one before
            whole.append(now - last)
        last = now
    jax.device_get(previous)
    return {"step": statistics.median(whole), "data_wait": statistics.median(waits[3:])}


def check_profiler() -> None:
    """Raise UsageError where JAX's profiler would end the process: it asks an installed libtpu for a TPU that
    is not there, unless JAX is told which platform it is on."""
    is_asked = importlib.util.find_spec("libtpu") is not None and not jax.config.jax_platforms
    if is_asked and jax.default_backend() != "tpu":
        raise flags.UsageError(
            f"--trace: libtpu is installed and there is no TPU, which ends JAX's profiler: set "
            f"JAX_PLATFORMS={jax.default_backend()}"
        )


def _trace(step: timing.Step, batches: Iterator, mesh, folder: pathlib.Path) -> None:
    """Write what JAX's profiler sees of some steps, none of which waits for the one before."""
    with jax.profiler.trace(folder):
        for i in range(_TRACED_STEPS):
            with jax.profiler.StepTraceAnnotation("train_step", step_num=i):
                metrics = step(shard_global_batch(next(batches), mesh))
        jax.block_until_ready(metrics)


def benchmark(
    config: Config, steps: int, *, synthetic_data: bool = False, trace: pathlib.Path | None = None
) -> dict:
    """Times of a config's training step on this machine's devices.

    Args:
      trace: a folder for a profile of some more steps, which are not timed.

    Returns:
      What `report` prints, plain enough for JSON: `step` and every one of `parts` have `seconds` and,
      where they are model, `flops` (of all devices together) and `utilisation` (their share of the
      peak, None where that is not known).

    Raises:
      UsageError: the batch does not divide over the devices and pieces.
      TooManyBadRecordsError: more records than `data.max_bad_fraction` cannot be used.
      WorkerEndedError: one of `data.workers` died.
    """
    with flags.as_usage_errors(ValueError):
        loop.check_hosts(config)
        mesh = make_mesh(config.fsdp)
        distributed.connect(mesh)
        check_batch(config.batch_size, mesh, config.micro_batches)
    pieces, config = config.micro_batches, timing.longest(config)
    (lengths,) = config.data.length_buckets
    with distributed.main_first():  # it may render the dataset, for the others to find
        batches, source = open_batches(config, synthetic_data)
    limit, limit_source = peak(jax.devices())
    flops = {name: x * config.batch_size for name, x in model_flops(config, *lengths).items()}
    with jax.set_mesh(mesh):
        step = timing.Step(config, mesh)
        times = _time_steps(step, batches, mesh, steps)
        if trace is not None:
            _trace(step, batches, mesh, trace)
        host = next(batches)
        times["host_to_device"] = timing.seconds(lambda: shard_global_batch(host, mesh), steps)
        # A batch worked through in pieces is timed by one of them.
        piece = shard_global_batch({k: v[: len(v) // pieces] for k, v in host.items()}, mesh)
        visual = piece.get("visual")
        for name in timing.parts_of(config):
            part = timing.model_part(name, config, mesh)
            inputs = (piece, visual) if name == "predictor" else (piece,)
            times[name] = pieces * timing.seconds(lambda f=part, x=inputs: f(*x), steps)
            if name == "x_encoder":
                visual, _ = part(piece)
        del part, inputs, visual
        times["loss"] = timing.seconds(timing.loss_part(config, mesh), steps)
        times["optimizer"] = timing.seconds(timing.optimizer_part(config, step), steps)

    def figures(name: str, work: float | None) -> dict:
        found = {"seconds": times[name]}
        if work is not None:
            found["flops"] = work
            found["utilisation"] = work / times[name] / limit if limit else None
        return found

    order = ("data_wait", "host_to_device", *timing.parts_of(config), "loss", "optimizer")
    return {
        "config": config.name,
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "data": source,
        "steps": steps,
        "batch_size": config.batch_size,
        "pairs_per_clip": config.data.pairs_per_clip,
        "frames": config.data.frames,
        "image_size": config.model.x_encoder.image_size,
        "query_length": lengths[0],
        "target_length": lengths[1],
        "compute_dtype": config.model.compute_dtype,
        "peak_flops": limit,
        "peak_source": limit_source,
        "load_average": _load(),
        "samples_per_second": config.batch_size / times["step"],
        "step": figures("step", sum(flops.values())),
        "parts": {name: figures(name, flops.get(name)) for name in order},
    }


def _load() -> float | None:
    """Processes that wanted a core over the last minute, this one's included."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def report(found: dict) -> str:
    """A benchmark's findings as a table."""
    limit = found["peak_flops"]
    rows = [
        f"{found['config']} on {found['devices']} x {found['device']}, {found['compute_dtype']}",
        f"{found['batch_size']} clips of {found['frames']} frames of {found['image_size']} px, "
        f"{found['pairs_per_clip']} x ({found['query_length']} query + {found['target_length']} target) "
        "tokens each",
        f"data: {found['data']}",
        f"peak: {limit / 1e9:,.0f} GFLOP/s ({found['peak_source']})" if limit else found["peak_source"],
        "",
        f"{'':16}{'ms':>12}{'GFLOP':>12}{'utilisation':>14}",
    ]
    for name, part in [*found["parts"].items(), ("whole step", found["step"])]:
        row = f"{name.replace('_', ' '):16}{1e3 * part['seconds']:12,.2f}"
        if "flops" in part:
            row += f"{part['flops'] / 1e9:12,.2f}"
            row += f"{part['utilisation']:14.1%}" if part["utilisation"] is not None else f"{'unknown':>14}"
        rows.append(row)
    return "\n".join([*rows, "", f"{found['samples_per_second']:,.2f} samples/s"])


def report_comparison(found: dict) -> str:
    """A comparison's findings as a table."""
    rows = [f"{found['config']}, {found['part']}: both sides in turn, {found['steps']} turns each"]
    for side in comparison.SIDES:
        figures = found[side]
        low, high = min(figures["all_seconds"]), max(figures["all_seconds"])
        rows.append(
            f"{side:10}{figures['seconds']:10.3f} s  ({low:.3f} to {high:.3f}); "
            f"idle it used {figures['idle']:.1%} of a core"
        )
    speedup = found["speedup"]
    low, high = min(found["speedups"]), max(found["speedups"])
    rows.append(
        f"{speedup:.2f} times PyTorch's speed ({1 / speedup:.2f} of its time): the median of "
        f"{found['steps']} ratios from {low:.2f} to {high:.2f}"
    )
    return "\n".join(rows)


def _compare(config: Config, part: str, steps: int) -> dict:
    if jax.process_count() > 1:
        raise flags.UsageError("--compare=pytorch compares on one host")
    if jax.default_backend() != "cpu":
        raise flags.UsageError("--compare=pytorch compares on a CPU: set JAX_PLATFORMS=cpu")
    found = comparison.compare(timing.longest(config), part, steps)
    return {"config": config.name, "part": part, "steps": steps, "load_average": _load()} | found


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--config", default=flags.DEFAULT_CONFIG, help="a Python config file")
    parser.add_argument(
        "--steps", type=flags.count, default=10, help="steps to take the median of (default: 10)"
    )
    parser.add_argument("--synthetic", action="store_true", help="random batches instead of the dataset")
    parser.add_argument(
        "--out", type=flags.local_file, help="a JSON file (default: runs/NAME.benchmark...json)"
    )
    parser.add_argument(
        "--trace", type=flags.local_path, metavar="DIR", help="write a profile of some steps there"
    )
    parser.add_argument("--compare", choices=["pytorch"], help="run the PyTorch assembly alternately")
    parser.add_argument("--part", choices=comparison.PARTS, help="what to compare (default: step)")
    distributed.add_arguments(parser)
    values, overrides = flags.parse(arguments, parser)
    if values.part and not values.compare:
        raise flags.UsageError("--part says what to compare: give --compare=pytorch too")
    if values.trace and values.compare:
        raise flags.UsageError("--trace is of our own step: it goes without --compare")
    config = flags.override(flags.load_config(values.config), overrides)
    distributed.initialize(values)
    if values.trace:
        check_profiler()
    part = values.part or "step"
    kind = f".{values.compare}.{part}" if values.compare else ""
    out = values.out or pathlib.Path(f"runs/{config.name}.benchmark{kind}.json")
    with flags.as_usage_errors(OSError), distributed.together():
        if distributed.is_main():
            out.parent.mkdir(parents=True, exist_ok=True)
        if values.trace:  # every host writes its own
            values.trace.mkdir(parents=True, exist_ok=True)
    # Of several hosts one that stops amid the steps ends the others too, before its error is a usage error.
    with flags.as_usage_errors(TooManyBadRecordsError, WorkerEndedError), distributed.ending_together():
        if values.compare:
            found = _compare(config, part, values.steps)
            text = report_comparison(found)
        else:
            options = {"synthetic_data": values.synthetic, "trace": values.trace}
            found = benchmark(config, values.steps, **options)
            text = report(found)
    if distributed.is_main():
        print(text)
        with flags.as_usage_errors(OSError):
            write_whole(out, json.dumps(found, indent=2) + "\n")
        print(f"written to {out}")
        if values.trace:
            print(f"a profile of {_TRACED_STEPS} steps: tensorboard --logdir={values.trace}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
