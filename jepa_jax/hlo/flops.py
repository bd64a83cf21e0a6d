"""FLOPs of an instruction: of matrix products and convolutions, two for a multiply-add."""

import functools
import math
import re

from jepa_jax.hlo.text import Array, Instruction


def flops_of(i: Instruction, body: dict[str, Instruction]) -> float:
    """Of one instruction that is no fusion.

    Args:
      body: the computation it is in.
    """
    if i.opcode == "convolution":
        return _convolution_flops(i, *(body[x].arrays[0] for x in i.operands))
    if i.opcode == "dot":
        left = body[i.operands[0]].arrays[0].dims
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.text).group(1)
        return 2 * math.prod(i.arrays[0].dims) * math.prod(left[int(d)] for d in dims.split(",") if d)
    if i.opcode == "custom-call" and "splash_mha" in i.name:
        return _splash_flops(i, body)
    return 0.0


def _convolution_flops(i: Instruction, left: Array, right: Array) -> float:
    """Two for each product of an input with a kernel element. The TPU writes every matrix product as a
    convolution, a batched one with dilation, so that most of the pairs it names are of padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.text)
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", i.text) or [""])[0][8:-1]))
    inputs, kernel, outputs = labels.groups()
    split = lambda name, default, n: (
        [int(v) for v in window[name].split("x")] if name in window else [default] * n
    )
    spatial = sorted(c for c in outputs if c.isdigit())
    n = len(spatial)
    sizes, strides = split("size", 1, n), split("stride", 1, n)
    spread, holes = split("lhs_dilate", 1, n), split("rhs_dilate", 1, n)
    pads = [int(p.split("_")[0]) for p in window["pad"].split("x")] if "pad" in window else [0] * n
    pairs = 1
    for k, label in enumerate(spatial):
        size, there = left.dims[inputs.index(label)], i.arrays[0].dims[outputs.index(label)]
        pairs *= _valid_pairs(size, there, sizes[k], strides[k], spread[k], holes[k], pads[k])
    batch = i.arrays[0].dims[outputs.index("b")]
    features = i.arrays[0].dims[outputs.index("f")]
    return 2.0 * batch * features * right.dims[kernel.index("i")] * pairs


@functools.cache
def _valid_pairs(size: int, outputs: int, kernel: int, stride: int, spread: int, holes: int, pad: int) -> int:
    """(output, kernel) positions along one axis that meet an input element, not padding nor a gap."""
    total = 0
    for k in range(kernel):
        for o in range(outputs):
            place = o * stride + k * holes - pad
            total += place >= 0 and place % spread == 0 and place // spread < size
    return total


def _splash_flops(i: Instruction, body: dict[str, Instruction]) -> float:
    """Two products of [L, A] by [A, L] forward; backward three for the queries, four for keys and
    values, the logits computed again in each, or five where one kernel does both."""
    given = [body[x].arrays[0] for x in i.operands]
    # Masks and segments are integers; queries come before keys and values.
    queries = next(a.dims for a in given if a.dtype[0] in "bf" and len(a.dims) >= 3)
    products = 3 if "_dq" in i.name else 4 if "_dkv" in i.name else 2
    # The one that does both has a result more, a gradient of the queries by each block of keys.
    if "_dkv" in i.name and any(len(a.dims) > len(queries) for a in i.arrays):
        products = 5
    *batch, length, size = queries
    return 2.0 * products * math.prod(batch) * length * length * size
