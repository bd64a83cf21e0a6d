"""Attention and its masks against the textbook, in every back end that runs here."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jepa_jax.models import attention as entry
from jepa_jax.models import attention_cpu, attention_tpu
from jepa_jax.models.attention import attention, attention_mask, choose_backend
from jepa_jax.models.attention_cpu import blockwise_attention
from jepa_jax.models.attention_tpu import splash_attention
from jepa_jax.sharding import make_mesh
from tests import tiny

B, L, K, G, A = 2, 11, 6, 3, 7
# Longer than one tile of the TPU's kernel and than two blocks of the CPU's, and no multiple of either.
LONG, SIZE = 300, 64


def textbook(q, k, v, mask, scale):
    """One query head at a time, in float64; head h reads key-value head h // (K / G)."""
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        group = h // (q.shape[2] // k.shape[2])
        logits = scale * q[b, :, h].astype(np.float64) @ k[b, :, group].astype(np.float64).T
        logits = np.where(mask[b], logits, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ v[b, :, group]
    return out


def random_inputs(length: int, size: int, groups: int = G):
    return [tiny.normal(B, length, heads, size, seed=i) for i, heads in enumerate((K, groups, groups))]


def visible(length: int, valid=None, window=None, causal=False) -> np.ndarray:
    """[B, L, L] by definition, one pair at a time."""
    i, j = np.indices((length, length))
    seen = np.ones((B, length, length), bool)
    seen &= (j <= i) | (not causal)
    seen &= True if window is None else np.abs(i - j) <= window
    return seen if valid is None else seen & valid[:, None, :]


@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_equals_the_textbook(groups, scale):
    q, k, v = random_inputs(L, A, groups)
    actual = attention(q, k, v, scale=scale)
    mask = np.ones((B, L, L), bool)
    tiny.assert_close(actual, textbook(q, k, v, mask, A**-0.5 if scale is None else scale), 1e-6)


CASES = {
    "whole": {},
    "padded": {"valid": tiny.right_padded([LONG - 70, 1], LONG)},
    "window": {"window": 40},
    "causal": {"causal": True, "valid": tiny.right_padded([LONG, 131], LONG)},
    "causal window": {"causal": True, "window": 9},
}


def through(backend: str):
    """The entry point, made to take a back end that works with a mask."""

    def run(*arrays, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entry, "choose_backend", lambda *_, **__: backend)
            return attention(*arrays, **options)

    return run


BACKENDS = {
    "xla": through("xla"),
    "dense": through("dense"),
    "blockwise": blockwise_attention,
    "splash": functools.partial(splash_attention, interpret=True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_back_end_is_the_textbook_and_has_its_gradients(backend, case, monkeypatch):
    """Positions that are padding are nobody's: neither their output nor its gradient counts."""
    monkeypatch.setattr(attention_cpu, "ROWS", 128)
    options = {"valid": None, "window": None, "causal": False, "scale": 0.1} | CASES[case]
    valid = options.pop("valid")
    inputs = random_inputs(LONG, SIZE)
    counted = np.ones((B, LONG), bool) if valid is None else valid

    def loss(function, q, k, v):
        out = function(q, k, v)
        return jnp.sum(jnp.sin(out + q) * counted[:, :, None, None]), out

    ours = functools.partial(BACKENDS[backend], valid=valid, **options)

    def dense(q, k, v):
        mask = attention_mask(LONG, valid=valid, window=options["window"], causal=options["causal"])
        k, v = (jnp.repeat(x, K // G, axis=2) for x in (k, v))
        logits = 0.1 * jnp.einsum("bqhd,bkhd->bhqk", q, k)
        logits = logits if mask is None else jnp.where(mask[:, None], logits, -jnp.inf)
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)

    gradient = lambda f: jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1, 2), has_aux=True))
    (_, out), grads = gradient(ours)(*inputs)
    mask = visible(LONG, valid, options["window"], options["causal"])
    mask |= np.eye(LONG, dtype=bool) & ~counted[:, :, None]
    tiny.assert_close(
        out * counted[:, :, None, None], textbook(*inputs, mask, 0.1) * counted[:, :, None, None], 2e-6
    )
    for grad, expected in zip(grads, gradient(dense)(*inputs)[1], strict=True):
        tiny.assert_close(grad, expected, 1e-5)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("length", [L, LONG])
def test_a_layer_may_be_told_that_its_window_does_not_hold(everywhere, length, monkeypatch):
    """By a traced flag, as in a scan over layers of both kinds, in XLA's path and in a kernel's."""
    monkeypatch.setitem(entry._MIN_LENGTH, "cpu", LONG)
    q, k, v = random_inputs(length, A)
    run = jax.jit(lambda flag: attention(q, k, v, window=4, everywhere=flag, scale=1.0))
    mask = visible(length, window=None if everywhere else 4)
    tiny.assert_close(run(everywhere), textbook(q, k, v, mask, 1.0), 1e-6)


@pytest.mark.parametrize("length", [L, LONG])
def test_bfloat16_inputs_get_a_float32_softmax_and_a_bfloat16_result(length, monkeypatch):
    monkeypatch.setitem(entry._MIN_LENGTH, "cpu", LONG)
    q, k, v = (jnp.ones((B, length, heads, A), jnp.bfloat16) for heads in (K, G, G))
    program = jax.make_jaxpr(attention)(q, k, v)
    assert program.out_avals[0].dtype == jnp.bfloat16
    exponentials = [e for e in tiny.operations(program.jaxpr) if e.primitive.name == "exp"]
    assert [e.outvars[0].aval.dtype for e in exponentials] == [jnp.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_may_see_nothing_is_finite_with_finite_gradients(backend):
    inputs = random_inputs(LONG, SIZE)
    valid = tiny.right_padded([0, 5], LONG)
    kernel = functools.partial(BACKENDS[backend], valid=valid, window=None, causal=False, scale=0.1)

    def loss(q, k, v):
        return jnp.sum(kernel(q, k, v) ** 2)

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(*inputs)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_masks_by_definition(causal, window, padded):
    valid = tiny.right_padded([5, 11], L)
    mask = attention_mask(L, valid=jnp.asarray(valid) if padded else None, window=window, causal=causal)
    expected = visible(L, valid if padded else None, window, causal)
    if mask is None:
        assert expected.all()
    else:
        np.testing.assert_array_equal(np.broadcast_to(mask, expected.shape), expected)


def chosen(
    platform: str,
    length: int,
    size: int = 64,
    dtype=jnp.bfloat16,
    devices: int = 1,
    capability: str | None = None,
    kind: str = "",
    rows: int = 8,
    precision: str | None = None,
    **more,
) -> str:
    """On a mesh of some platform; what it is read from is JAX's description of the mesh."""
    device = type("Device", (), {"platform": platform, "device_kind": kind})
    mesh = type("Mesh", (), {"empty": False, "size": devices, "axis_types": (), "abstract_device": device})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
        if capability is not None:
            here = type("Device", (), {"compute_capability": capability})
            patch.setattr(jax, "local_devices", lambda: [here])
        with jax.default_matmul_precision(precision):
            return choose_backend(length, size, dtype, rows=rows, **more)


@pytest.mark.parametrize(
    ("platform", "length", "more", "backend"),
    [
        ("tpu", 1024, {}, "splash"),
        ("tpu", 127, {}, "xla"),
        ("tpu", 1024, {"devices": 8}, "splash"),
        ("tpu", 1024, {"devices": 8, "rows": 12}, "xla"),
        ("tpu", 1024, {"kind": "TPU v5 lite"}, "splash"),
        ("tpu", 1024, {"precision": "bfloat16"}, "splash"),
        ("tpu", 1024, {"precision": "highest"}, "xla"),
        ("tpu", 1024, {"precision": "highest", "dtype": jnp.float32}, "splash"),
        ("tpu", 1024, {"precision": "high", "dtype": jnp.float32}, "xla"),
        ("tpu", 1024, {"kind": "TPU v3"}, "xla"),
        ("tpu", 1024, {"kind": "TPU v3", "dtype": jnp.float32}, "splash"),
        ("cuda", 1024, {}, "cudnn"),
        ("cuda", 1024, {"dtype": jnp.float32}, "xla"),
        ("cuda", 1024, {"size": 256}, "xla"),
        ("cuda", 32, {}, "xla"),
        ("cuda", 1024, {"looks_ahead": True}, "xla"),
        ("cuda", 1024, {"capability": "7.5"}, "xla"),
        ("cuda", 1024, {"capability": "8.0"}, "cudnn"),
        ("cuda", 1024, {"capability": "10.3"}, "cudnn"),
        ("rocm", 1024, {"capability": "gfx90a"}, "xla"),
        ("cpu", 1024, {}, "blockwise"),
        ("cpu", 511, {}, "dense"),
        ("cpu", 1024, {"devices": 8}, "xla"),
        ("metal", 1024, {}, "xla"),
    ],
)
def test_the_back_end_is_chosen_by_platform_and_length(platform, length, more, backend):
    assert chosen(platform, length, **more) == backend


GPU_CASES = {name: case for name, case in CASES.items() if name != "window"}


@pytest.mark.parametrize("length", [LONG, LONG - 1])
@pytest.mark.parametrize("case", GPU_CASES)
def test_what_cudnn_is_asked_is_the_textbook(case, length, monkeypatch):
    """By what the function of JAX says that its kernel computes: there is no GPU here."""
    function = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *x, **how: function(*x, **how | {"implementation": "xla"})
    )
    options = {"valid": None, "window": None, "causal": False} | GPU_CASES[case]
    if options["valid"] is not None:
        options["valid"] = options["valid"][:, :length]
    inputs = random_inputs(length, SIZE)
    out = entry._cudnn_attention(*inputs, scale=0.1, **options)
    expected = textbook(*inputs, visible(length, **options), 0.1)
    counted = options["valid"] if options["valid"] is not None else np.ones((B, length), bool)
    tiny.assert_close(np.asarray(out)[counted], expected[counted], 1e-5)


@pytest.mark.parametrize("length", [LONG, LONG - 1])
@pytest.mark.parametrize("case", GPU_CASES)
def test_cudnn_takes_it_to_train_with(case, length, prepares_for_gpus):
    """JAX refuses some shapes when it prepares a program for a GPU."""
    options = {"valid": None, "window": None, "causal": False} | GPU_CASES[case]
    valid = options.pop("valid")
    valid = None if valid is None else valid[:, :length]

    def loss(*inputs):
        return jnp.sum(entry._cudnn_attention(*inputs, valid, scale=0.1, **options) ** 2)

    inputs = [x.astype(jnp.bfloat16) for x in random_inputs(length, SIZE)]
    program = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs).lower(lowering_platforms=("cuda",))
    assert "cudnn$fmhaSoftmaxBackward" in program.as_text()


@pytest.mark.parametrize(("length", "mask"), [(256, "NO_MASK"), (192, "PADDING"), (257, "PADDING")])
def test_cudnn_is_told_lengths_that_fill_no_tile(length, mask, prepares_for_gpus):
    attend = lambda *inputs: entry._cudnn_attention(*inputs, None, window=None, causal=False, scale=0.1)
    inputs = [x.astype(jnp.bfloat16) for x in random_inputs(length, SIZE)]
    program = jax.jit(attend).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    assert re.search(r"mask_type\\22: \\22(\w+)\\22", program)[1] == mask


@pytest.mark.parametrize("everywhere", [None, False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_device_runs_the_kernel_on_its_own_rows(case, everywhere):
    """As at the end of a training on several accelerators, where arrays are whole to the program."""
    options = {"valid": None, "window": None, "causal": False} | CASES[case]
    valid, inputs = options.pop("valid"), random_inputs(LONG, SIZE)
    traced = {"valid": valid, "everywhere": everywhere}
    traced = {name: jnp.asarray(x) for name, x in traced.items() if x is not None}

    def loss(inputs, traced):
        out = through("blockwise")(*inputs, **traced, **options, scale=0.1)
        counted = jnp.ones((B, LONG)) if valid is None else valid
        return jnp.sum(jnp.sin(out) * counted[:, :, None, None])

    step = jax.value_and_grad(loss)
    expected = step(inputs, traced)
    mesh = make_mesh(1, jax.devices()[:2])
    with jax.set_mesh(mesh):
        rows = jax.device_put(inputs, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        compiled = jax.jit(step).lower(rows, traced).compile()
        found = compiled(rows, traced)
    # Nothing but sums travels: each device has the keys of its rows.
    assert "all-gather" not in compiled.as_text()
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        tiny.assert_close(np.asarray(x), np.asarray(y), 1e-5)


def test_on_a_cpu_what_the_compiler_splits_over_devices_takes_xla_s_path_and_what_one_device_holds_a_kernel():
    seen = []

    def look(x):
        seen.append(choose_backend(1024, 64, jnp.float32, rows=2))
        return x

    mesh = make_mesh(1, jax.devices()[:2])
    spec = jax.sharding.PartitionSpec("data")
    with jax.set_mesh(mesh):
        jax.jit(look)(jnp.zeros(2))
        jax.jit(jax.shard_map(look, in_specs=spec, out_specs=spec, check_vma=False))(jnp.zeros(2))
    assert seen == ["xla", "blockwise"]
    assert {AxisType.Auto} == set(mesh.axis_types)


def test_splash_fills_up_to_blocks_that_are_worth_their_while():
    for length in range(1, 10_000):
        padded, block = attention_tpu.blocks(length)
        assert block % 128 == padded % block == 0
        assert length <= padded < length + block
        # 512 is as many as fit; a tile at a time is for what is no longer than one.
        assert block <= 512
        assert block > 128 or length <= 128
        assert padded <= max(length + 255, 128 * -(-length // 128))


def test_splash_compiles_for_a_tpu_at_the_sizes_of_every_part(monkeypatch):
    """Forward and backward, with padding, lengths that are no multiple of a tile, head sizes 64 and
    256, and a stack's choice between two masks. The compiler is the TPU's own and needs no TPU."""
    pytest.importorskip("libtpu", reason="the TPU's compiler, of the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    mesh = Mesh(np.array([[device]]), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    # The kernel takes bfloat16 and the precision that goes with it; the tests' own is the highest.
    with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
        for length, heads, groups, size in ((257, 8, 2, 64), (512, 3, 1, 256)):

            def loss(q, k, v, valid, flag):
                return jnp.sum(attention(q, k, v, valid=valid, window=255, everywhere=flag) ** 2)

            like = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
            inputs = [like(2, length, n, size) for n in (heads, groups, groups)]
            gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
            lowered = gradient.lower(*inputs, like(2, length, dtype=bool), like(dtype=bool))
            assert "tpu_custom_call" in lowered.compile().as_text()
