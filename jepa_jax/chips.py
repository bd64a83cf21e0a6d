"""Accelerators: published peaks, and where they were published."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      kinds: how JAX names it (`device.device_kind`).
      flops: bfloat16 matrix products, FLOP/s, dense.
      memory: bytes of high-bandwidth memory. bandwidth: of that memory, bytes/s.
      network: bytes/s that a chip sends to its neighbours, over all its links.
      source: where the figures are from.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    network: float
    source: str


_TPU = "https://cloud.google.com/tpu/docs/"
_GPU = "https://www.nvidia.com/en-us/data-center/"
_GBIT = 1e9 / 8
CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32e9, 1228e9, 2400 * _GBIT, _TPU + "v4"),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 1600 * _GBIT, _TPU + "v5e"),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95e9, 2765e9, 4800 * _GBIT, _TPU + "v5p"),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1640e9, 3584 * _GBIT, _TPU + "v6e"),
    Chip("A100", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2039e9, 300e9, _GPU + "a100/"),
    Chip("H100", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9, _GPU + "h100/"),
    Chip("H200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9, _GPU + "h200/"),
)


def find_chip(kind: str) -> Chip | None:
    """The chip that JAX calls so, or None where its peaks are not in the table."""
    return next((chip for chip in CHIPS if kind in chip.kinds), None)
