"""Accelerators and their published figures: what a chip computes, holds and moves at best."""

import dataclasses

_GIB = 2**30  # data sheets write GB and mean this: the runtimes report whole GiB, less what they keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    Attributes:
      name: as its maker calls it.
      device_kinds: as JAX reports it, `jax.Device.device_kind`.
      flops: dense bfloat16 FLOP/s at peak, summed in float32.
      hbm_bytes: memory.
      hbm_bandwidth: bytes/s between chip and memory.
      link_bandwidth: bytes/s sent to other chips, all links together (ICI on TPUs, NVLink on GPUs, PCI
        Express where there is none): of a figure that counts both ways together, half.
      source: address of the data sheet.
      slice_bandwidth: bytes/s a chip to other slices of TPUs, over the data centre's network (DCN); None
        where the data sheet does not say.
      devices: that JAX makes of a chip. Each has an equal share of all of the above.
    """

    name: str
    device_kinds: tuple[str, ...]
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    source: str
    slice_bandwidth: float | None = None
    devices: int = 1


CHIPS = (
    Chip(
        name="TPU v4",
        device_kinds=("TPU v4",),
        flops=275e12,
        hbm_bytes=32 * _GIB,
        hbm_bandwidth=1200e9,
        # Six links of 50 GB/s: arXiv 2304.01433, table 4.
        link_bandwidth=300e9,
        source="https://cloud.google.com/tpu/docs/v4",
    ),
    Chip(
        name="TPU v5e",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        flops=197e12,
        hbm_bytes=16 * _GIB,
        hbm_bandwidth=819e9,
        link_bandwidth=1600e9 / 8,
        source="https://cloud.google.com/tpu/docs/v5e",
        slice_bandwidth=6.4e12 / 256 / 8,  # a pod of 256 chips has 6.4 Tbit/s
    ),
    Chip(
        name="TPU v5p",
        device_kinds=("TPU v5", "TPU v5p"),
        flops=459e12,
        hbm_bytes=95 * _GIB,
        hbm_bandwidth=2765e9,
        link_bandwidth=4800e9 / 8,
        source="https://cloud.google.com/tpu/docs/v5p",
        slice_bandwidth=50e9 / 8,
    ),
    Chip(
        name="TPU v6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        flops=918e12,
        hbm_bytes=32 * _GIB,
        hbm_bandwidth=1640e9,
        link_bandwidth=3200e9 / 8,
        source="https://cloud.google.com/tpu/docs/v6e",
        slice_bandwidth=25.6e12 / 256 / 8,  # 25.6 Tbit/s
    ),
    Chip(
        name="TPU7x",
        device_kinds=("TPU7x",),
        flops=2307e12,
        hbm_bytes=192 * _GIB,
        hbm_bandwidth=7380e9,
        link_bandwidth=1200e9 / 2,
        source="https://docs.cloud.google.com/tpu/docs/tpu7x",
        slice_bandwidth=100e9 / 8,
        devices=2,
    ),
    Chip(
        name="A100 40GB",
        device_kinds=("NVIDIA A100-SXM4-40GB",),
        flops=312e12,
        hbm_bytes=40 * _GIB,
        hbm_bandwidth=1555e9,
        link_bandwidth=600e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/a100/",
    ),
    Chip(
        name="A100 80GB",
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        flops=312e12,
        hbm_bytes=80 * _GIB,
        hbm_bandwidth=2039e9,
        link_bandwidth=600e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/a100/",
    ),
    Chip(
        name="H100 SXM",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        # The sheet's 1,979 is with structured sparsity.
        flops=989.5e12,
        hbm_bytes=80 * _GIB,
        hbm_bandwidth=3350e9,
        link_bandwidth=900e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/h100/",
    ),
    Chip(
        name="H200 SXM",
        device_kinds=("NVIDIA H200",),
        flops=989.5e12,  # as above
        hbm_bytes=141 * _GIB,
        hbm_bandwidth=4800e9,
        link_bandwidth=900e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/h200/",
    ),
    Chip(
        name="B200",
        device_kinds=("NVIDIA B200",),
        # The sheet is of eight together, FP8 at twice this.
        flops=2250e12,
        hbm_bytes=180 * _GIB,
        hbm_bandwidth=8000e9,
        link_bandwidth=1800e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/dgx-b200/",
    ),
    Chip(
        name="A100 PCIe 40GB",
        device_kinds=("NVIDIA A100-PCIE-40GB",),
        flops=312e12,
        hbm_bytes=40 * _GIB,
        hbm_bandwidth=1555e9,
        link_bandwidth=64e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/a100/",
    ),
    Chip(
        name="A100 PCIe 80GB",
        device_kinds=("NVIDIA A100 80GB PCIe",),
        flops=312e12,
        hbm_bytes=80 * _GIB,
        hbm_bandwidth=1935e9,
        link_bandwidth=64e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/a100/",
    ),
    Chip(
        name="H100 PCIe",
        device_kinds=("NVIDIA H100 PCIe",),
        # Half of the 1,513 with structured sparsity; the L4 likewise.
        flops=756.5e12,
        hbm_bytes=80 * _GIB,
        hbm_bandwidth=2000e9,
        link_bandwidth=128e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/h100/",
    ),
    Chip(
        name="L4",
        device_kinds=("NVIDIA L4",),
        flops=121e12,
        hbm_bytes=24 * _GIB,
        hbm_bandwidth=300e9,
        link_bandwidth=64e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/l4/",
    ),
    Chip(
        name="L40S",
        device_kinds=("NVIDIA L40S",),
        flops=362e12,
        hbm_bytes=48 * _GIB,
        hbm_bandwidth=864e9,
        link_bandwidth=64e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/l40s/",
    ),
    Chip(
        name="A10",
        device_kinds=("NVIDIA A10",),
        flops=125e12,
        hbm_bytes=24 * _GIB,
        hbm_bandwidth=600e9,
        link_bandwidth=64e9 / 2,
        source="https://www.nvidia.com/en-us/data-center/products/a10-gpu/",
    ),
    Chip(
        name="RTX 4090",
        device_kinds=("NVIDIA GeForce RTX 4090",),
        flops=165.2e12,
        hbm_bytes=24 * _GIB,
        hbm_bandwidth=1008e9,
        link_bandwidth=64e9 / 2,
        source="https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    Chip(
        name="RTX 3090",
        device_kinds=("NVIDIA GeForce RTX 3090",),
        flops=71e12,
        hbm_bytes=24 * _GIB,
        hbm_bandwidth=936e9,
        link_bandwidth=64e9 / 2,
        source="https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX reports under this name; None for a CPU and for kinds that are not listed."""
    return next((chip for chip in CHIPS if device_kind in chip.device_kinds), None)
