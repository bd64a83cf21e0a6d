"""Which fields are meant, and the pairs that their values make."""

import pytest

from jepa_jax.config import FieldMap
from jepa_jax.data.records import BadRecordError, Pair
from jepa_jax.data.sources.fields import find_by_name, make_pairs, paths_of, text_of, value_at

from .making import LIMITS


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (["path", "Caption"], FieldMap(media="path", targets="Caption")),
        (["video", "qa/question", "qa/answer"], ("video", "qa/answer", "qa/question")),
        (["image", "question", "answers/text"], ("image", "answers/text", "question")),
        (
            ["image", "text", "start", "end"],
            FieldMap(media="image", targets="text", start="start", end="end"),
        ),
        (["image", "qa/text", "qa/kind", "kind"], FieldMap(media="image", targets="qa/text", kind="qa/kind")),
        (
            ["Image", "Text", "Start", "END", "Kind", "Weight"],
            FieldMap(media="Image", targets="Text", start="Start", end="END", kind="Kind", weight="Weight"),
        ),
        (["image", "qa/text", "weight"], FieldMap(media="image", targets="qa/text")),
    ],
)
def test_what_is_found_by_name(known, expected):
    if isinstance(expected, tuple):
        expected = FieldMap(**dict(zip(("media", "targets", "query"), expected, strict=True)))
    assert find_by_name(FieldMap(), known, "set", LIMITS) == expected


def test_what_is_named_goes_before_what_is_found():
    known = ["video", "path", "text", "caption", "query", "ask"]
    fields = FieldMap(media="path", targets="caption", query="ask")
    assert find_by_name(fields, known, "set", LIMITS) == fields
    with pytest.raises(ValueError, match=r"^set: fields\.start='begin' is none of its fields: video, path"):
        find_by_name(FieldMap(start="begin"), known, "set", LIMITS)
    with pytest.raises(ValueError, match="query, question could all be the query"):
        find_by_name(FieldMap(), ["path", "text", "query", "question"], "set", LIMITS)
    with pytest.raises(ValueError, match="start, Start could all be the start"):
        find_by_name(FieldMap(), ["path", "text", "start", "Start"], "set", LIMITS)


def test_names_in_a_sentence_are_printable_and_not_without_end():
    known = [f"by_id/{i}\x1b[2J\n" for i in range(10_000)]
    with pytest.raises(ValueError, match=r"it has by_id/0\\x1b\[2J\\n, .*, \.\.\. of 10,000\)$") as raised:
        find_by_name(FieldMap(), known, "set", LIMITS)
    assert len(str(raised.value)) < 2000


def test_paths_and_values_of_nested_rows():
    row = {"a": 1, "b": {"c": [1, 2], "d": {}}, "e": [{"f": 1}, {"g": 2, "f": 3}], "h": []}
    assert paths_of(row) == ["a", "b/c", "e/f", "e/g", "h"]
    assert value_at(row, "b/c") == [1, 2]
    assert value_at(row, "e/f") == [1, 3]
    assert value_at(row, "e/g") == [None, 2]
    assert value_at(row, "a/x") is None
    assert value_at(row, "x/y") is None
    assert value_at({"x/y": 1, "x": {"y": 2}}, "x/y") == 1


def test_what_is_nested_without_end_has_a_path_all_the_same():
    row: object = 1
    for _ in range(900):
        row = {"a": [row]}
    (path,) = paths_of({"text": "x"} | row)[1:]
    assert set(path) == {"a", "/"}


TWO = (("t", "k"), ("u", "l"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("t", None, None, None), [Pair(query="", targets=("t",))]),
        ((b"\xef\xbb\xbft\r\n", None, None, None), [Pair(query="", targets=("t",))]),
        (([3, -1], "how many?", None, None), [Pair(query="how many?", targets=("3", "-1"))]),
        ((["t", "u"], "q", "k", 2), [Pair(query="q", targets=("t", "u"), kind="k", weight=2.0)]),
        (
            (["t", ["u", "v"]], ["q", None], "k", ["1", None]),
            [Pair(query="q", targets=("t",), kind="k"), Pair(query="", targets=("u", "v"), kind="k")],
        ),
        (
            (["t", "u"], "q", ["k", "l"], None),
            [Pair(query="q", targets=(t,), kind=k) for t, k in ("tk", "ul")],
        ),
    ],
)
def test_values_to_pairs(values, expected):
    assert make_pairs(*values, "name", LIMITS) == tuple(expected)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ((None, None, None, None), "text empty"),
        ((b"\xef\xbb\xbf", None, None, None), "text empty"),
        (([], ["q"], None, None), "line not readable"),
        (([], [], None, None), "text empty"),
        (([[]], ["q"], None, None), "text empty"),
        ((["t"], ["q", "r"], None, None), "line not readable"),
        (("t", ["q", "r"], None, None), "line not readable"),
        (("t", None, None, -1), "line not readable"),
        (("t", None, None, True), "line not readable"),
        (("t", None, None, float("inf")), "line not readable"),
        ((True, None, None, None), "line not readable"),
        (("t", 5.5, None, None), "line not readable"),
        (("t", "q" * 51, None, None), "text too long"),
        (({"a": 1}, None, None, None), "line not readable"),
        (("\u200b", None, None, None), "text empty"),
        ((["t", "\ufeff \u200d\u2060\x00\xad"], None, None, None), "text empty"),
    ],
)
def test_values_that_make_no_pairs(values, cause):
    with pytest.raises(BadRecordError) as caught:
        make_pairs(*values, "name", LIMITS)
    assert caught.value.cause == cause


def test_what_joins_letters_stays_and_a_query_that_nobody_sees_is_none():
    family = "\U0001f469\u200d\U0001f467 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert make_pairs(family, "\u200b", None, None, "name", LIMITS) == (Pair(query="", targets=(family,)),)


@pytest.mark.parametrize("value", ["x" * 50, "ü" * 50, "😀" * 50, ("😀" * 50).encode()])
def test_the_longest_text_in_characters_whatever_its_bytes(value):
    assert len(text_of(value, "name", LIMITS)) == 50
    with pytest.raises(BadRecordError, match="text too long"):
        text_of(value + value[:1], "name", LIMITS)
