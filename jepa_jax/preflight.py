"""What a run will cost on a TPU pod, before renting one: the TPU's compiler needs no TPU.

    python -m jepa_jax.preflight --config=FILE.py --topology=v5p:4x4x8 [--config.SECTION.FIELD=VALUE ...]

It compiles the run's own training step, prints memory, work, traffic and the time that each bounds, and
writes the same as JSON; with --every-remat it does so for each `model.remat` and says which is fastest.
Needs the TPU's compiler (the extra `preflight`).
"""

import os

if __name__ == "__main__":  # before JAX is imported: the compiler need not look for the machine it is on
    os.environ.update(
        {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5p-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            # It takes no chip, so another that compiles need not wait.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
    )

import bisect
import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import sys
import tempfile
import time
from typing import get_args

import jax
from jax.experimental import topologies

from jepa_jax import flags
from jepa_jax.chips import Chip, chip_of
from jepa_jax.config import Config, Remat
from jepa_jax.errors import first_line
from jepa_jax.hlo import Program
from jepa_jax.places import write_whole
from jepa_jax.preflight_report import DIFFER, Compiled, print_remat, print_report, report
from jepa_jax.sharding import check_batch, make_mesh
from jepa_jax.state import abstract_state
from jepa_jax.step import SCOPES, abstract_batch, jit_train_step


class DoesNotFitError(Exception):
    """There is no plan within a device's memory; `needed` is what the best takes, in bytes."""

    def __init__(self, needed: float):
        super().__init__(f"{needed / 1e9:.1f} GB")
        self.needed = needed


def open_topology(name: str, slices: int = 1) -> tuple[list, Chip]:
    """The devices of a topology such as "v5p:4x4x8", and what chip they are.

    Raises:
      UsageError: libtpu is not installed, the name is none, or the chip is not in the table.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise flags.UsageError("preflight needs the TPU's compiler: pip install 'jepa_jax[preflight]'")
    if re.search(r"[:=_x]0+(x|_|$)", name):  # libtpu would end the process
        raise flags.UsageError(f"--topology={name!r} has a side of 0 chips")
    options = {"num_slices": slices} if slices > 1 else {}
    if name.startswith("v4"):
        options["chip_config_name"] = "megacore"  # a device a chip, as on the machines, not one a core
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # libtpu raises what it likes
        raise flags.UsageError(
            f"--topology={name!r} is no topology that libtpu knows (v5e:4x4, v5p:2x2x2 and v6e:16x16 are): "
            f"{first_line(error)}"
        ) from error
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise flags.UsageError(f"--topology={name!r}: no peaks are known of a {devices[0].device_kind}")
    return list(devices), chip


def _shard_bytes(tree) -> float:
    """Of a device's share of a tree of shapes with shardings."""

    def size(x) -> float:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 8.0
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(size(x) for x in jax.tree.leaves(tree))


def compile_to_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """A program compiled, and its optimised text: of some for v5p and TPU7x the compiler's own dump alone
    has it."""
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=dump)
        return compiled, next(pathlib.Path(folder).glob("*.after_optimizations.txt")).read_text()


def compile_step(config: Config, devices: list, lengths: tuple[int, int]) -> Compiled:
    """The training step of a run, as the run itself would compile it.

    Args:
      lengths: (query, target) tokens of the batch.

    Raises:
      DoesNotFitError: it does not fit a device's memory.
      ValueError: the batch does not divide over the devices, they form no mesh, or the compiler fails.
    """
    try:
        mesh = make_mesh(config.fsdp, devices)
    except AssertionError as error:  # how JAX says it
        raise ValueError(f"the first {len(devices)} devices fill no rectangle of the topology") from error
    check_batch(config.batch_size, mesh, config.micro_batches)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        graphdef, template = abstract_state(config, mesh)
        batch = abstract_batch(config, lengths, mesh)
        lowered = jit_train_step(template, config).lower(template, batch, graphdef=graphdef, config=config)
        try:
            compiled, text = compile_to_text(lowered)
        except jax.errors.JaxRuntimeError as error:
            used = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)? (?:of|exceeds)", str(error))
            if used is None:
                raise ValueError(f"the TPU's compiler cannot do this step: {error}") from error
            power = "KMGT".index(used.group(2)) + 1
            raise DoesNotFitError(float(used.group(1)) * 1024**power) from error
    found = compiled.memory_analysis()
    arguments = {
        "trained parameters": _shard_bytes(template.trained),
        "frozen parameters": _shard_bytes(template.frozen),
        "optimizer": _shard_bytes(template.optimizer),
        "batch": _shard_bytes(batch),
    }
    memory = {
        **arguments,
        "padding of these": max(found.argument_size_in_bytes - sum(arguments.values()), 0.0),
        "new outputs": max(found.output_size_in_bytes - found.alias_size_in_bytes, 0.0),
        "activations and temporaries": found.temp_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values())
    hosts = {d.process_index for d in devices}
    cost = Program(text, chips_a_host=len(devices) // len(hosts), parts=SCOPES).cost()
    return Compiled(memory, cost, time.perf_counter() - start)


def compile_within(chip: Chip, config: Config, devices: list, lengths: tuple[int, int]) -> Compiled:
    """`compile_step`, whose compiler may plan a little beyond the memory.

    Raises:
      DoesNotFitError, ValueError: as there.
    """
    compiled = compile_step(config, devices, lengths)
    if compiled.memory["total"] > chip.hbm_bytes / chip.devices:
        raise DoesNotFitError(compiled.memory["total"])
    return compiled


def smallest_that_fits(
    config: Config, devices: list, lengths: tuple[int, int], chip: Chip, needed: float
) -> tuple[int, Compiled] | None:
    """The smallest `micro_batches` whose step fits, and that step.

    More pieces never take more memory. Each try is a compilation of minutes, so the next number is not
    the middle of those left but what the last two say of a part that stays and a part that is divided.

    Args:
      needed: bytes a device of the step with `config.micro_batches`, which does not fit.
    """
    memory = chip.hbm_bytes / chip.devices
    clips = config.batch_size // len(devices)
    candidates = [k for k in range(config.micro_batches + 1, clips + 1) if clips % k == 0]
    best = None
    # Of the first, all is taken to be divided.
    tried = [(math.inf, 0.0), (config.micro_batches, needed)]
    while candidates:
        (k1, bytes1), (k2, bytes2) = tried[-2:]
        divided = (bytes2 - bytes1) / (1 / k2 - 1 / k1)
        room = memory - (bytes2 - divided / k2)
        guess = divided / room if room > 0 else math.inf
        place = min(bisect.bisect_left(candidates, guess), len(candidates) - 1)
        pieces = candidates[place]
        try:
            cut = dataclasses.replace(config, micro_batches=pieces)
            compiled = compile_within(chip, cut, devices, lengths)
            needed = compiled.memory["total"]
        except DoesNotFitError as error:
            compiled, needed = None, error.needed
        print(f"micro_batches={pieces} takes {needed * chip.devices / 1e9:.1f} GB a chip", file=sys.stderr)
        tried.append((pieces, needed))
        if compiled is None:  # the compiler keeps a little of the memory to itself: `needed` may be less
            candidates = candidates[place + 1 :]
        else:
            best, candidates = (pieces, compiled), candidates[:place]
    return best


def other_remedies(config: Config, devices: int) -> list[str]:
    """What in a configuration could still be set to take less of a device's memory."""
    remedies = []
    if config.fsdp < devices:
        remedies.append("a larger fsdp")
    if config.model.remat != "layer":
        remedies.append("model.remat=layer")
    if config.keep_visual_tokens and not config.optim.factors.x_encoder:
        remedies.append("keep_visual_tokens=False")
    return remedies


def every_remat(
    config: Config, devices: list, chip: Chip, lengths: tuple[int, int], configured: dict
) -> dict[str, dict]:
    """The step with every `model.remat`: the figures of `report` that differ, and whether it fits; of one
    that does not, what it would take; of one that the compiler cannot do, why.

    Args:
      config: as the user has it.
      configured: what is known of its own, as `report` has it, and whether that fits.
    """
    rows = {}
    for remat in get_args(Remat):
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        try:
            if other == config:
                row = configured
            else:
                print(f"compiling with model.remat={remat}", file=sys.stderr)
                compiled = compile_within(chip, other, devices, lengths)
                row = {"fits": True} | report(other, devices, chip, lengths, compiled)
            rows[remat] = {name: row[name] for name in DIFFER}
        except DoesNotFitError as error:
            rows[remat] = {"fits": False, "needed_bytes": error.needed * chip.devices}
        except ValueError as error:
            rows[remat] = {"fits": False, "error": first_line(error)}
    return rows


def default_report(
    name: str, topology: str, *, slices: int = 1, chips: int | None = None, bucket: int = -1
) -> pathlib.Path:
    """Where the report of a config goes: another file for each question that is asked about it."""
    parts = [topology.replace(":", "-")]
    parts += [f"{slices}-slices"] * (slices > 1) + [f"{chips}-chips"] * (chips is not None)
    parts += [f"bucket{bucket}"] * (bucket != -1)
    return pathlib.Path("runs", name, f"preflight-{'-'.join(parts)}.json")


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    parser = flags.parser(__doc__)
    parser.add_argument("--config", default=flags.DEFAULT_CONFIG, help="a Python config file")
    parser.add_argument("--topology", required=True, help="chip and shape, such as v5p:4x4x8")
    parser.add_argument("--slices", type=flags.count, default=1, help="so many slices of that shape")
    parser.add_argument("--chips", type=flags.count, help="only the first so many chips of it")
    parser.add_argument("--bucket", type=int, default=-1, help="which of data.length_buckets (default: last)")
    parser.add_argument(
        "--every-remat",
        action="store_true",
        help="compile it with every model.remat and say which is fastest",
    )
    parser.add_argument(
        "--out", type=flags.local_file, help="JSON file (default: runs/NAME/preflight-TOPOLOGY.json)"
    )
    values, overrides = flags.parse(arguments, parser)
    config = flags.override(flags.load_config(values.config), overrides)
    buckets = config.data.length_buckets
    if not -len(buckets) <= values.bucket < len(buckets):
        raise flags.UsageError(f"--bucket={values.bucket}: data.length_buckets has {len(buckets)}")
    lengths = buckets[values.bucket]
    # Of a mixture, the step with the most frames.
    frames = max(dataset.frames for dataset in config.data.datasets)
    config = given = dataclasses.replace(config, data=dataclasses.replace(config.data, frames=frames))
    devices, chip = open_topology(values.topology, values.slices)
    chips = len(devices) // chip.devices
    if (values.chips or 1) > chips:
        raise flags.UsageError(f"--chips={values.chips}: {values.topology} has {chips}")
    devices = devices[: (values.chips or chips) * chip.devices]
    fits = True
    with flags.as_usage_errors(ValueError):
        try:
            compiled = compile_within(chip, config, devices, lengths)
        except DoesNotFitError as error:
            fits = False
            gigabytes = error.needed * chip.devices / 1e9
            print(
                f"{config.name} does not fit {values.topology}: {gigabytes:.1f} GB a chip of "
                f"{chip.hbm_bytes / 1e9:.0f}; looking for the smallest micro_batches that does",
                file=sys.stderr,
            )
            found = smallest_that_fits(config, devices, lengths, chip, error.needed)
            if found is None:
                remedies = ["more chips", *other_remedies(config, len(devices))]
                print(f"error: no micro_batches fits: take {' or '.join(remedies)}", file=sys.stderr)
                return 1
            pieces, compiled = found
            config = dataclasses.replace(config, micro_batches=pieces)
    slices = len({getattr(d, "slice_index", 0) for d in devices})  # --chips may have cut some off
    result = {"config": config.name, "topology": values.topology, "slices": slices, "fits": fits}
    result |= report(config, devices, chip, lengths, compiled)
    print_report(result)
    if not fits:
        print(f"\nas configured it does not fit: set --config.micro_batches={config.micro_batches}")
    if values.every_remat:
        result["remat"] = every_remat(given, devices, chip, lengths, result)
        print_remat(result["remat"])
    out = values.out or default_report(
        config.name, values.topology, slices=values.slices, chips=values.chips, bucket=values.bucket
    )
    with flags.as_usage_errors(OSError):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
