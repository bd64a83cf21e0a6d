"""The strict engine: everything fits, or all that does not is said at once and nothing is written."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from tests import tiny
from weights_conversion import engine
from weights_conversion.engine import SAME, TRANSPOSE, ConversionError, Rule, Unused, invert, plan
from weights_conversion.tensors import TensorInfo


class InMemory:
    """Tensors that count how often each is read."""

    files = ()

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors = tensors
        self.info = {name: TensorInfo(x.shape, x.dtype) for name, x in tensors.items()}
        self.reads: list[str] = []

    def read(self, name: str) -> np.ndarray:
        self.reads.append(name)
        return self.tensors[name]


RULES = [
    Rule("embedding", "table"),
    Rule("stack/query", "layers.{}.qkv", TRANSPOSE, (0, 3), range(2)),
    Rule("stack/key", "layers.{}.qkv", TRANSPOSE, (1, 3), range(2)),
    Rule("stack/value", "layers.{}.qkv", TRANSPOSE, (2, 3), range(2)),
    Rule("stack/scale", "layers.{}.norm", SAME, layers=range(2)),
]
UNUSED = [Unused(r"buffer\..*", "computed")]
EXPECTED = {
    "embedding": (7, 5),
    "stack/query": (2, 5, 3),
    "stack/key": (2, 5, 3),
    "stack/value": (2, 5, 3),
    "stack/scale": (2, 5),
}


def source() -> dict[str, np.ndarray]:
    found = {"table": tiny.normal(7, 5), "buffer.positions": np.arange(5)}
    for i in range(2):
        found[f"layers.{i}.qkv"] = tiny.normal(9, 5, seed=i)
        found[f"layers.{i}.norm"] = tiny.normal(5, seed=10 + i)
    return found


def problems(tensors: dict, rules=RULES, expected=EXPECTED) -> str:
    with pytest.raises(ConversionError, match="nothing was written") as raised:
        plan(InMemory(tensors), rules, UNUSED, expected)
    return str(raised.value)


def test_what_fits_is_stacked_cut_and_turned():
    tensors = source()
    arrays, kept = plan(InMemory(tensors), RULES, UNUSED, EXPECTED)
    assert not kept
    found = {name: array.read() for name, array in arrays.items()}
    np.testing.assert_array_equal(found["embedding"], tensors["table"])
    for k, name in enumerate(("query", "key", "value")):
        for i in range(2):
            rows = tensors[f"layers.{i}.qkv"][3 * k : 3 * k + 3]
            np.testing.assert_array_equal(found[f"stack/{name}"][i], rows.T)


def test_the_way_back_is_the_inverse():
    tensors = source()
    arrays, _ = plan(InMemory(tensors), RULES, UNUSED, EXPECTED)
    back = dict(invert(RULES, lambda name: arrays[name].read()))
    assert back.keys() == tensors.keys() - {"buffer.positions"}
    for name, x in back.items():
        np.testing.assert_array_equal(x, tensors[name])


def test_checking_reads_nothing_and_writing_reads_each_array_s_own():
    tensors = InMemory(source())
    arrays, _ = plan(tensors, RULES, UNUSED, EXPECTED)
    assert tensors.reads == []
    arrays["stack/scale"].read()
    assert tensors.reads == ["layers.0.norm", "layers.1.norm"]


def test_all_that_does_not_fit_is_said_at_once():
    tensors = source()
    del tensors["layers.1.norm"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["table"] = tensors["table"].T
    tensors["layers.0.qkv"] = tensors["layers.0.qkv"].astype(np.int8)
    expected = EXPECTED | {"never/filled": (1,)}
    rules = [*RULES, Rule("no/such/parameter", "table")]
    text = problems(tensors, rules, expected)
    for part in (
        "stack/scale: the source has no layers.1.norm",
        "surprise: nobody takes it",
        "table: shape (5, 7) does not give embedding (7, 5)",
        "layers.0.qkv: type int8",
        "never/filled: no rule",
        "no/such/parameter: the model has no such parameter",
    ):
        assert part in text, part


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float64, ml_dtypes.float8_e4m3fn])
def test_types_that_float32_cannot_carry_are_refused(dtype):
    text = problems(source() | {"table": source()["table"].astype(dtype)})
    assert f"table: type {np.dtype(dtype)}" in text


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_types_are_kept(dtype):
    tensors = {name: x if name.startswith("buffer") else x.astype(dtype) for name, x in source().items()}
    arrays, _ = plan(InMemory(tensors), RULES, UNUSED, EXPECTED)
    assert {array.read().dtype for array in arrays.values()} == {np.dtype(dtype)}


def test_layers_of_one_array_must_be_of_one_type():
    tensors = source()
    tensors["layers.1.norm"] = tensors["layers.1.norm"].astype(np.float16)
    assert "stack/scale: its layers come in different types (float16, float32)" in problems(tensors)


def test_a_matrix_that_does_not_cut_evenly_is_refused():
    tensors = source()
    tensors["layers.0.qkv"] = tiny.normal(10, 5)
    assert "layers.0.qkv: shape (10, 5) does not give stack/query" in problems(tensors)


def test_a_parameter_filled_twice_is_refused():
    assert "embedding: filled twice" in problems(source(), [*RULES, Rule("embedding", "table")])


def test_a_pattern_of_unused_names_must_match_the_whole_name():
    tensors = source() | {"not.buffer.positions": np.zeros(2, np.float32)}
    assert "not.buffer.positions: nobody takes it" in problems(tensors)


def test_a_long_list_is_cut_and_counted():
    tensors = source() | {f"extra.{i:02}": np.zeros(1, np.float32) for i in range(40)}
    text = problems(tensors)
    assert "(40 problems)" in text
    assert "and 28 more" in text


def test_kept_tensors_are_those_that_are_there():
    kept = [Rule("head.weight", "head.{}", layers=range(2)), Rule("tail.weight", "tail")]
    tensors = source() | {f"head.{i}": tiny.normal(3, seed=i) for i in range(2)}
    _, found = plan(InMemory(tensors), RULES, UNUSED, EXPECTED, kept)
    assert found.keys() == {"head.weight"}
    np.testing.assert_array_equal(
        found["head.weight"].read(), np.stack([tensors["head.0"], tensors["head.1"]])
    )
    del tensors["head.1"]
    with pytest.raises(ConversionError, match=r"head\.weight: the source has no head\.1"):
        plan(InMemory(tensors), RULES, UNUSED, EXPECTED, kept)


@pytest.mark.parametrize("heads", [1, 3])
def test_neighbouring_pairs_become_halves(heads):
    """Within a head, rows 0 1 2 3 4 5 become 0 2 4 1 3 5."""
    transform = engine.neighbours_to_halves(heads)
    rows = np.arange(heads * 6)[:, None] + np.zeros((1, 2), int)
    expected = [6 * head + i for head in range(heads) for i in (0, 2, 4, 1, 3, 5)]
    assert transform.forward(rows)[:, 0].tolist() == expected
    np.testing.assert_array_equal(transform.backward(transform.forward(rows)), rows)
    both = transform.then(TRANSPOSE)
    np.testing.assert_array_equal(both.backward(both.forward(rows)), rows)
    assert both.forward(rows).shape == (2, heads * 6)


def test_a_rule_inside_something_larger():
    (rule,) = engine.prefixed([RULES[1]], ours="part/", theirs="inner.")
    assert dataclasses.replace(rule, ours="stack/query", theirs="layers.{}.qkv") == RULES[1]
    assert rule.names() == ["inner.layers.0.qkv", "inner.layers.1.qkv"]
