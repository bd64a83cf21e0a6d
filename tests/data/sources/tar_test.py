"""Tar shards: what img2dataset and video2dataset write, and what may be wrong with an archive."""

import gzip
import io
import json
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
from etils import epath

from jepa_jax.data.records import Pair
from jepa_jax.data.sources import tar_index as index_of

from .making import LIMITS, NO_TEXT, cause_of, opened, png, skipped_causes, write_tar


def sample(key, text="hello", **more):
    """The members of a sample as img2dataset writes them."""
    meta = {"caption": text, "url": "u", "key": key, "status": "success", "width": 5, **more}
    return [(f"{key}.jpg", png()), (f"{key}.txt", text.encode()), (f"{key}.json", json.dumps(meta).encode())]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_shards_as_img2dataset_writes_them(tmp_path, form, keeps_promises):
    write_tar(tmp_path / "00000.tar", [m for k in ("000000000", "000000001") for m in sample(k, k)], form)
    write_tar(tmp_path / "00001.tar", sample("000010000", "größer"), form)
    (tmp_path / "00000.parquet").write_bytes(b"its own")
    (tmp_path / "00000_stats.json").write_text("{}")
    source = opened(tmp_path)
    assert [source.name(i) for i in range(3)] == [
        "00000.tar/000000000",
        "00000.tar/000000001",
        "00001.tar/000010000",
    ]
    assert source.skipped == ()
    record = source[2]
    assert record.pairs == (Pair(query="", targets=("größer",)),)
    assert record.media.content == png()
    assert record.metadata["url"] == "u"
    keeps_promises(source)


def test_samples_need_no_texts_where_none_are_wanted(tmp_path, keeps_promises):
    write_tar(
        tmp_path / "0.tar", [("a.mp4", b"a"), ("b.mp4", b"b"), ("b.json", b'{"url": "u"}'), ("c.txt", b"c")]
    )
    write_tar(tmp_path / "1.tar", [("d.mp4", b"d")])
    source = opened(tmp_path, limits=NO_TEXT)
    assert [source[i].media.content for i in range(3)] == [b"a", b"b", b"d"]
    assert not any(source.pairs(i) for i in range(3))
    assert source[1].metadata == {"url": "u"}
    assert skipped_causes(source) == ["media missing"]
    keeps_promises(source)
    with pytest.raises(ValueError, match="no field seems to be the targets"):
        opened(tmp_path / "1.tar")


def test_shards_as_video2dataset_writes_them(tmp_path, keeps_promises):
    meta = {"caption": "c", "yt_meta_dict": {"info": {"title": "t"}}, "from": 2, "to": 3.5}
    members = [("a/1_0.mp4", b"video"), ("a/1_0.txt", b"said"), ("a/1_0.json", json.dumps(meta).encode())]
    members += [("a/1_0.m4a", b"sound"), ("a/1_0.jpg", png())]
    write_tar(tmp_path / "s.tar", members)
    source = opened(tmp_path, start="from", end="to")
    record = source[0]
    assert record.media.content == b"video"  # not its thumbnail
    assert (record.media.start, record.media.end) == (2.0, 3.5)
    assert record.pairs[0].targets == ("said",)
    assert opened(tmp_path, targets="yt_meta_dict/info/title", media="jpg")[0].media.content == png()
    assert opened(tmp_path, targets="yt_meta_dict/info/title").pairs(0)[0].targets == ("t",)
    keeps_promises(source)


def test_text_in_the_json_alone_with_questions(tmp_path):
    meta = {"question": "what?", "answer": ["a", "b"]}
    write_tar(tmp_path / "s.tar", [("1.png", png()), ("1.json", json.dumps(meta).encode())])
    assert opened(tmp_path).pairs(0) == (Pair(query="what?", targets=("a", "b")),)
    with pytest.raises(ValueError, match=r"fields.query='q' is none of its fields: json, png, question"):
        opened(tmp_path, query="q")


def test_questions_of_the_last_shard_alone_are_found(tmp_path):
    for i in range(3):
        said = {"caption": "c"} | ({"question": "q"} if i == 2 else {})
        files = {"png": png(), "json": json.dumps(said).encode()}
        members = [(f"{n}.{kind}", content) for n in range(30) for kind, content in files.items()]
        write_tar(tmp_path / f"{i}.tar", members)
    source = opened(tmp_path)
    assert [source.pairs(i)[0].query for i in (0, 59, 60, 89)] == ["", "", "q", "q"]


def test_splits_by_name_or_folder(tmp_path):
    for name in ("train-0", "train-1", "val-0"):
        write_tar(tmp_path / "named" / f"{name}.tar", sample("k", name))
    write_tar(tmp_path / "folders" / "val" / "0.tar", sample("k", "val"))
    assert len(opened(tmp_path / "named")) == 2
    assert len(opened(tmp_path / "named", split="val")) == 1
    assert len(opened(tmp_path / "folders", split="val")) == 1
    assert len(opened(tmp_path / "named" / "val-0.tar", split="val")) == 1
    with pytest.raises(ValueError, match="no file of this split"):
        opened(tmp_path / "named", split="test")


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/hostname"
    return info


@pytest.mark.parametrize(
    ("members", "causes"),
    [
        ([("../b.jpg", b"x")], ["media outside its folder"]),
        ([("/b.jpg", b"x")], ["media outside its folder"]),
        ([("x/../../b.jpg", b"x")], ["media outside its folder"]),
        ([link("b.jpg")], ["media outside its folder"]),
        ([link("b.jpg", tarfile.LNKTYPE)], ["media outside its folder"]),
        ([link("b.jpg", tarfile.CHRTYPE)], ["media outside its folder"]),
        ([link("b.jpg", tarfile.FIFOTYPE)], ["media outside its folder"]),
        ([link("folder", tarfile.DIRTYPE)], []),
        ([("b.jpg", b"x")], ["text empty"]),
        ([("b.txt", b"x")], ["media missing"]),
        ([*sample("b")[:2], *sample("a")], ["key not unique"]),
        ([("b.jpg", b"1"), ("b.jpg", b"2"), ("b.txt", b"t")], ["key not unique"]),
    ],
)
def test_what_is_left_out_of_an_archive(tmp_path, members, causes):
    write_tar(tmp_path / "s.tar", [*sample("a"), *members])
    source = opened(tmp_path)
    assert skipped_causes(source) == causes
    assert source[0].pairs[0].targets == ("hello",)
    if len(source) > 1:
        assert source[1].media.content in (b"1", png())
    again = opened(tmp_path)  # by the index that was kept
    assert [str(error) for error in again.skipped] == [str(error) for error in source.skipped]


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([("a.jpg", b""), ("a.txt", b"t")], "media empty"),
        ([("a.jpg", b"x" * (LIMITS.max_media_bytes + 1)), ("a.txt", b"t")], "media too large"),
        ([("a.jpg", b"x"), ("a.txt", b"t" * 51)], "text too long"),
        ([("a.jpg", b"x"), ("a.txt", b"t" * 5001)], "text too long"),
        ([("a.jpg", b"x"), ("a.txt", b"\xff")], "text not UTF-8"),
        ([("a.jpg", b"x"), ("a.txt", b" \n")], "text empty"),
        ([("a.jpg", b"x"), ("a.txt", b"t"), ("a.json", b"{")], "line not readable"),
        ([("a.jpg", b"x"), ("a.txt", b"t"), ("a.json", b"\xff")], "text not UTF-8"),
        ([("a.jpg", b"x"), ("a.txt", b"t"), ("a.json", b"[]")], "line not readable"),
    ],
)
def test_each_bad_sample_has_its_cause(tmp_path, members, cause):
    write_tar(tmp_path / "s.tar", [*sample("good"), *members])
    source = opened(tmp_path)
    assert [cause_of(source, i) for i in range(2)] == [None, cause]


def test_of_a_shard_cut_anywhere_what_is_whole_is_read(tmp_path):
    whole = write_tar(tmp_path / "whole" / "s.tar", [m for k in "abc" for m in sample(k)])
    content = whole.read_bytes()
    complete = {}
    with tarfile.open(whole) as tar:
        for member in tar:
            complete[member.name] = member.offset_data + member.size
    good = write_tar(tmp_path / "cut" / "0.tar", sample("good"))
    cut = good.parent / "s.tar"
    for length in [*range(0, 2 * 512 * 9 + 1, 251), len(content) - 1024]:
        cut.write_bytes(content[:length])
        source = opened(good.parent)
        expected = [
            f"s.tar/{k}" for k in "abc" if all(complete[f"{k}.{kind}"] <= length for kind in ("jpg", "txt"))
        ]
        assert [source.name(i) for i in range(len(source))] == ["0.tar/good", *expected], length
        assert "archive damaged" in skipped_causes(source), length
        assert all(source[i].media.content == png() for i in range(len(source)))


@pytest.mark.parametrize("size", [-512, -1024, 2**40, 2**62])
def test_a_forged_size_neither_loops_nor_allocates(tmp_path, size):
    path = write_tar(tmp_path / "s.tar", [*sample("a"), ("b.jpg", b"x"), ("b.txt", b"t")], tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmember("b.jpg").offset
    info = tarfile.TarInfo("b.jpg")
    info.size = size
    content[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(content)
    source = opened(tmp_path)
    assert len(source) == 1
    assert "archive damaged" in skipped_causes(source)


def header(kind, size) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "forged",
    [
        header(tarfile.GNUTYPE_LONGNAME, 2**62),
        header(tarfile.XHDTYPE, 2**62),
        header(tarfile.XHDTYPE, 0) * 3000,
        (header(tarfile.GNUTYPE_LONGNAME, 2) + b"b".ljust(512, b"\0")) * 3000,
    ],
    ids=["a name of exabytes", "attributes of exabytes", "attributes of attributes", "names of names"],
)
def test_forged_headers_before_a_member_end_the_archive(tmp_path, forged):
    path = write_tar(tmp_path / "s.tar", sample("a"))
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    path.write_bytes(whole[: -(-end // 512) * 512] + forged + bytes(1024))
    source = opened(tmp_path)
    assert [cause_of(source, i) for i in range(len(source))] == [None]
    assert skipped_causes(source) == ["archive damaged"]


def test_compressed_shards_are_refused(tmp_path):
    plain = write_tar(tmp_path / "a" / "s.tar", sample("a")).read_bytes()
    for name in ("s.tar", "s.tar.gz", "s.tgz"):
        folder = epath.Path(tmp_path) / name
        folder.mkdir()
        (folder / name).write_bytes(gzip.compress(plain))
        with pytest.raises(ValueError, match=r"no random access.*gunzip"):
            opened(folder)


@pytest.mark.parametrize("content", [b"", b"junk" * 1000, bytes(10240)])
def test_shards_without_samples(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(ValueError, match="no samples"):
        opened(tmp_path)


def index_file(folder):
    (found,) = [path for path in folder.iterdir() if path.name.endswith(".tar.index")]
    return found


@pytest.fixture
def headers_read(monkeypatch):
    """Of which shards headers are read."""
    read, found = index_of._read_headers, []

    def counted(path, length):
        found.append(path.name)
        return read(path, length)

    monkeypatch.setattr(index_of, "_read_headers", counted)
    return found


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(tmp_path, headers_read):
    path = write_tar(tmp_path / "s.tar", sample("a"))
    os.utime(path, (5, 5))
    first = opened(tmp_path)
    assert opened(tmp_path).identity == first.identity
    assert headers_read == ["s.tar"]
    write_tar(path, sample("b", "other text"))
    os.utime(path, (1, 1))
    assert opened(tmp_path)[0].pairs[0].targets == ("other text",)


def test_a_shard_that_is_written_again_in_the_same_second(tmp_path):
    """Its size and its time, to the second, are what they were."""
    first, second = sample("a", "xx"), sample("b", "yy")
    for members, names in (([*first, *second], "ab"), ([*second, *first], "ba")):
        path = write_tar(tmp_path / "s.tar", members)
        now = int(time.time())
        os.utime(path, (now, now))
        source = opened(tmp_path)
        os.utime(index_file(tmp_path), (now, now))
        assert [source.name(i) for i in (0, 1)] == [f"s.tar/{name}" for name in names]


def test_an_index_that_is_damaged_or_forged_is_made_anew(tmp_path, headers_read):
    write_tar(tmp_path / "s.tar", sample("a"))
    opened(tmp_path)
    kept = index_file(tmp_path)
    content, names, good = kept.read_bytes(), ("stamp", *index_of._ARRAYS), {}
    with kept.open("rb") as file:
        for name in names:
            good[name] = np.lib.format.read_array(file)

    def forged(**changes):
        file, arrays = io.BytesIO(), good | changes
        if changes.keys() <= good.keys() and all(x is not None for x in changes.values()):
            index = index_of.TarIndex(**{name: arrays[name] for name in index_of._ARRAYS})
            if not index.keys.dtype.hasobject:  # nor is the checksum any proof
                arrays["stamp"] = np.append(good["stamp"][:3], index_of._checksum(index))
        for array in arrays.values():
            if array is not None:
                np.lib.format.write_array(file, array)
        return file.getvalue()

    assert forged() == content
    evil = [
        forged(offsets=good["offsets"] + 10**12),
        forged(sizes=-good["sizes"]),
        forged(first=good["first"][::-1].copy()),
        forged(first=good["first"][None]),
        forged(keys=np.array([{}], object)),
        forged(keys=None),
        forged(keys=np.array([b"\xff"])),
        forged(extensions=np.array([b"png", b"\xf0"])),
        content.replace(bytes(good["extensions"][0]), b"gif", 1),  # a bit that a disk changed
        content[:-1],
        content + b"x",
        # More than there is.
        content.replace(b"(3,)", b"(9" + b"9" * 15 + b",)").replace(b" " * 16, b"", 1),
        # One byte, for which NumPy's reader of headers has an error of its own.
        content.replace(b"}", b" ", 1),
        content.replace(b" \n", b"\0\n", 1),
        b"PK no",
        b"",
    ]
    for number, wrong in enumerate(evil, 2):
        kept.write_bytes(wrong)
        assert opened(tmp_path)[0].media.content == png()
        assert len(headers_read) == number, number
        assert kept.read_bytes() == content


def test_samples_stay_in_the_file_of_the_index(tmp_path, headers_read):
    for shard in range(3):
        members = [m for i in range(200) for m in sample(f"{shard}{i:05}", f"text {shard} {i}")]
        write_tar(tmp_path / f"{shard}.tar", members)
    source = opened(tmp_path)
    assert len(pickle.dumps(source)) < 10_000
    again = pickle.loads(pickle.dumps(source))
    assert [again.pairs(i)[0].targets[0] for i in (0, 199, 200, 599)] == [
        "text 0 0",
        "text 0 199",
        "text 1 0",
        "text 2 199",
    ]
    assert len(headers_read) == 3
    path = tmp_path / "1.tar"
    write_tar(path, sample("other"))
    os.utime(path, (1, 1))
    opened(tmp_path)  # as another process may
    assert [cause_of(source, i) for i in (0, 200, 400)] == [None, "archive damaged", None]
    assert source.name(200) == "1.tar 0"
    index_file_of_0 = tmp_path / ".0.tar.index"
    index_file_of_0.unlink()
    assert cause_of(source, 0) == "archive damaged"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    write_tar(tmp_path / "s.tar", sample("a"))
    opened(tmp_path)
    index_file(tmp_path).unlink()

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(index_of.np.lib.format, "write_array", refuse)
    assert opened(tmp_path)[0].media.content == png()
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


def test_a_name_of_any_length_takes_no_memory_from_the_others(tmp_path):
    write_tar(tmp_path / "s.tar", [*sample("a"), *sample("b" * 100_000), *sample("c")])
    source = opened(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["s.tar/a", "s.tar/c"]
    assert set(skipped_causes(source)) == {"archive damaged"}
    assert index_file(tmp_path).stat().st_size < 10_000


def test_identity_is_of_the_content_not_of_the_place(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "xy")):
        write_tar(tmp_path / name / "s.tar", sample("k", text))
    a, b, c = (opened(tmp_path / name).identity for name in "abc")
    assert a == b != c


def test_samples_in_another_order_are_another_dataset(tmp_path):
    """What is kept of each by its number, such as visual tokens, would be another's."""
    first, second = sample("a", "xx"), sample("b", "yy")
    write_tar(tmp_path / "a" / "s.tar", [*first, *second])
    write_tar(tmp_path / "b" / "s.tar", [*second, *first])
    a, b = (opened(tmp_path / name) for name in "ab")
    assert [a.name(i) for i in (0, 1)] == [b.name(i) for i in (1, 0)]
    assert a.identity != b.identity
