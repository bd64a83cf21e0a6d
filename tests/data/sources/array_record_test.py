"""ArrayRecord files of Examples that were not written by TFDS."""

import os

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from jepa_jax.data.records import Pair
from tests.data.clips import picture

from .making import NO_TEXT, cause_of, opened, png, skipped_causes


def example(**features) -> bytes:
    """A serialised Example; "__" in a name for "/"."""
    proto = tf_example_pb2.Example()
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        feature = proto.features.feature[name.replace("__", "/")]
        if isinstance(values[0], float):
            feature.float_list.value.extend(values)
        elif isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
    return proto.SerializeToString()


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_records_of_several_files(tmp_path, keeps_promises):
    write(tmp_path / "train-0.array_record", [example(image__encoded=png(), image__caption="one")])
    more = [example(image__encoded=png(level=i), image__caption=f"c{i}", image__class=3) for i in range(2)]
    write(tmp_path / "train-1.array_record", more)
    write(tmp_path / "val-0.array_record", more)
    source = opened(tmp_path)
    assert [source.name(i) for i in range(3)] == [
        "train-0.array_record:1",
        "train-1.array_record:1",
        "train-1.array_record:2",
    ]
    assert [source.pairs(i)[0].targets[0] for i in range(3)] == ["one", "c0", "c1"]
    assert source[2].media.content == png(level=1)
    assert len(opened(tmp_path, split="val")) == 2
    keeps_promises(source)


def test_records_need_no_texts_where_none_are_wanted(tmp_path):
    write(tmp_path / "0.array_record", [example(image=png(), id=3)])
    source = opened(tmp_path, NO_TEXT)
    assert (source[0].media.content, source[0].pairs, source.pairs(0)) == (png(), (), ())
    with pytest.raises(ValueError, match="no field seems to be the targets"):
        opened(tmp_path)


def test_named_fields_lists_and_spans(tmp_path):
    record = example(clip=b"v", q=["a?", "b?"], a=["x", "y"], w=[1.0, 2.0], s=0.5, e=2)
    write(tmp_path / "0.array_record", [record])
    names = {"media": "clip", "query": "q", "targets": "a", "weight": "w", "start": "s", "end": "e"}
    source = opened(tmp_path, **names)
    assert source[0].pairs == (
        Pair(query="a?", targets=("x",), weight=1.0),
        Pair(query="b?", targets=("y",), weight=2.0),
    )
    assert (source[0].media.start, source[0].media.end) == (0.5, 2.0)
    with pytest.raises(ValueError, match=r"no field seems to be the media: .*it has a, clip, e, q, s, w"):
        opened(tmp_path)


def test_a_list_of_images_is_frames(tmp_path):
    write(tmp_path / "0.array_record", [example(video__encoded=[png(), png(level=9)], text="t")])
    media = opened(tmp_path)[0].media
    assert media.kind == "frames"
    assert media.content[:, 0, 0, 0].tolist() == [0, 9]


def test_images_of_a_list_are_read_as_one_alone_is(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    dark = Image.fromarray(np.full((5, 7), 77 * 257, np.uint16))
    lists = [
        [picture(dark), picture(Image.new("RGBA", (7, 5), (0, 0, 0, 51)))],
        [picture(Image.new("RGB", (5, 7)), exif=exif)] * 2,  # to be turned
        # What starts programs, what has no known range, what is cut.
        [picture(Image.new("RGB", (7, 5)), "EPS")] * 2,
        [picture(Image.new("F", (7, 5)), "TIFF")] * 2,
        [png(7, 5)[:20], png(7, 5)],
    ]
    write(tmp_path / "0.array_record", [example(image=images, text="t") for images in lists])
    source = opened(tmp_path)
    assert source[0].media.content[:, 2, 3, 1].tolist() == [77, 204]
    assert source[1].media.content.shape == (2, 5, 7, 3)
    assert [cause_of(source, i) for i in range(2, 5)] == ["media not decodable"] * 3


def test_each_bad_record_has_its_cause(tmp_path):
    records = [
        (example(image=png(), text="good"), None),
        (b"\xff\xff no proto", "line not readable"),
        (example(text="t"), "media missing"),
        (example(image=3, text="t"), "media missing"),
        (example(image=[3, 4], text="t"), "media missing"),
        (example(image=b"", text="t"), "media empty"),
        (example(image=b"x" * 20_001, text="t"), "media too large"),
        (example(image=png()), "text empty"),
        (example(image=png(), text=b"\xff"), "text not UTF-8"),
        (example(image=png(), text=7.5), "line not readable"),
    ]
    write(tmp_path / "0.array_record", [record for record, _ in records])
    source = opened(tmp_path)
    assert [cause_of(source, i) for i in range(len(source))] == [cause for _, cause in records]


def test_damaged_files(tmp_path):
    good = [example(image=os.urandom(2000), text=f"{i}") for i in range(50)]
    content = write(tmp_path / "0.array_record", good).read_bytes()
    (tmp_path / "1.array_record").write_bytes(content[: len(content) // 2])
    (tmp_path / "2.array_record").write_bytes(b"")
    source = opened(tmp_path)
    assert len(source) == 50
    assert skipped_causes(source) == ["archive damaged"] * 2
    (tmp_path / "0.array_record").write_bytes(content[:70_000] + bytes(100) + content[70_100:])
    causes = [cause_of(opened(tmp_path), i) for i in range(50)]
    assert causes.count("archive damaged") == 1


def test_what_holds_no_examples(tmp_path):
    write(tmp_path / "a" / "0.array_record", [b"\xff\xffraw", b"\xff"])
    with pytest.raises(ValueError, match=r"no tf\.train\.Example protos"):
        opened(tmp_path / "a")
    write(tmp_path / "b" / "0.array_record", [])
    with pytest.raises(ValueError, match="none of its files holds a record"):
        opened(tmp_path / "b")


def test_identity_is_of_the_content_not_of_the_place(tmp_path):
    for folder, count in (("a", 2), ("b", 2), ("c", 3)):
        write(tmp_path / folder / "0.array_record", [example(image=png(), text="t")] * count)
    a, b, c = (opened(tmp_path / folder).identity for folder in "abc")
    assert a == b != c


def test_records_in_another_order_are_another_dataset(tmp_path):
    records = [example(image=png(), text=text) for text in ("a", "b", "c")]
    write(tmp_path / "a" / "0.array_record", records)
    write(tmp_path / "b" / "0.array_record", records[::-1])
    assert opened(tmp_path / "a").identity != opened(tmp_path / "b").identity
