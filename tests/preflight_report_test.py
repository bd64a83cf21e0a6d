"""What preflight makes of a compiled step's cost, and which remat it recommends."""

import dataclasses

import pytest

from jepa_jax import preflight_report
from jepa_jax.chips import CHIPS
from jepa_jax.hlo import Cost
from jepa_jax.preflight_report import Compiled, best_remat, print_remat
from tests.tiny_config import config as tiny

CHIP = dataclasses.replace(CHIPS[0], flops=100.0, hbm_bandwidth=10.0, hbm_bytes=1000)


def report(cost: Cost, devices_a_chip: int) -> dict:
    chip = dataclasses.replace(CHIP, devices=devices_a_chip)
    compiled = Compiled({"total": 500 / devices_a_chip}, cost, 0.0)
    return preflight_report.report(tiny, [None] * devices_a_chip, chip, (4, 8), compiled)


@pytest.mark.parametrize("devices", [1, 2])
def test_what_computes_and_what_moves_take_turns(devices):
    """A second's work and a second's traffic, of each device its share: together in one instruction, apart
    in two, and apart while a copy of three seconds goes on beside them."""
    work, moved = 100.0 / devices, 10.0 / devices
    together, apart = Cost(), Cost()
    together.run(work, moved)
    apart.run(work, 0.0)
    apart.run(0.0, moved)
    copying = dataclasses.replace(apart, memory_bytes=apart.memory_bytes + 3 * moved)
    for cost, seconds, bound in ((together, 1, 1), (apart, 2, 1), (copying, 4, 4)):
        found = report(cost, devices)
        assert max(found["bound_seconds"].values()) == pytest.approx(bound)
        assert found["seconds_in_turn"] == pytest.approx(seconds)
        assert found["utilisation_in_turn"] == pytest.approx(found["model_flops"] / (seconds * CHIP.flops))
        assert found["memory_free_fraction"] == 0.5


def row(free: float, at_most: float, in_turn: float, fits: bool = True) -> dict:
    return {
        "fits": fits,
        "micro_batches": 1 if fits else 2,
        "memory_bytes": {"total": (1 - free) * 10e9},
        "memory_free_fraction": free,
        "bound_seconds": {"compute": 1 / at_most, "memory": 0.5},
        "model_flops_utilisation": at_most,
        "seconds_in_turn": 1 / in_turn,
        "utilisation_in_turn": in_turn,
    }


def test_the_fastest_in_turn_that_leaves_memory_is_recommended(capsys):
    rows = {
        "none": {"fits": False, "needed_bytes": 40e9},
        "elementwise": row(0.1, 0.95, 0.8),  # too little left
        "mlp": row(0.3, 0.8, 0.6),  # the bounds say less of it than of the next
        "layer": row(0.6, 0.9, 0.5),
    }
    assert best_remat(rows) == "mlp"
    print_remat(rows)
    table = capsys.readouterr().out
    assert "40.0 GB   does not fit" in table
    assert "7.0 GB    30%   1,250.0 / 500.0" in table
    assert table.endswith("--config.model.remat=mlp\n")
    # What fits in pieces alone is not what was asked for; what the compiler cannot do is said.
    rows |= {"mlp": row(0.3, 0.8, 0.6, fits=False), "layer": {"fits": False, "error": "UNIMPLEMENTED: so"}}
    assert best_remat(rows) is None
    print_remat(rows)
    table = capsys.readouterr().out
    assert "in 2 pieces" in table
    assert "UNIMPLEMENTED: so" in table
    assert "none leaves 15% of the memory free" in table
