"""The table of chips."""

import pytest

from jepa_jax.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("TPU7x", "TPU7x"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_a_kind_as_jax_reports_it_finds_its_chip(kind, name):
    assert chip_of(kind).name == name


def test_what_is_not_listed_has_no_chip():
    assert chip_of("cpu") is None
    # Another board than the H100 that is listed: its peak must not pass for that one's.
    assert chip_of("NVIDIA H100 NVL") is None
    # Turing has no products of bfloat16: none of its sheets gives a peak for them.
    assert chip_of("Tesla T4") is None


def test_no_kind_stands_for_two_chips():
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    assert len(set(kinds)) == len(kinds)


def test_figures_are_in_the_units_said():
    v5e, v5p = chip_of("TPU v5 lite"), chip_of("TPU v5")
    # 1,600 and 4,800 Gbit/s of links, 197 and 459 TFLOP/s.
    assert (v5e.link_bandwidth, v5p.link_bandwidth) == (200e9, 600e9)
    # A host of eight chips of v5e has 200 Gbit/s to other slices, one of four of v5p too.
    assert (8 * v5e.slice_bandwidth, 4 * v5p.slice_bandwidth) == (25e9, 25e9)
    assert (v5e.flops, v5p.flops) == (197e12, 459e12)
    for chip in CHIPS:
        # FLOPs per byte of memory traffic and bytes of memory per byte/s: a slip of a unit is 8 or 1,000.
        assert 70 < chip.flops / chip.hbm_bandwidth < 600, chip.name
        assert 0.01 < chip.hbm_bytes / chip.hbm_bandwidth < 0.1, chip.name
        assert chip.source.startswith("https://")
