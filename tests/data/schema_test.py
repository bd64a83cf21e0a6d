"""Records as they are stored, both ways, without TensorFlow."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from jepa_jax.data import schema
from jepa_jax.data.records import Media, Pair, Record

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
# One pair with several targets beside others; texts that look like ends of strings; none at all.
PAIRS = (
    Pair(
        query="what is it?", targets=("a cat", "ein Kätzchen", "ends in a NUL\0"), kind="question", weight=0.1
    ),
    Pair(query="", targets=("a cat sleeps",)),
    Pair(query="what is it?", targets=("a cat",), kind="question"),
)
MEDIA = {
    "bytes": Media(content=b"\0\xff\0", kind="video", start=1 / 3, end=None),
    "nothing": Media(content=b""),
    "frames": Media(content=FRAMES, kind="frames"),
}


def record_of(media: Media, pairs=PAIRS) -> Record:
    return Record(
        name="a/ü.mp4:3", media=media, pairs=pairs, metadata={"source": "x", "places": [1, {"é": None}]}
    )


def stored(record: Record) -> Record:
    """There and back."""
    return schema.to_record(schema.features().deserialize_example_np(schema.serialize(record)))


@pytest.mark.parametrize("media", MEDIA)
@pytest.mark.parametrize("pairs", [PAIRS, PAIRS[1:2]], ids=["many", "one"])
def test_a_record_comes_back_as_it_was(media, pairs):
    record = record_of(MEDIA[media], pairs)
    found = stored(record)
    content = found.media.content
    assert type(content) is type(record.media.content)
    np.testing.assert_array_equal(np.asarray(content), np.asarray(record.media.content))
    # Arrays have no one answer to ==.
    found_rest, rest = (
        dataclasses.replace(r, media=dataclasses.replace(r.media, content=b"")) for r in (found, record)
    )
    weights = [dataclasses.replace(p, weight=float(np.float32(p.weight))) for p in pairs]
    assert found_rest == dataclasses.replace(rest, pairs=tuple(weights))
    # What was stored once does not change when it is stored again.
    assert stored(found).pairs == found.pairs


def test_media_that_are_a_path_are_refused():
    with pytest.raises(ValueError, match=r"a/ü.mp4:3: the media are still at /clips/a.mp4"):
        schema.serialize(record_of(Media(content=epath.Path("/clips/a.mp4"))))


def test_equal_records_are_equal_bytes_in_every_process():
    program = (
        "import hashlib, tests.data.schema_test as t; "
        "print(hashlib.sha256(t.schema.serialize(t.record_of(t.MEDIA['frames']))).hexdigest())"
    )
    here = hashlib.sha256(schema.serialize(record_of(MEDIA["frames"]))).hexdigest()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split()[-1] == here


def test_frames_of_another_size_are_refused():
    example = schema.to_example(record_of(MEDIA["frames"]))
    features = schema.features()
    found = features.deserialize_example_np(features.serialize_example(example | {"media": b"abc"}))
    with pytest.raises(ValueError, match=r"3 bytes are no frames of shape \(3, 5, 7, 3\)"):
        schema.to_record(found)


def test_tensorflow_is_not_asked_for():
    program = (
        "import sys, tests.data.schema_test as t; t.stored(t.record_of(t.MEDIA['frames']));"
        "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]


@pytest.mark.parametrize(("features", "built"), [(schema.features(), True), ({"name": np.str_}, False)])
def test_a_built_dataset_is_known_by_its_features(tmp_path, features, built):
    (tmp_path / "cats-train.array_record-00000-of-00001").write_bytes(b"")
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[0],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=tmp_path, dataset_name="cats", split="train", filetype_suffix="array_record"
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=tmp_path, features=features, split_infos=[split], check_data=False
    )
    assert schema.is_built(tfds.builder_from_directory(tmp_path)) is built
