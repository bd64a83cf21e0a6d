"""What preflight says of a compiled step: its figures, and the tables that are printed of them."""

import dataclasses
from typing import Any

from jepa_jax.chips import Chip
from jepa_jax.config import Config
from jepa_jax.flops import model_flops
from jepa_jax.hlo import Cost

# What another `model.remat` changes of a report.
DIFFER = (
    "fits",
    "micro_batches",
    "memory_bytes",
    "memory_free_fraction",
    "bound_seconds",
    "samples_per_second_per_chip",
    "model_flops_utilisation",
    "seconds_in_turn",
    "utilisation_in_turn",
)
# The share of a chip's memory that a recommended step leaves to the runtime and to evaluation.
_SPARE = 0.15


@dataclasses.dataclass
class Compiled:
    """A step compiled for a topology.

    Attributes:
      memory: bytes on a device by kind; `total` is what they take together at the worst moment.
      cost: what one step does on one device.
      seconds: that the compiler took.
    """

    memory: dict[str, float]
    cost: Cost
    seconds: float


def report(config: Config, devices: list, chip: Chip, lengths: tuple[int, int], compiled: Compiled) -> dict:
    """All figures of a compiled step, ready for JSON: bytes, FLOPs and seconds are of one chip and step."""
    cost, chips = Cost(), len(devices) // chip.devices
    cost.add(compiled.cost, chip.devices)
    memory = {name: value * chip.devices for name, value in compiled.memory.items()}
    useful = model_flops(config, *lengths)
    clips = config.batch_size / chips
    work = sum(useful.values()) * clips
    bounds = {
        "compute": cost.flops / chip.flops,
        "memory": cost.memory_bytes / chip.hbm_bandwidth,
        "network": cost.network_bytes / chip.link_bandwidth,
    }
    if cost.transfers and chip.slice_bandwidth:
        bounds["between slices"] = cost.transfer_bytes / chip.slice_bandwidth
    slowest = max(bounds, key=bounds.get)
    # Never less than what each bounds by itself.
    by_part = cost.seconds_in_turn(chip.flops, chip.hbm_bandwidth)
    in_turn = max(sum(by_part.values()), bounds[slowest])
    by_part = sorted(by_part.items(), key=lambda item: -item[1])
    collectives = [
        {"kind": kind, "operands": operands, "times": count, "bytes": sent}
        for (kind, operands), (count, sent) in sorted(
            (cost.collectives | cost.transfers).items(), key=lambda item: -item[1][1]
        )
    ]
    return {
        "chips": chips,
        "chip": dataclasses.asdict(chip),
        "batch_size": config.batch_size,
        "micro_batches": config.micro_batches,
        "query_length": lengths[0],
        "target_length": lengths[1],
        "memory_bytes": memory,
        "memory_free_fraction": 1 - memory["total"] / chip.hbm_bytes,
        "flops": cost.flops,
        "model_flops": work,
        "model_flops_by_part": {name: value * clips for name, value in useful.items()},
        "memory_traffic_bytes": cost.memory_bytes,
        "network_bytes": cost.by_kind(),
        "between_slices_bytes": cost.transfer_bytes,
        "collectives": collectives,
        "bound_seconds": bounds,
        "bound_by": slowest,
        "seconds_in_turn": in_turn,
        "seconds_in_turn_by_part": {part or "other": seconds for part, seconds in by_part},
        "samples_per_second_per_chip": clips / bounds[slowest],
        "model_flops_utilisation": work / (bounds[slowest] * chip.flops),
        "utilisation_in_turn": work / (in_turn * chip.flops),
        "compile_seconds": compiled.seconds,
    }


def best_remat(rows: dict[str, dict]) -> str | None:
    """The fastest, one instruction after the other, of those that fit as configured and leave memory to
    spare."""
    spare = [name for name, row in rows.items() if row["fits"] and row["memory_free_fraction"] >= _SPARE]
    return min(spare, key=lambda name: rows[name]["seconds_in_turn"], default=None)


def print_report(found: dict[str, Any]) -> None:
    """The figures as a table."""
    gb = lambda value: f"{value / 1e9:10.3f} GB"
    chip, bounds = found["chip"], found["bound_seconds"]
    plural = "s" * (found["chips"] > 1)
    print(f"\n{found['chips']} chip{plural} of {chip['name']} ({chip['source']})")
    print(
        f"batch {found['batch_size']:,} in {found['micro_batches']} piece(s), texts of "
        f"{found['query_length']} and {found['target_length']} tokens; compiled in "
        f"{found['compile_seconds']:.0f} s"
    )
    print("\nmemory of a chip")
    for name, value in found["memory_bytes"].items():
        print(f"  {name:30}{gb(value)}")
    print(f"  {'of':30}{gb(chip['hbm_bytes'])}, {found['memory_free_fraction']:.0%} free")
    print("\na step on a chip                    amount       peak, per s         at best")
    rows = (
        ("compute", "TFLOP", 1e12, found["flops"], chip["flops"]),
        ("memory", "GB   ", 1e9, found["memory_traffic_bytes"], chip["hbm_bandwidth"]),
        ("network", "GB   ", 1e9, sum(found["network_bytes"].values()), chip["link_bandwidth"]),
        ("between slices", "GB   ", 1e9, found["between_slices_bytes"], chip["slice_bandwidth"]),
    )
    for name, unit, scale, amount, peak in rows:
        if name in bounds:
            best = f"{peak / scale:10.4g} {unit}{bounds[name] * 1e3:12.2f} ms"
            print(f"  {name:28}{amount / scale:10.2f} {unit} {best}")
        elif amount:
            print(f"  {name:28}{amount / scale:10.2f} {unit}    unknown")
    print("\ncollectives                      times         sent  operands")
    for row in found["collectives"][:12]:
        print(f"  {row['kind']:28}{row['times']:8.0f}{gb(row['bytes'])}  {row['operands']}")
    rest = found["collectives"][12:]
    if rest:
        print(f"  {len(rest)} smaller ones {gb(sum(row['bytes'] for row in rest))}")
    print(
        f"\nbound by {found['bound_by']}: at best {found['samples_per_second_per_chip']:.1f} samples/s/chip"
    )
    print(
        f"model FLOPs {found['model_flops'] / 1e12:.2f} TFLOP, utilisation at most "
        f"{found['model_flops_utilisation']:.1%}"
    )
    milliseconds = found["seconds_in_turn"] * 1e3
    print(
        f"one instruction after the other, each at a peak: {milliseconds:,.1f} ms, "
        f"utilisation {found['utilisation_in_turn']:.1%}"
    )
    parts = found["seconds_in_turn_by_part"].items()
    print("of these " + ", ".join(f"{name} {seconds * 1e3:,.1f}" for name, seconds in parts))


def print_remat(rows: dict[str, dict]) -> None:
    """The figures of `every_remat` as a table, and which to take."""
    print(f"\n{'model.remat':20}{'memory':>10}   free   {'bounds, ms':28}  utilisation at most  in turn")
    for name, row in rows.items():
        if "memory_bytes" not in row:
            why = (
                f"{row['needed_bytes'] / 1e9:7.1f} GB   does not fit" if "error" not in row else row["error"]
            )
            print(f"  {name:18}{why}")
            continue
        bounds = " / ".join(f"{seconds * 1e3:,.1f}" for seconds in row["bound_seconds"].values())
        total = f"{row['memory_bytes']['total'] / 1e9:7.1f} GB{row['memory_free_fraction']:7.0%}"
        shares = f"{row['model_flops_utilisation']:19.1%}{row['utilisation_in_turn']:9.1%}"
        pieces = "" if row["fits"] else f"  in {row['micro_batches']} pieces"
        print(f"  {name:18}{total}   {bounds:28}  {shares}{pieces}")
    best = best_remat(rows)
    if best is None:
        print(f"none leaves {_SPARE:.0%} of the memory free: take more micro_batches, or more chips")
    else:
        print(f"fastest with {_SPARE:.0%} of the memory free: --config.model.remat={best}")
