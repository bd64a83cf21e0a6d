"""Datasets in the form of `python -m jepa_jax.data.build`, written here by its schema alone."""

import copy
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from jepa_jax.data.records import BadRecordError, Media, Pair, Record
from jepa_jax.data.schema import TEXTS, features, texts_to_bytes, to_example, to_record
from jepa_jax.data.sources.built import BuiltSource

from .making import cause_of, opened, png, same


class Stored(tfds.core.GeneratorBasedBuilder):
    """A dataset of the records that it is given."""

    VERSION = tfds.core.Version("1.0.0")
    given: tuple[Record, ...] = ()

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=features())

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((record.name, to_example(record)) for record in self.given)


def build(tmp_path, records) -> epath.Path:
    """The folder of a built dataset."""
    Stored.given = tuple(records)
    builder = Stored(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    folder = epath.Path(builder.data_dir)
    (folder / TEXTS).mkdir()
    for path in folder.glob("*.array_record*"):
        writer = ArrayRecordWriter(os.fspath(folder / TEXTS / path.name), "group_size:1")
        for content in ArrayRecordDataSource(os.fspath(path)):
            writer.write(texts_to_bytes(to_record(features().deserialize_example_np(content))))
        writer.close()
    return folder


FRAMES = np.arange(2 * 7 * 5 * 3, dtype=np.uint8).reshape(2, 7, 5, 3)
PAIRS = (Pair(query="q", targets=("a", "b"), kind="k", weight=2.0), Pair(query="", targets=("c",)))
RECORDS = (
    Record(name="x.jsonl:1", media=Media(content=png(), kind="image"), pairs=PAIRS, metadata={"url": "u"}),
    Record(name="x.jsonl:2", media=Media(content=b"v", start=0.5, end=1.25), pairs=PAIRS[1:]),
    Record(name="x.jsonl:3", media=Media(content=FRAMES, kind="frames"), pairs=PAIRS[:1]),
)


def test_records_come_back_as_they_were(tmp_path, keeps_promises):
    source = opened(build(tmp_path, RECORDS))
    assert isinstance(source, BuiltSource)
    found = {source.name(i): source[i] for i in range(3)}
    assert len(found) == 3
    for record in RECORDS:
        assert same(found[record.name], record)
        assert found[record.name].media.start == record.media.start
    keeps_promises(source)


def test_the_limits_of_the_run_hold(tmp_path):
    long = (Pair(query="", targets=("t" * 51,)),)
    many = np.zeros((200, 7, 5, 3), np.uint8)
    records = [
        Record(name="long", media=Media(content=b"x"), pairs=long),
        Record(name="large", media=Media(content=bytes(20_001)), pairs=PAIRS),
        Record(name="many", media=Media(content=many, kind="frames"), pairs=PAIRS),
    ]
    source = opened(build(tmp_path, records))
    causes = {source.name(i): cause_of(source, i) for i in range(3)}
    assert causes == {"long": "text too long", "large": "media too large", "many": "media too large"}


def test_what_is_wrong_with_a_built_dataset(tmp_path):
    folder = build(tmp_path, RECORDS)
    with pytest.raises(ValueError, match="in a built one all are known"):
        opened(folder, targets="pairs/target")
    with pytest.raises(ValueError, match="no such split: it has train"):
        opened(folder, split="test")
    (path,) = (folder / TEXTS).iterdir()
    path.unlink()
    with pytest.raises(ValueError, match="are missing: build the dataset again"):
        opened(folder)


def test_a_copy_opens_files_of_its_own(tmp_path):
    records = [Record(name="a", media=Media(content=png()), pairs=(Pair(query="", targets=("x",)),))]
    source = opened(build(tmp_path, records))
    assert same(source[0], records[0])
    again = copy.copy(source)
    assert not any((*again._records._readers, *again._texts._records._readers))
    assert same(again[0], source[0])
    assert any(again._records._readers)


def test_records_in_another_order_are_another_dataset(tmp_path):
    """What is kept of each by its number, such as visual tokens, would be another's."""

    def identity(place: str, texts: str) -> str:
        # TFDS has records in an order that it makes of their names.
        records = [
            Record(name=str(i), media=Media(content=png()), pairs=(Pair(query="", targets=(text,)),))
            for i, text in enumerate(texts)
        ]
        return opened(build(tmp_path / place, records)).identity

    assert identity("1", "abc") == identity("2", "abc") != identity("3", "cba")


@pytest.mark.parametrize(
    "texts",
    [
        b"3",
        b'["n", 5]',
        b'["n", [["q", null, "", 1.0]]]',
        b'["n", [["q", [], "", 1.0]]]',
        b'["n", [["q", [["t"]], "", 1.0]]]',
        b'["n", [["q", ["t"], ["k"], 1.0]]]',
        b'["n", [["q", ["t"], "", NaN]]]',
        b'["n", [["q", ["t"], "", -1.0]]]',
        b'["n", [["q", ["t"], "", "w"]]]',
        b"[" * 10_000,
        b"\xff",
    ],
)
def test_texts_that_others_wrote_otherwise_are_a_bad_record(tmp_path, texts):
    folder = build(tmp_path, RECORDS[:1])
    (path,) = (folder / TEXTS).iterdir()
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    writer.write(texts)
    writer.close()
    source = opened(folder)
    assert isinstance(source.name(0), str)
    with pytest.raises(BadRecordError):
        source.pairs(0)
