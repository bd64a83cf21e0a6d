"""Manifests: what each form gives, and what is wrong with a record."""

import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from etils import epath

from jepa_jax.data.records import Pair
from jepa_jax.data.sources import tables

from .making import LIMITS, NO_TEXT, cause_of, opened, png, skipped_causes, write

ROWS = [
    {"video": "a.mp4", "question": "what?", "answer": "a cat", "start": 1.5, "end": 2.0, "source": "x"},
    {"video": "sub/b.mp4", "question": "", "answer": "größer", "start": None, "end": None, "source": "y"},
    {"video": "a.mp4", "question": "where?", "answer": " here\n", "start": 0.0, "end": None, "source": "z"},
]


@pytest.fixture
def folder(tmp_path):
    folder = write(epath.Path(tmp_path) / "set", a__mp4=b"aaa")
    write(folder / "sub", b__mp4=b"bb")
    return folder


def write_jsonl(path, rows, end="\n"):
    path.write_bytes(end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode())


def write_csv(path, rows):
    lines = [",".join(rows[0])]
    lines += [",".join('"' + str("" if v is None else v) + '"' for v in row.values()) for row in rows]
    path.write_text("\n".join(lines))


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), os.fspath(path))


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def test_a_field_that_is_nested_deep_keeps_no_row_from_being_read(folder):
    deep = '{"a":' * 900 + "1" + "}" * 900
    folder.joinpath("train.jsonl").write_text(f'{{"video": "a.mp4", "text": "x", "more": {deep}}}')
    assert opened(folder)[0].pairs == (Pair(query="", targets=("x",)),)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_forms_of_a_manifest_say_the_same(folder, kind, keeps_promises):
    WRITERS[kind](folder / f"manifest.{kind}", ROWS)
    source = opened(folder)
    assert len(source) == 3
    first, second, third = (source[i] for i in range(3))
    assert first.pairs == (Pair(query="what?", targets=("a cat",)),)
    assert first.media.content.read_bytes() == b"aaa"
    assert (first.media.start, first.media.end) == (1.5, 2.0)
    assert second.pairs == (Pair(query="", targets=("größer",)),)
    assert second.media.content.read_bytes() == b"bb"
    assert (second.media.start, second.media.end) == (None, None)
    assert third.pairs[0].targets == ("here",)
    if kind != "parquet":  # of which only the columns that are used are read
        assert first.metadata == {"source": "x"}
    keeps_promises(source)


@pytest.mark.parametrize("kind", WRITERS)
def test_identity_is_of_the_content_not_of_the_place(tmp_path, kind):
    folders = [write(epath.Path(tmp_path) / name) for name in "abc"]
    for folder, rows in zip(folders, (ROWS, ROWS, ROWS[:2]), strict=True):
        WRITERS[kind](folder / f"manifest.{kind}", rows)
    a, b, c = (opened(folder).identity for folder in folders)
    assert a == b != c
    assert opened(folders[0], targets="question").identity != a


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_line_ends_and_empty_lines(folder, end):
    write_jsonl(folder / "manifest.jsonl", ROWS, end)
    source = opened(folder)
    assert [source[i].metadata["source"] for i in range(len(source))] == ["x", "y", "z"]
    assert source.name(1) == f"manifest.jsonl:{1 + len(end.strip(chr(13)))}"


def test_a_quoted_field_of_csv_may_hold_line_ends_and_commas(folder):
    (folder / "manifest.csv").write_bytes(
        '\ufeffpath,text\r\na.mp4,"one,\r\ntwo ""x"""\r\n\r\na.mp4,b'.encode()
    )
    source = opened(folder)
    assert [source.pairs(i)[0].targets[0] for i in range(len(source))] == ['one,\r\ntwo "x"', "b"]


def test_a_field_of_csv_may_be_long(folder):
    """And go over many lines, as a transcript in a column that is not used."""
    words = "a word, and so on\n" * 20_000
    (folder / "manifest.csv").write_text(f'path,text,said\na.mp4,one,"{words}"\na.mp4,two,x\n')
    source = opened(folder)
    assert [source.pairs(i)[0].targets[0] for i in range(len(source))] == ["one", "two"]
    assert source[0].metadata["said"] == words


def test_fields_that_only_later_rows_have_are_found(folder):
    """As of captions and questions in one file, one after the other."""
    rows = [{"video": "a.mp4", "text": "t"}] * 500 + [{"video": "a.mp4", "text": "t", "query": "q"}] * 30
    write_jsonl(folder / "manifest.jsonl", rows)
    source = opened(folder)
    assert [source.pairs(i)[0].query for i in (0, 499, 500, 529)] == ["", "", "q", "q"]


def test_nested_fields_lists_and_weights(folder):
    row = {
        "image": "a.mp4",
        "pairs": [
            {"query": "q1", "targets": ["a", "b"], "kind": "k1", "weight": 2},
            {"query": "q2", "targets": "c", "kind": "k2", "weight": 0.5},
        ],
    }
    write_jsonl(folder / "manifest.jsonl", [row])
    assert opened(folder).pairs(0) == (
        Pair(query="q1", targets=("a", "b"), kind="k1", weight=2.0),
        Pair(query="q2", targets=("c",), kind="k2", weight=0.5),
    )


def test_a_list_of_texts_under_one_query_is_right_answers_of_one_pair(folder):
    rows = [{"image": "a.mp4", "captions": ["a", "b", "b"]}]
    write_jsonl(folder / "manifest.jsonl", rows)
    assert opened(folder).pairs(0) == (Pair(query="", targets=("a", "b", "b")),)


GOOD = {"video": "a.mp4", "text": "good"}


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"video": "a.mp4", "text"', "line not readable"),
        (b'["a.mp4", "x"]', "line not readable"),
        (b'{"video": 3, "text": "x"}', "line not readable"),
        (b'{"video": "a.mp4", "text": 7.5}', "line not readable"),
        (b"[" * 100_000, "line not readable"),
        (b'{"video": "a.mp4", "text": "x", "start": "soon"}', "line not readable"),
        (b'{"video": "a.mp4", "text": "x", "weight": NaN}', "line not readable"),
        (b'{"video": "a.mp4", "text": "x", "weight": 0}', "line not readable"),
        (b'{"video": "a.mp4", "text": "x", "weight": 1e308}', "line not readable"),
        (b'{"video": "a.mp4", "text": ["x", "y"], "query": ["q"]}', "line not readable"),
        (b'{"video": "a.mp4", "text": "\xff"}', "text not UTF-8"),
        (b'{"video": "a.mp4", "text": "\\ud800"}', "text not UTF-8"),
        (b'{"video": "a.mp4", "text": " \\n"}', "text empty"),
        (b'{"video": "a.mp4"}', "text empty"),
        (b'{"video": "a.mp4", "text": []}', "text empty"),
        (b'{"video": "a.mp4", "text": ["x", ""]}', "text empty"),
        (b'{"video": "a.mp4", "text": "%s"}' % (b"x" * 51), "text too long"),
        (b'{"text": "x"}', "media missing"),
        (b'{"video": "none.mp4", "text": "x"}', "media missing"),
        (b'{"video": "sub", "text": "x"}', "media missing"),
        (b'{"video": "%s", "text": "x"}' % (b"x" * 5000), "media missing"),
        (b'{"video": "\\ud800.mp4", "text": "x"}', "media missing"),
        (b'{"video": "../out.mp4", "text": "x"}', "media outside its folder"),
        (b'{"video": "sub/../../out.mp4", "text": "x"}', "media outside its folder"),
        (b'{"video": "/etc/hostname", "text": "x"}', "media outside its folder"),
        (b'{"video": "file:///etc/hostname", "text": "x"}', "media outside its folder"),
        (b'{"video": "a\\u0000.mp4", "text": "x"}', "media outside its folder"),
        (b'{"video": "link.mp4", "text": "x"}', "media outside its folder"),
        (b'{"video": "linked/out.mp4", "text": "x"}', "media outside its folder"),
        (b'{"video": "inner.mp4", "text": "x"}', None),
        (b'{"video": "empty.mp4", "text": "x"}', "media empty"),
        (b'{"video": "large.mp4", "text": "x"}', "media too large"),
        (b'{"video": "a.mp4", "text": "x", "start": 2, "end": 2}', "span outside the media"),
        (b'{"video": "a.mp4", "text": "x", "start": -1}', "span outside the media"),
    ],
)
def test_each_bad_line_has_its_cause(folder, line, cause):
    write(folder, empty__mp4=b"", large__mp4=b"x" * (LIMITS.max_media_bytes + 1))
    write(folder.parent, out__mp4=b"secret")
    os.symlink(folder.parent / "out.mp4", folder / "link.mp4")
    os.symlink(folder.parent, folder / "linked")
    os.symlink(folder / "a.mp4", folder / "inner.mp4")
    full = {**GOOD, "query": "", "start": 0, "weight": 1}
    content = json.dumps(full).encode() + b"\n" + line + b"\n" + json.dumps(GOOD).encode()
    (folder / "manifest.jsonl").write_bytes(content)
    source = opened(folder)
    assert [cause_of(source, i) for i in range(3)] == [None, cause, None]


def test_csv_rows_of_the_wrong_length_or_broken_quotes(folder):
    content = b'path,text\na.mp4,ok\na.mp4\na.mp4,x,y\na.mp4,\xff\na.mp4,"x"y\na.mp4,last'
    (folder / "manifest.csv").write_bytes(content)
    source = opened(folder)
    bad = ["line not readable", "line not readable", "text not UTF-8", "line not readable"]
    assert [cause_of(source, i) for i in range(len(source))] == [None, *bad, None]


@pytest.mark.parametrize("after", [3, 2000])
def test_a_quote_that_nobody_closes_costs_its_own_row_alone(folder, after):
    """At the end of the file as before another that is quoted."""
    good = [f"a.mp4,good {i}" for i in range(after)]
    lines = ["path,text", "a.mp4,first", 'a.mp4,"unclosed', *good, 'a.mp4,"a, b"', 'a.mp4,"again', *good]
    (folder / "manifest.csv").write_text("\n".join(lines))
    source = opened(folder)
    assert len(source) == 2 * after + 4
    bad = [i for i in range(len(source)) if cause_of(source, i) is not None]
    assert bad == [1, after + 3]
    assert {cause_of(source, i) for i in bad} == {"line not readable"}
    assert source.pairs(after + 2)[0].targets == ("a, b",)
    assert source.pairs(2 * after + 3)[0].targets == (f"good {after - 1}",)


def test_quotes_that_lead_to_the_end_of_the_file_again_and_again_are_refused(folder):
    """Each row would be read to the end: of a megabyte that takes hours."""
    (folder / "manifest.csv").write_text("path,text\na.mp4,x\n" + 'a","\n' * 20_000)
    with pytest.raises(ValueError, match=r"manifest\.csv: row after row has a quote .* line \d+ too"):
        opened(folder)


@pytest.mark.parametrize("kind", WRITERS)
def test_of_rows_with_one_key_the_first_counts(folder, kind):
    rows = [{"key": key, "path": "a.mp4", "text": text} for key, text in ("1x", "2y", "1z")]
    WRITERS[kind](folder / f"manifest.{kind}", rows)
    source = opened(folder)
    assert [source.pairs(i)[0].targets[0] for i in range(len(source))] == ["x", "y"]
    assert skipped_causes(source) == ["key not unique"]
    assert source.skipped[0].name == f"manifest.{kind}:3"


def test_which_manifest_is_a_splits(folder, tmp_path):
    for name in ("train", "val", "metadata"):
        write_jsonl(folder / f"{name}.jsonl", [{"path": "a.mp4", "text": name}])
    text = lambda *args, **kwargs: opened(*args, **kwargs).pairs(0)[0].targets[0]
    assert [text(folder, split=s) for s in ("train", "val")] == ["train", "val"]
    (folder / "train.jsonl").unlink()
    assert text(folder) == text(folder / "metadata.jsonl") == "metadata"
    # Never the training set in another's place.
    with pytest.raises(ValueError, match=r"'test'.*no file of this split.*: metadata\.jsonl, val\.jsonl"):
        opened(folder, split="test")
    assert text(folder / "val.jsonl", split="val") == "val"
    for name in ("val", "metadata"):
        with pytest.raises(ValueError, match="no file of this split"):
            opened(folder / f"{name}.jsonl", split="test")
    # A folder called as the split, as of Hugging Face's ImageFolder.
    inside = write(epath.Path(tmp_path) / "sets" / "test", x__png=png())
    (inside / "metadata.csv").write_text("file_name,caption\nx.png,hello")
    assert text(inside.parent, split="test") == "hello"


def test_any_single_manifest_is_train(folder):
    write_jsonl(folder / "some.jsonl", [GOOD])
    assert len(opened(folder)) == 1
    write_jsonl(folder / "other.jsonl", [GOOD])
    with pytest.raises(ValueError, match=r"several manifests \(other.jsonl, some.jsonl\)"):
        opened(folder)


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([GOOD], {"targets": "txt"}, r"fields.targets='txt' is none of its fields: video, text"),
        ([{"video": "a.mp4"}], {}, r"no field seems to be the targets: .*fields.targets.*video"),
        ([{**GOOD, "caption": "x"}], {}, r"text, caption could all be the targets"),
        ([{**GOOD, "image": "x"}], {}, r"video, image could all be the media"),
        ([], {}, r"no rows"),
        ([3], {}, r"none of its first rows is readable"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_one_sentence(folder, rows, fields, message):
    write_jsonl(folder / "manifest.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        opened(folder, **fields)


def test_media_inside_a_parquet_file_are_refused(folder):
    rows = [{"image": {"bytes": png(), "path": "a.png"}, "text": "x"}]
    write_parquet(folder / "train.parquet", rows)
    with pytest.raises(ValueError, match="holds media inside"):
        opened(folder)


def test_a_text_in_parquet_that_is_not_utf_8(folder):
    texts = pa.array([b"\xff", b"good"], pa.binary()).view(pa.string())
    table = pa.table({"key": texts, "path": ["a.mp4"] * 2, "text": texts})
    pyarrow.parquet.write_table(table, os.fspath(folder / "train.parquet"))
    source = opened(folder)
    assert [cause_of(source, i) for i in range(2)] == ["text not UTF-8", None]


def test_a_parquet_file_damaged_inside(folder):
    write_parquet(folder / "train.parquet", [{"path": "a.mp4", "text": f"{i}"} for i in range(1000)])
    content = bytearray((folder / "train.parquet").read_bytes())
    content[4:1000] = bytes(996)
    (folder / "train.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.parquet: it cannot be read"):
        opened(folder)[0]


def test_a_parquet_file_damaged_in_what_describes_it(folder):
    path = folder / "train.parquet"
    write_parquet(path, [GOOD])
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[-8:-4], "little")
    content[-8 - size : -8] = bytes([255]) * size
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.parquet: not a Parquet file"):
        opened(folder)


@pytest.mark.parametrize(("text", "rows"), [("x" * 2**27, 2), ("twenty bytes of text", 2**22)])
def test_a_parquet_made_to_fill_the_memory_is_refused(folder, text, rows):
    """Not one whose column repeats what is short."""
    columns = {"path": ["a.mp4"] * rows, "text": [text] + [text[:20]] * (rows - 1)}
    path = os.fspath(folder / "train.parquet")
    pyarrow.parquet.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)
    assert os.path.getsize(path) < 2**18
    table = tables.open_table(epath.Path(path))
    table.use(["path"])
    assert table.row(1) == {"path": "a.mp4"}
    table = tables.open_table(epath.Path(path))
    if rows > 2:
        table.use(["path", "text"])
        assert table.row(1) == {"path": "a.mp4", "text": text}
    else:
        with pytest.raises(ValueError, match=r"train\.parquet: text would take over 67,108,864 bytes"):
            table.use(["path", "text"])


def test_a_parquet_of_many_rows_in_few_bytes_is_read_a_few_rows_at_a_time(folder, whole_tables_read):
    rows = [{"path": "a.mp4", "text": "always this"}] * 50_000
    path = folder / "train.parquet"
    write_parquet(path, rows)
    assert path.stat().length < tables.SMALL_TABLE_BYTES / 100
    assert opened(folder).pairs(49_999)[0].targets == ("always this",)
    assert not whole_tables_read


def test_what_is_no_parquet_or_csv(folder):
    write(folder, train__parquet=b"PAR1 no", val__csv=b"a,a\n1,2")
    with pytest.raises(ValueError, match="not a Parquet file"):
        opened(folder)
    with pytest.raises(ValueError, match="must name every column once"):
        opened(folder, split="val")


def test_a_column_of_parquet_that_is_there_twice(folder):
    columns = [pa.array(["a.mp4"]), pa.array(["one"]), pa.array(["two"])]
    path = os.fspath(folder / "train.parquet")
    pyarrow.parquet.write_table(pa.Table.from_arrays(columns, ["path", "text", "text"]), path)
    with pytest.raises(ValueError, match="several of its columns are called 'text'"):
        opened(folder)
    pyarrow.parquet.write_table(
        pa.Table.from_arrays([*columns, *columns[1:]], ["path", "text", "x", "x", "y"]), path
    )
    assert opened(folder).pairs(0)[0].targets == ("one",)


def test_lists_of_one_length_in_parquet(folder):
    pair = pa.struct([("question", pa.string()), ("answer", pa.string())])
    pairs = pa.array(
        [[{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]], pa.list_(pair, 2)
    )
    table = pa.table({"path": ["a.mp4"], "qa": pairs})
    pyarrow.parquet.write_table(table, os.fspath(folder / "train.parquet"))
    assert [(p.query, p.targets) for p in opened(folder).pairs(0)] == [("q", ("a",)), ("r", ("b",))]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_manifest_needs_no_texts_where_none_are_wanted(folder, kind, keeps_promises):
    # One column may be the text, and one row has none.
    rows = [{"video": "a.mp4", "text": "one"}, {"video": "sub/b.mp4", "text": ""}]
    WRITERS[kind](folder / f"manifest.{kind}", rows)
    source = opened(folder, limits=NO_TEXT)
    assert [source[i].pairs for i in range(2)] == [(Pair(query="", targets=("one",)),), ()]
    keeps_promises(source)
    assert cause_of(opened(folder), 1) == "text empty"
    # None may be, or several.
    for columns in ({}, {"text": "one", "caption": "two"}):
        WRITERS[kind](folder / f"manifest.{kind}", [{"video": "a.mp4", **columns}])
        source = opened(folder, limits=NO_TEXT)
        assert (source[0].media.content.read_bytes(), source.pairs(0)) == (b"aaa", ())
        with pytest.raises(ValueError, match="the targets: say which"):
            opened(folder)
    assert opened(folder, limits=NO_TEXT, targets="caption").pairs(0)[0].targets == ("two",)


@pytest.mark.parametrize("path", ["http://host/clips", "https://host/a.mp4"])
def test_a_place_of_the_web_is_one_sentence(path):
    with pytest.raises(ValueError, match=f"^{path}.* is on no disk and in no bucket: download it first$"):
        opened(path)


def test_folders_with_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no dataset_info\.json, manifest"):
        opened(tmp_path)
    write(epath.Path(tmp_path), a__mp4=b"a")
    with pytest.raises(ValueError, match=r"KEY\.txt beside KEY\.mp4"):
        opened(tmp_path)


def test_a_folder_of_the_split_goes_before_files_of_others(folder):
    write_jsonl(folder / "train.jsonl", [GOOD])
    write(folder / "test", x__png=png(), x__txt="inside")
    assert opened(folder, split="test").pairs(0)[0].targets == ("inside",)
    assert opened(folder).pairs(0)[0].targets == ("good",)


@pytest.fixture
def large_parquet(folder, monkeypatch):
    """Its rows; they are read a few at a time, and none is small."""
    rows = [{"path": "a.mp4", "text": f"text {i}", "source": i} for i in range(1000)]
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(rows), os.fspath(folder / "train.parquet"), row_group_size=300
    )
    monkeypatch.setattr(tables, "SMALL_TABLE_BYTES", 0)
    monkeypatch.setattr(tables, "_BATCH_ROWS", 64)
    return rows


@pytest.fixture
def whole_tables_read(monkeypatch):
    read, found = pyarrow.parquet.read_table, []
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda *a, **k: found.append(a) or read(*a, **k))
    return found


def test_a_large_parquet_is_read_a_few_rows_at_a_time(folder, large_parquet, whole_tables_read):
    source = opened(folder)
    # As a build does: a look at some, then one shard after another, in any order.
    for shard in (range(0, 1000, 31), range(500, 1000), range(250), range(250, 500)):
        for i in shard:
            assert source.pairs(i)[0].targets == (large_parquet[i]["text"],)
    table = source._table
    assert len(table._batch) <= 64
    assert not whole_tables_read
    assert len(pickle.dumps(source)) < 5000
    again = pickle.loads(pickle.dumps(source))
    assert again.pairs(299)[0].targets == ("text 299",)


def test_a_parquet_whose_rows_are_read_in_any_order_is_read_at_once(folder, large_parquet, whole_tables_read):
    source = opened(folder)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for i in rng.permutation(1000).tolist():
            assert source.pairs(i)[0].targets == (large_parquet[i]["text"],)
    assert len(whole_tables_read) == 1
    with pytest.raises(IndexError):
        source._table.row(1000)


def test_what_was_read_in_order_before_does_not_keep_a_parquet_from_being_read_at_once(
    folder, large_parquet, whole_tables_read
):
    source = opened(folder)
    for _ in range(5):
        assert len(list(source._table.values("text"))) == 1000
    assert not whole_tables_read
    for i in np.random.default_rng(0).permutation(1000)[:150].tolist():
        source.pairs(i)
    assert len(whole_tables_read) == 1


def test_a_parquet_of_very_many_groups_is_not_opened_for_each_of_its_first_rows(folder, monkeypatch):
    """What describes them is most of the file, and each look at a row reads it."""
    table = pa.Table.from_pylist([{"path": "a.mp4", "text": f"text {i}"} for i in range(2000)])
    pyarrow.parquet.write_table(table, os.fspath(folder / "train.parquet"), row_group_size=2)
    monkeypatch.setattr(tables, "SMALL_TABLE_BYTES", 0)
    opens, plain = [], pyarrow.parquet.ParquetFile
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", lambda *a, **k: opens.append(a) or plain(*a, **k))
    source = opened(folder)
    for i in np.random.default_rng(0).integers(0, 2000, 50).tolist():
        assert source.pairs(i)[0].targets == (f"text {i}",)
    assert len(opens) < 5
    # To look for one row in all of the pieces of a table would take longer the more there are.
    assert isinstance(source._table._batch, pa.RecordBatch)
