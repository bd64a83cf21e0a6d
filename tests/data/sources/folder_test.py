"""Folders of media files with their texts beside them."""

import errno

import pytest
from etils import epath

from jepa_jax.data.records import Pair

from .making import NO_TEXT, cause_of, opened, png, skipped_causes, write


def test_media_with_their_texts_beside_them(tmp_path, keeps_promises):
    folder = write(epath.Path(tmp_path), _a__PNG=png(), _a__TXT="one\n", b__mp4=b"b", b__txt=b"\xff")
    write(folder, c__mp4=b"c", d__txt="d", e__jpg=b"e", e__png=b"e", e__txt="x" * 51, notes__md="no")
    source = opened(folder)
    assert [source.name(i) for i in range(len(source))] == ["_a.PNG", "b.mp4", "e.jpg"]
    assert source.pairs(0) == (Pair(query="", targets=("one",)),)
    assert [cause_of(source, i) for i in range(3)] == [None, "text not UTF-8", "text too long"]
    assert sorted(skipped_causes(source)) == ["key not unique", "media missing", "text empty"]
    keeps_promises(source)


def test_a_text_that_nobody_may_read_costs_its_own_record_alone(tmp_path, monkeypatch):
    source = opened(write(epath.Path(tmp_path), a__png=png(), a__txt="one", b__png=png(), b__txt="two"))
    read = type(epath.Path(tmp_path)).read_bytes

    def refused(path):
        if path.name == "a.txt":  # whatever its mode, a superuser may
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "read_bytes", refused)
    assert [cause_of(source, i) for i in range(2)] == ["media missing", None]


def test_a_clip_alone_is_read_with_its_text(tmp_path):
    folder = write(epath.Path(tmp_path), a__mp4=b"a", a__TXT="one", b__mp4=b"b", b__txt="two")
    assert [opened(folder / name).pairs(0)[0].targets for name in ("a.mp4", "b.mp4")] == [("one",), ("two",)]
    assert len(opened(folder / "a.mp4")) == 1


def test_a_folder_may_be_in_the_home_directory(tmp_path, monkeypatch):
    """On the command line flags see to it, in a config file nobody else."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(epath.Path(tmp_path), a__mp4=b"a", a__txt="one")
    assert opened("~/a.mp4").name(0) == "a.mp4"


def test_a_picture_beside_a_video_is_its_thumbnail(tmp_path):
    folder = write(epath.Path(tmp_path), a__jpg=png(), a__mp4=b"a", a__txt="one", b__mp4=b"b", b__png=png())
    source = opened(folder)
    assert [source.name(i) for i in range(len(source))] == ["a.mp4"]
    assert [(error.name, error.cause) for error in source.skipped] == [("b.mp4", "text empty")]


def test_the_identity_of_a_folder_is_of_its_files_not_of_its_place(tmp_path):
    def identity(name, caption="", clip=b"a"):
        return opened(write(epath.Path(tmp_path) / name, a__mp4=clip, a__txt=caption)).identity

    first = identity("here")
    assert identity("there") == first
    assert len({first, identity("here", "written later"), identity("here", "", b"cut")}) == 3


def test_media_are_of_a_split_by_their_folder(tmp_path):
    folder = write(
        epath.Path(tmp_path), train_1__mp4=b"choo", train_1__txt="a train", bus__mp4=b"b", bus__txt="a bus"
    )
    assert len(opened(folder)) == 2
    with pytest.raises(ValueError, match=r"in no folder of this split, .*val"):
        opened(folder, split="val")
    write(folder / "val", c__png=png(), c__txt="c")
    assert [opened(folder, split="val").name(0), len(opened(folder))] == ["c.png", 2]


def test_media_in_folders_inside_are_told_of(tmp_path, caplog):
    folder = write(epath.Path(tmp_path) / "of", a__mp4=b"a", a__txt="a")
    write(folder / "val", b__mp4=b"b", b__txt="b")
    assert len(opened(folder)) == 1
    assert not caplog.text
    write(folder / "cats", c__mp4=b"c", c__txt="c")
    assert len(opened(folder)) == 1
    assert "its folders (cats) are not gone into" in caplog.text
    write(epath.Path(tmp_path) / "in" / "dogs", c__mp4=b"c", c__txt="c")
    with pytest.raises(ValueError, match=r"texts beside them; its folders \(dogs\) are not gone into"):
        opened(tmp_path / "in")


def test_media_need_no_texts_where_none_are_wanted(tmp_path):
    folder = write(epath.Path(tmp_path), a__mp4=b"a", b__mp4=b"b", b__txt="two", c__txt="gone")
    source = opened(folder, limits=NO_TEXT)
    assert [(source.name(i), source.pairs(i)) for i in range(2)] == [
        ("a.mp4", ()),
        ("b.mp4", (Pair(query="", targets=("two",)),)),
    ]
    assert source[0].pairs == ()
    assert skipped_causes(source) == ["media missing"]
    write(folder, a__webm=b"w", a__jpg=b"of a")  # another video, and the thumbnail of both
    source = opened(folder, limits=NO_TEXT)
    assert [source.name(i) for i in range(3)] == ["a.mp4", "a.webm", "b.mp4"]
    source = opened(folder, limits=NO_TEXT)
    assert source.identity != opened(folder).identity


def test_fields_of_a_folder_of_media_are_refused(tmp_path):
    folder = write(epath.Path(tmp_path), a__mp4=b"a", a__txt="a")
    for path in (folder, folder / "a.mp4"):
        with pytest.raises(ValueError, match="have no fields: set none"):
            opened(path, targets="caption")
