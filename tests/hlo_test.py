"""The reader of compiled programs: loops as often as they run, products, traffic, collectives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jepa_jax.hlo import HloError, Program
from jepa_jax.hlo.flops import _valid_pairs
from jepa_jax.hlo.text import group_size
from jepa_jax.sharding import make_mesh

N, LAYERS = 64, 7


def cost(function, *arguments, **options):
    return Program(jax.jit(function, **options).lower(*arguments).compile().as_text()).cost()


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    """XLA's own analysis counts it once."""
    x, w = jnp.ones((N, N)), jnp.ones((LAYERS, N, N))
    scanned = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    found = cost(scanned, x, w)
    assert found.flops == LAYERS * 2 * N**3
    # Every layer's weights are read once, and the stream is read and written a few times.
    assert LAYERS * N * N * 4 * 2 <= found.memory_bytes <= LAYERS * N * N * 4 * 8


def test_instructions_in_turn_wait_for_their_work_or_their_traffic():
    """What a product works and what others move is not done at the same time."""
    x, w = jnp.ones((N, N)), jnp.ones((LAYERS, N, N))
    scanned = lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
    found = cost(scanned, x, w)
    assert found.seconds_in_turn(1.0, 1e20) == {"": pytest.approx(found.flops)}
    assert found.seconds_in_turn(1e20, 1.0) == {"": pytest.approx(found.memory_bytes)}
    # A product's work takes a thousand times what its traffic does; all other traffic is added to it.
    product, moved = 2 * N**3, 3 * N * N * 4
    in_turn = found.seconds_in_turn(1.0, moved / product * 1000)[""]
    assert found.flops < in_turn < found.flops * 1.01


def test_instructions_of_a_part_are_told_apart_forward_and_backward():
    """In a loop too, of whose body the compiler says less; a gradient's products are twice its function's."""
    x, w = jnp.ones((N, N)), jnp.ones((LAYERS, N, N))

    def parts(x, w):
        with jax.named_scope("first"):
            x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
        with jax.named_scope("second"):
            x = jnp.tanh(x @ x)
        return jnp.sum(x @ w[0])

    text = jax.jit(jax.grad(parts, argnums=(0, 1))).lower(x, w).compile().as_text()
    found = Program(text, parts=("first", "second")).cost()
    one = 2 * N**3
    by_part = found.seconds_in_turn(1.0, 1e20)
    assert by_part["first"] == pytest.approx(3 * LAYERS * one)
    assert by_part["second"] == pytest.approx(3 * one)
    assert sum(by_part.values()) == pytest.approx(found.flops)


def test_loops_inside_loops_and_gradients():
    x, w = jnp.ones((N, N)), jnp.ones((LAYERS, N, N))

    def nested(x, w):
        inner = lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ x), x)
        return jnp.sum(jax.lax.scan(lambda x, w: (inner(x @ w), None), x, w)[0])

    assert cost(nested, x, w).flops == LAYERS * (1 + 3) * 2 * N**3


def test_the_dearer_branch_of_a_conditional_counts():
    x = jnp.ones((N, N))
    either = lambda flag, x: jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert cost(either, True, x).flops == 2 * 2 * N**3


@pytest.mark.parametrize("fsdp", [2, 8])
def test_collectives_by_kind_and_bytes(fsdp):
    """A device sends its share to the others of its group, and takes part in every step of a loop."""
    mesh = make_mesh(fsdp)
    rows, share = PartitionSpec(("data", "fsdp")), PartitionSpec(None, "fsdp")

    def on_a_device(x, w):
        def layer(x, w):
            whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
            return jax.lax.ppermute(x @ whole, "fsdp", [(i, (i + 1) % fsdp) for i in range(fsdp)]), None

        x = jax.lax.scan(layer, x, w)[0]
        # The shares of different groups differ, or the compiler would see through the sum.
        return jax.lax.psum(jnp.sum(x, axis=0), ("data", "fsdp")), jax.lax.psum_scatter(
            x.T @ x, "fsdp", tiled=True
        )

    function = jax.shard_map(
        on_a_device,
        mesh=mesh,
        in_specs=(rows, share),
        out_specs=(PartitionSpec(), PartitionSpec("fsdp")),
        check_vma=False,
    )
    like = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    found = cost(function, like((8 * 16, N), rows), like((LAYERS, N, N), share))
    sent = found.by_kind()
    others = (fsdp - 1) / fsdp
    np.testing.assert_allclose(sent["all-gather"], LAYERS * N * N * 4 * others)
    np.testing.assert_allclose(sent["collective-permute"], LAYERS * 16 * N * 4)
    np.testing.assert_allclose(sent["reduce-scatter"], N * N * 4 * others)
    np.testing.assert_allclose(sent["all-reduce"], 2 * N * 4 * 7 / 8)
    assert found.network_bytes == sum(sent.values())
    times = {kind: count for (kind, _), (count, _) in found.collectives.items()}
    assert times == {"all-gather": 7, "collective-permute": 7, "reduce-scatter": 1, "all-reduce": 1}


# What a TPU's compiler writes, cut to what matters: a batched product as a dilated convolution, fused
# with a slice of a stack, on the way to memory and to the chip's own (the S(1) of a layout).
TPU = """HloModule step

%fused (param_0: bf16[8,128,256], param_1: bf16[4,16,128], param_2: s32[]) -> bf16[4,16,256] {
  %param_0 = bf16[8,128,256]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_2 = s32[]{:T(128)} parameter(2)
  %constant.1 = s32[]{:T(128)} constant(0)
  %slice = bf16[1,128,256]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_0, %param_2, %constant.1, %constant.1), \
dynamic_slice_sizes={1,128,256}
  %bitcast = bf16[128,256]{1,0:T(8,128)(2,1)} bitcast(%slice)
  %param_1 = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[4,16,256]{2,1,0:T(8,128)(2,1)} convolution(%param_1, %bitcast), \
window={size=1}, dim_labels=0bf_io0->0bf
}

%body (carry: (s32[], bf16[4,16,128], bf16[8,128,256])) -> (s32[], bf16[4,16,128], bf16[8,128,256]) {
  %carry = (s32[]{:T(128)}, bf16[4,16,128]{2,1,0:T(8,128)(2,1)S(1)}, bf16[8,128,256]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = bf16[4,16,128]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%carry), index=1
  %w = bf16[8,128,256]{2,1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=2
  %fusion.1 = bf16[4,16,256]{2,1,0:T(8,128)(2,1)} fusion(%w, %x, %i), kind=kOutput, calls=%fused
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[4,16,128]{2,1,0}, bf16[8,128,256]{2,1,0}) tuple(%next, %x, %w)
}

%condition (carry.1: (s32[], bf16[4,16,128], bf16[8,128,256])) -> pred[] {
  %carry.1 = (s32[]{:T(128)S(6)}, bf16[4,16,128]{2,1,0}, bf16[8,128,256]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%carry.1), index=0
  %limit = s32[]{:T(128)S(6)} constant(8)
  ROOT %less = pred[]{:T(512)S(6)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: bf16[4,16,128], q: bf16[8,128,256]) -> bf16[4,16,128] {
  %p = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[8,128,256]{2,1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[]{:T(128)} constant(2)
  %copy.9 = s32[]{:T(128)S(6)} copy(%zero)
  %tuple.2 = (s32[]{:T(128)}, bf16[4,16,128]{2,1,0}, bf16[8,128,256]{2,1,0}) tuple(%copy.9, %p, %q)
  %while.1 = (s32[]{:T(128)}, bf16[4,16,128]{2,1,0}, bf16[8,128,256]{2,1,0}) while(%tuple.2), \
condition=%condition, body=%body
  ROOT %out = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


def test_a_tpu_s_program_by_hand():
    """The loop runs from 2 to 8. A step reads one slice of the stack and writes its product; what
    lives in the chip's own memory is not traffic. The scalars that count are 4 bytes each."""
    found = Program(TPU).cost()
    assert found.flops == 6 * 2 * 4 * 16 * 256 * 128
    slice_and_product = 2 * (128 * 256 + 4 * 16 * 256)
    assert 6 * slice_and_product <= found.memory_bytes <= 6 * (slice_and_product + 20) + 8


@pytest.mark.parametrize(
    ("kind", "target", "sent"),
    [
        ("ALL_REDUCE", '"{1,2}x{0:3}"', 1.0),
        ("ALL_REDUCE", '"{1:4,6}x{0:3}"', 2 * 4 / 5),
        ("ALL_GATHER", '"{1,2,3}x{0:3}"', 2.0),
        ("REDUCE_SCATTER", '"{1,2,3}x{0:3}"', 2 / 3),
        ("ALL_TO_ALL", '"{1,2}x{0:3}"', 1 / 2),
        ("ONE_TO_ONE", "{{100002->200000},{200002->100000}}", 1 / 4),
    ],
)
def test_what_a_chip_sends_to_other_slices_by_kind(kind, target, sent):
    """In place of the product of the loop above; what comes in and the ends of it are not counted again."""
    attributes = (
        f"channel_id=2, is_host_transfer=true, frontend_attributes={{_xla_megascale_target={target},"
        f'_xla_megascale_transfer_type="{kind}"}}'
    )
    loop = TPU.replace(
        "  %one = s32",
        f"  %send.1 = (bf16[4,16,256]{{2,1,0}}, u32[]{{:S(2)}}, token[]) send(%fusion.1, %i), {attributes}\n"
        f"  %recv.1 = (bf16[4,16,256]{{2,1,0}}, u32[]{{:S(2)}}, token[]) recv(%i), {attributes}\n"
        "  %one = s32",
    )
    found = Program(loop, chips_a_host=4).cost()
    ((key, (times, total)),) = found.transfers.items()
    assert key == (kind.lower().replace("_", "-") + " between slices", "bf16[4, 16, 256]")
    assert (times, total) == (6, pytest.approx(6 * sent * 4 * 16 * 256 * 2))
    assert found.network_bytes == 0
    for unknown in (loop.replace(kind, "SOME_TO_SOME"), loop.replace("_transfer_type", "")):
        with pytest.raises(HloError, match=r"cannot tell (what|where|which) .*send"):
            Program(unknown).cost()


def test_a_loop_that_cannot_be_counted_is_refused():
    with pytest.raises(HloError, match=r"how often the loop %while\.1 runs"):
        Program(TPU.replace("constant(8)", "parameter(1)")).cost()
    with pytest.raises(HloError, match="no entry"):
        Program("nothing")


@pytest.mark.parametrize(
    ("size", "outputs", "kernel", "stride", "spread", "holes", "pad"),
    [(5, 3, 3, 1, 1, 1, 0), (5, 5, 3, 1, 1, 1, 1), (4, 4, 4, 3, 4, 1, 0), (6, 3, 2, 2, 1, 2, 1)],
)
def test_pairs_of_a_convolution_that_meet_an_input(size, outputs, kernel, stride, spread, holes, pad):
    """By spreading the inputs and padding them out, as the definition says."""
    spread_out = np.zeros(2 * pad + (size - 1) * spread + 1 + 50, int)
    spread_out[pad : pad + (size - 1) * spread + 1 : spread] = 1
    met = sum(spread_out[o * stride + k * holes] for o in range(outputs) for k in range(kernel))
    assert _valid_pairs(size, outputs, kernel, stride, spread, holes, pad) == met


# An all-gather that goes on beside a product, as the TPU's compiler writes it: into the fusion that starts
# it, the one with the product, and the one that ends it.
ASYNC = """HloModule step

%start (p.0: bf16[1,256,64]) -> (bf16[1,256,64], bf16[1,256,256], u32[]) {
  %p.0 = bf16[1,256,64]{1,2,0} parameter(0)
  %all-gather.1 = bf16[1,256,256]{1,2,0} all-gather(%p.0), channel_id=28, replica_groups={{0,1,2,3}}, \
dimensions={2}, frontend_attributes={chain_id="5"}
  ROOT %custom-call.1 = (bf16[1,256,64]{1,2,0}, bf16[1,256,256]{1,2,0}, u32[]{:S(2)}) \
custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p.1: bf16[1,256,64], p.2: bf16[1,256,256], p.3: bf16[16,128], p.4: bf16[128,32]) -> \
(bf16[16,32], bf16[1,256,64], bf16[1,256,256], bf16[1,256,256]) {
  %p.3 = bf16[16,128]{1,0} parameter(2)
  %p.4 = bf16[128,32]{1,0} parameter(3)
  %convolution.1 = bf16[16,32]{1,0} convolution(%p.3, %p.4), dim_labels=bf_io->bf
  %p.1 = bf16[1,256,64]{1,2,0} parameter(0)
  %p.2 = bf16[1,256,256]{1,2,0} parameter(1)
  %all-gather.2 = bf16[1,256,256]{1,2,0} all-gather(%p.1), channel_id=28, replica_groups={{0,1,2,3}}, \
dimensions={2}, frontend_attributes={chain_id="5"}
  ROOT %tuple.1 = (bf16[16,32]{1,0}, bf16[1,256,64]{1,2,0}, bf16[1,256,256]{1,2,0}, bf16[1,256,256]{1,2,0}) \
tuple(%convolution.1, %p.1, %p.2, %all-gather.2)
}

%done (p.5: bf16[1,256,64], p.6: bf16[1,256,256]) -> bf16[1,256,256] {
  %p.5 = bf16[1,256,64]{1,2,0} parameter(0)
  %p.6 = bf16[1,256,256]{1,2,0} parameter(1)
  %all-gather.3 = bf16[1,256,256]{1,2,0} all-gather(%p.5), channel_id=28, replica_groups={{0,1,2,3}}, \
dimensions={2}, frontend_attributes={chain_id="5"}
  ROOT %custom-call.2 = bf16[1,256,256]{1,2,0} custom-call(%p.5, %p.6, %all-gather.3), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: bf16[1,256,64], x: bf16[16,128], y: bf16[128,32]) -> bf16[1,256,256] {
  %w = bf16[1,256,64]{1,2,0} parameter(0)
  %x = bf16[16,128]{1,0} parameter(1)
  %y = bf16[128,32]{1,0} parameter(2)
  %fusion.1 = (bf16[1,256,64]{1,2,0}, bf16[1,256,256]{1,2,0}, u32[]{:S(2)}) fusion(%w), kind=kCustom, \
calls=%start
  %share = bf16[1,256,64]{1,2,0} get-tuple-element(%fusion.1), index=0
  %whole = bf16[1,256,256]{1,2,0} get-tuple-element(%fusion.1), index=1
  %fusion.2 = (bf16[16,32]{1,0}, bf16[1,256,64]{1,2,0}, bf16[1,256,256]{1,2,0}, bf16[1,256,256]{1,2,0}) \
fusion(%share, %whole, %x, %y), kind=kOutput, calls=%beside
  %whole.1 = bf16[1,256,256]{1,2,0} get-tuple-element(%fusion.2), index=2
  ROOT %fusion.3 = bf16[1,256,256]{1,2,0} fusion(%share, %whole.1), kind=kCustom, calls=%done
}
"""


def test_a_collective_that_goes_on_beside_other_work_counts_once():
    found = Program(ASYNC).cost()
    assert found.collectives == {("all-gather", "bf16[1, 256, 64]"): (1, 3 * 256 * 64 * 2)}
    assert found.flops == 2 * 16 * 128 * 32
    assert found.memory_bytes == 2 * (256 * 64 + 256 * 256 + 16 * 128 + 128 * 32 + 16 * 32)


@pytest.mark.parametrize("text", [TPU, ASYNC], ids=["loop", "async"])
def test_elements_of_tuples_may_be_named_in_short(text):
    """`%x#1` for what another instruction takes from %x, as JAX writes it from 0.12 on."""
    element = re.compile(r"^  (%[\w.]+) = \S+ get-tuple-element\((%[\w.\-]+)\), index=(\d+)\n", re.M)
    short = element.sub("", text)
    for name, whole, index in element.findall(text):
        short = re.sub(rf"{name}(?=[,)])", f"{whole}#{index}", short)
    assert short.count("#") >= 4
    assert Program(short).cost() == Program(text).cost()


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2},{3,4,5}}",
        "[2,3]<=[6]",
        "mesh['a'=2,'b'=3] {'b'}",
        # As libtpu 0.0.42 writes it, the one that JAX 0.10.2 asks for.
        "mesh['a'=1,'b'=3,'c'=2], device_ids=([2,3]T(1,0)) {'b'}",
    ],
)
def test_every_way_to_write_groups_is_read(groups):
    assert group_size(f"all-reduce(%x), channel_id=3, replica_groups={groups}, to_apply=%sum") == 3


# A slice of a stack is read, and one written, through another tiling of the whole stack, as a TPU7x has it.
RETILED = """HloModule step

%retile (input: bf16[8,4,256]) -> bf16[8,4,256] {
  %input = bf16[8,4,256]{2,1,0:T(16,128)(2,1)} parameter(0)
  ROOT %copy.1 = bf16[8,4,256]{2,1,0:T(8,128)(2,1)} copy(%input)
}

%add (p.0: bf16[8,4,256], p.1: s32[]) -> bf16[8,4,256] {
  %p.0 = bf16[8,4,256]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %tiled.1 = bf16[8,4,256]{2,1,0} fusion(%p.0), kind=kLoop, \
output_to_operand_aliasing={{}: (0, {})}, calls=%retile
  %zero = s32[] constant(0)
  %dynamic-slice.1 = bf16[1,4,256]{2,1,0} dynamic-slice(%tiled.1, %p.1, %zero, %zero), \
dynamic_slice_sizes={1,4,256}
  %add.1 = bf16[1,4,256]{2,1,0} add(%dynamic-slice.1, %dynamic-slice.1)
  %update.1 = bf16[8,4,256]{2,1,0} dynamic-update-slice(%tiled.1, %add.1, %p.1, %zero, %zero)
  ROOT %tiled.2 = bf16[8,4,256]{2,1,0} fusion(%update.1), kind=kLoop, \
output_to_operand_aliasing={{}: (0, {})}, calls=%retile
}

ENTRY %main (a: bf16[8,4,256], i: s32[]) -> bf16[8,4,256] {
  %a = bf16[8,4,256]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %fusion.1 = bf16[8,4,256]{2,1,0} fusion(%a, %i), kind=kLoop, calls=%add
}
"""


def test_another_tiling_in_place_moves_nothing():
    whole, index = 8 * 4 * 256 * 2, 4
    assert Program(RETILED).cost().memory_bytes == 2 * whole / 8 + index
    copied = RETILED.replace("output_to_operand_aliasing={{}: (0, {})}, ", "")
    assert Program(copied).cost().memory_bytes == 2 * whole + index


_SPLASH = """HloModule splash

ENTRY %main (q: bf16[2,4,1024,64]) -> bf16[2,4,1024,64] {
  %q = bf16[2,4,1024,64]{3,2,1,0} parameter(0)
  %mask = s8[1,2,2]{2,1,0} broadcast()
  ROOT %splash_mha_NAME.1 = RESULT custom-call(%mask, %q, %q, %q, %q), custom_call_target="tpu_custom_call"
}
"""


@pytest.mark.parametrize(
    ("name", "result", "products"),
    [
        ("fwd_residuals", "(f32[2,512,64], bf16[2,4,1024,64], f32[2,4,1024,128])", 2),
        ("dq_no_residuals", "(f32[2,512,64], bf16[2,4,1024,64])", 3),
        ("dkv_no_residuals", "(f32[2,512,64], f32[2,512,64], bf16[2,4,1024,64], bf16[2,4,1024,64])", 4),
        # As libtpu has it: nothing else tells that this one gives the queries' gradient too.
        (
            "dkv_no_residuals",
            "(f32[2,512,64], f32[2,512,64], bf16[2,2,4,1024,64], bf16[2,4,1024,64], bf16[2,4,1024,64])",
            5,
        ),
    ],
)
def test_the_products_of_attention_s_kernels(name, result, products):
    """Each of [1024, 64] by [64, 1024], of two clips and four heads."""
    found = Program(_SPLASH.replace("NAME", name).replace("RESULT", result)).cost()
    assert found.flops == products * 2 * (2 * 4) * 1024 * 1024 * 64
