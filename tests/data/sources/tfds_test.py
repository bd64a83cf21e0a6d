"""TFDS's own datasets, their real features filled with small examples, and prepared folders."""

import importlib.util
import json
import subprocess
import sys
import zlib
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from jepa_jax.config import DatasetConfig, FieldMap
from jepa_jax.data.records import BadRecordError, Limits, Pair
from jepa_jax.data.sources import open_source

from .making import LIMITS, NO_TEXT, cause_of, opened, png

FEATURES = tfds.features


def fill(monkeypatch, name, tmp_path, examples):
    """Give a dataset of TFDS these examples in place of what it downloads."""
    kind = type(tfds.builder(name, data_dir=tmp_path))
    monkeypatch.setattr(kind, "_split_generators", lambda self, dl_manager: {"train": enumerate(examples)})


def by_name(name, tmp_path, split="train", limits=LIMITS, **fields):
    config = DatasetConfig(dataset=name, data_dir=str(tmp_path), split=split, fields=FieldMap(**fields))
    return open_source(config, limits)


class Prepared(tfds.core.GeneratorBasedBuilder):
    """A dataset of the features and examples that it is given."""

    VERSION = tfds.core.Version("1.0.0")
    given: ClassVar[tuple[dict, list]] = ({}, [])

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=FEATURES.FeaturesDict(self.given[0]))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.given[1])


def prepare(tmp_path, features, examples) -> epath.Path:
    """A folder that TFDS prepared."""
    Prepared.given = (features, examples)
    builder = Prepared(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    return epath.Path(builder.data_dir)


CAPTIONED = {"image": FEATURES.Image(), "text": FEATURES.Text()}


def texts(source):
    return sorted(source.pairs(i)[0].targets[0] for i in range(len(source)))


CLEVR = {
    "image": png(),
    "file_name": "CLEVR_0.png",
    "objects": [],
    "question_answer": [
        {"question": "How many cubes?", "answer": "3"},
        {"question": "Is it red?", "answer": "no"},
    ],
}


def test_records_need_no_texts_where_none_are_wanted(tmp_path):
    folder = prepare(tmp_path / "a", {"image": FEATURES.Image()}, [{"image": png()}])
    assert opened(folder, NO_TEXT)[0].pairs == ()
    with pytest.raises(ValueError, match="no field seems to be the targets"):
        opened(folder)
    examples = [{"image": png(), "text": text} for text in ("", "one")]
    source = opened(prepare(tmp_path / "b", CAPTIONED, examples), NO_TEXT)
    assert {source[i].pairs for i in range(2)} == {(), (Pair(query="", targets=("one",)),)}


def test_questions_of_clevr(tmp_path, monkeypatch, keeps_promises):
    empty = {**CLEVR, "question_answer": [{"question": "How many?", "answer": ""}]}
    none = {**CLEVR, "question_answer": []}
    fill(monkeypatch, "clevr", tmp_path, [CLEVR, empty, none])
    source = by_name("clevr", tmp_path)
    causes = [cause_of(source, i) for i in range(3)]
    assert sorted(causes, key=str) == [None, "text empty", "text empty"]
    record = source[causes.index(None)]
    assert record.pairs == (
        Pair(query="How many cubes?", targets=("3",)),
        Pair(query="Is it red?", targets=("no",)),
    )
    # As it is stored, to be decoded to the size that is needed.
    assert record.media.content == png()
    assert record.media.kind == "image"
    assert record.metadata == {"file_name": "CLEVR_0.png"}
    keeps_promises(source)
    assert source.identity.startswith("clevr/3.1.0 train: 3 records")


AI2D = {
    "image": png(),
    "image_filename": "1.png",
    "caption": "a food web",
    "layout": 1,
    "topic": 2,
    "entities": [],
    "relationships": ["a eats b"],
}


def test_captions_of_ai2d(tmp_path, monkeypatch, keeps_promises):
    fill(monkeypatch, "ai2dcaption", tmp_path, [AI2D])
    source = by_name("ai2dcaption", tmp_path)
    record = source[0]
    assert record.pairs == (Pair(query="", targets=("a food web",)),)
    assert record.media.content == png()
    topics = tfds.builder("ai2dcaption", data_dir=tmp_path).info.features["topic"]
    assert record.metadata["topic"] == topics.int2str(2).replace("_", " ")
    assert by_name("ai2dcaption", tmp_path, targets="relationships").pairs(0)[0].targets == ("a eats b",)
    keeps_promises(source)


def test_the_label_of_a_classification_set_is_its_text(tmp_path, monkeypatch):
    labels = ("apple_pie", "ice_cream")
    fill(
        monkeypatch, "food101", tmp_path, [{"image": png(level=i), "label": x} for i, x in enumerate(labels)]
    )
    assert texts(by_name("food101", tmp_path)) == ["apple pie", "ice cream"]
    fill(monkeypatch, "cifar10", tmp_path, [{"image": png(32, 32), "label": 3, "id": "train_1"}])
    # Not its id. The names come with what it downloads: without them a label is its number.
    assert texts(by_name("cifar10", tmp_path)) == ["3"]


# As `tfds.object_detection.CocoCaptions` has them; that class itself is made with TensorFlow alone.
COCO = {
    "image": FEATURES.Image(encoding_format="jpeg"),
    "image/filename": FEATURES.Text(),
    "image/id": np.int64,
    "objects": FEATURES.Sequence(
        {"area": np.int64, "id": np.int64, "label": FEATURES.ClassLabel(num_classes=80), "is_crowd": np.bool_}
    ),
    "captions": FEATURES.Sequence({"text": np.str_, "id": np.int64}),
}


def test_a_prepared_folder_of_coco_captions(tmp_path, keeps_promises):
    captions = [{"text": text, "id": i} for i, text in enumerate(("a cat", "some cat", "the cat"))]
    example = {"image": png(), "image/filename": "7.jpg", "image/id": 7, "objects": [], "captions": captions}
    folder = prepare(tmp_path, COCO, [example])
    source = opened(folder)
    assert source[0].pairs == (Pair(query="", targets=("a cat", "some cat", "the cat")),)
    assert source[0].metadata == {"image/filename": "7.jpg", "image/id": 7}
    assert len(opened(folder, split="train[:1]")) == 1
    keeps_promises(source)
    with pytest.raises(ValueError, match=r"split 'test': no such split: it has train"):
        opened(folder, split="test")
    with pytest.raises(ValueError, match=r"fields\.media='image/id' is of the wrong type"):
        opened(folder, media="image/id")
    with pytest.raises(ValueError, match=r"fields\.targets='caption' is none of its fields: .*captions/text"):
        opened(folder, targets="caption")


def test_videos_are_read_without_tensorflow(tmp_path, keeps_promises):
    features = {"video": FEATURES.Sequence(FEATURES.Image(shape=(7, 5, 3))), "text": FEATURES.Text()}
    frames = [png(level=i) for i in range(3)]
    examples = [(frames, "good"), ([], "none"), ([frames[0], b"junk"], "junk"), ([png(), png(5, 8)], "sizes")]
    examples.append(([png(5, 7)] * 200, "many"))
    folder = prepare(tmp_path, features, [{"video": v, "text": t} for v, t in examples])
    # TFDS writes a Video in the same way, and says so in features.json.
    path = folder / "features.json"
    said = json.loads(path.read_text())
    said["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "7", "5", "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    path.write_text(json.dumps(said))
    source = opened(folder)
    causes = {source.pairs(i)[0].targets[0]: cause_of(source, i) for i in range(len(source))}
    assert causes == {
        "good": None,
        "none": "no frames",
        "junk": "media not decodable",
        "sizes": "media not decodable",
        "many": "media too large",
    }
    (good,) = (source[i] for i in range(len(source)) if causes[source.pairs(i)[0].targets[0]] is None)
    assert good.media.kind == "frames"
    assert good.media.content.shape == (3, 7, 5, 3)
    assert good.media.content[:, 0, 0].tolist() == [[i, 2, 3] for i in range(3)]
    keeps_promises(source)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 7, 5, 3), (2, 7, 5, 3)), ((2, 7, 5, 1), (2, 7, 5, 3)), ((7, 5, 3), (1, 7, 5, 3))],
)
def test_arrays_of_frames(tmp_path, shape, expected):
    frames = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    features = {
        "clip": FEATURES.Tensor(shape=shape, dtype=np.uint8),
        "label": FEATURES.ClassLabel(names=["x"]),
    }
    folder = prepare(tmp_path, features, [{"clip": frames, "label": 0}])
    found = opened(folder)[0].media.content
    assert found.shape == expected
    assert (found == frames).all()
    assert cause_of(opened(folder, Limits(max_pixels=34, max_media_bytes=10**6, max_text_characters=9)), 0)


def test_texts_that_cannot_be_used(tmp_path):
    label = FEATURES.ClassLabel(names=["x"])
    features = {"image": FEATURES.Image(), "text": FEATURES.Text(), "kind": FEATURES.Text(), "label": label}
    found = ["x" * 51, b"\xff", " ", "good"]
    examples = [{"image": png(), "text": text, "kind": "k", "label": -1} for text in found]
    examples.append({"image": b"", "text": "image", "kind": "k", "label": 0})
    source = opened(prepare(tmp_path, features, examples))
    causes = {cause_of(source, i) for i in range(5)}
    assert causes == {"text too long", "text not UTF-8", "text empty", "media empty", None}
    assert opened(tmp_path / "prepared/1.0.0").pairs(causes_index(source))[0].kind == "k"
    by_label = opened(tmp_path / "prepared/1.0.0", targets="label")
    assert sorted(map(str, (cause_of(by_label, i) for i in range(5)))) == ["media empty"] + ["text empty"] * 4


def causes_index(source) -> int:
    """The first record that can be used."""
    return next(i for i in range(len(source)) if cause_of(source, i) is None)


def test_several_that_could_be_meant_are_listed(tmp_path):
    features = {
        "left": FEATURES.Image(),
        "right": FEATURES.Image(),
        "a": FEATURES.Text(),
        "b": FEATURES.Text(),
    }
    folder = prepare(tmp_path, features, [{"left": png(), "right": png(level=9), "a": "x", "b": "y"}])
    with pytest.raises(ValueError, match=r"left, right could all be the media: say which in fields\.media"):
        opened(folder)
    with pytest.raises(ValueError, match=r"a, b could all be the targets: say which in fields\.targets"):
        opened(folder, media="left")
    record = opened(folder, media="right", targets="b", query="a")[0]
    assert record.media.content == png(level=9)
    assert record.pairs == (Pair(query="x", targets=("y",)),)


def test_damage_in_a_file_is_of_its_records(tmp_path):
    rng = np.random.default_rng(0)
    examples = [{"image": rng.bytes(2000), "text": f"{i}"} for i in range(20)]
    folder = prepare(tmp_path, CAPTIONED, examples)
    (file,) = folder.glob("*.array_record*")
    content = bytearray(file.read_bytes())
    content[20_000:20_100] = bytes(100)
    file.write_bytes(content)
    source = opened(folder)
    causes = [cause_of(source, i) for i in range(20)]
    assert causes.count("archive damaged") == 1
    assert causes.count(None) == 19


def test_files_of_another_format_are_refused(tmp_path):
    folder = prepare(
        tmp_path, {"image": FEATURES.Image(), "text": FEATURES.Text()}, [{"image": png(), "text": "t"}]
    )
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"its files are tfrecord, which has no random access"):
        opened(folder)


def test_names_that_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match=r"data\.dataset='no_such_set': no such dataset in TFDS"):
        by_name("no_such_set", tmp_path)
    with pytest.raises(ValueError, match=r"TFDS cannot build it: Manual directory .* does not exist"):
        by_name("imagenet2012", tmp_path)
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(ValueError, match=r"needs TensorFlow.*give its folder as path"):
            by_name("coco_captions", tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_prepared_folder_whose_description_is_damaged(tmp_path, name):
    folder = prepare(tmp_path, CAPTIONED, [{"image": png(), "text": "t"}])
    (folder / name).write_text('{"')
    with pytest.raises(ValueError, match=f"{folder}: TFDS cannot read what describes it"):
        opened(folder)


DICTIONARY, EVIL = "tensorflow_datasets.core.features.features_dict.FeaturesDict", "planted_features.Evil"
LEGACY = {"a": {"type": EVIL, "content": {}}}


@pytest.mark.parametrize(
    "description",
    [
        {"pythonClassName": DICTIONARY, "featuresDict": {"features": {"a": {"pythonClassName": EVIL}}}},
        {"pythonClassName": DICTIONARY, "featuresDict": {"features": {"a": {"python_class_name": EVIL}}}},
        {"type": DICTIONARY, "content": LEGACY},
        {"pythonClassName": DICTIONARY, "jsonFeature": {"json": json.dumps(LEGACY)}},
    ],
    ids=["proto", "proto's own names", "legacy", "legacy as text"],
)
def test_a_description_of_features_runs_no_code(tmp_path, monkeypatch, description):
    folder = prepare(tmp_path / "home", CAPTIONED, [{"image": png(), "text": "t"}])
    (folder / "features.json").write_text(json.dumps(description))
    (tmp_path / "planted_features.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)  # as the working directory is
    with pytest.raises(ValueError, match=r"names 'planted_features\.Evil', which is none of TFDS's own"):
        opened(folder)
    (tmp_path / "home" / "prepared").rename(tmp_path / "home" / "unknown_set")
    with pytest.raises(ValueError, match=r"names 'planted_features\.Evil', which is none of TFDS's own"):
        by_name("unknown_set", tmp_path / "home")
    assert "planted_features" not in sys.modules


@pytest.mark.parametrize("content", ["null", "[" * 100_000])
def test_a_description_that_tfds_was_not_made_for_is_one_sentence(tmp_path, content):
    folder = prepare(tmp_path, CAPTIONED, [{"image": png(), "text": "t"}])
    (folder / "features.json").write_text(content)
    with pytest.raises(ValueError, match=f"{folder}: TFDS cannot read what describes it"):
        opened(folder)


def test_more_records_than_there_are_bytes_are_refused(tmp_path):
    folder = prepare(tmp_path, CAPTIONED, [{"image": png(), "text": "t"}])
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = ["1000000000000"]
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"says 1000000000000 records, and its files have \d+ bytes"):
        opened(folder)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    return tmp_path_factory.mktemp("emoji")


def test_the_demo_is_as_its_own_source_has_it(emoji, keeps_promises):
    limits = Limits(max_pixels=32 * 32, max_media_bytes=2**20, max_text_characters=200)
    source = by_name("emoji_motion/tiny", emoji, "validation", limits)
    plain = tfds.builder("emoji_motion/tiny", data_dir=emoji).as_data_source(split="validation")
    assert len(source) == len(plain) == 64
    for i in (0, 13, 63):
        record, expected = source[i], plain[i]
        assert np.array_equal(record.media.content, expected["frames"])
        pairs = [(p.kind, p.query, p.targets) for p in record.pairs]
        columns = (expected["pairs"][key] for key in ("kind", "query", "target"))
        assert pairs == [(k.decode(), q.decode(), (t.decode(),)) for k, q, t in zip(*columns, strict=True)]
        assert record.metadata["thing"] == expected["thing"].decode()
    keeps_promises(source)
    again = by_name("emoji_motion/tiny", emoji, "validation", limits)
    assert again.identity == source.identity
    assert by_name("emoji_motion/tiny", emoji, "train", limits).identity != source.identity
    with pytest.raises(ValueError, match=r"no such split: it has train, validation"):
        by_name("emoji_motion/tiny", emoji, "tests", limits)
    small = by_name("emoji_motion/tiny", emoji, limits=Limits(**(vars(limits) | {"max_pixels": 1023})))
    with pytest.raises(BadRecordError, match="media too large"):
        small[0]


def test_tensorflow_is_not_imported(tmp_path):
    program = "import sys, jepa_jax.data.sources; print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("lengths", [(None, 8, 8, 3), (None, None, 8, 3)])
def test_frames_kept_by_zlib_are_unpacked_within_the_limits(tmp_path, lengths):
    frames = FEATURES.Tensor(shape=lengths, dtype=np.uint8, encoding=FEATURES.Encoding.ZLIB)
    some, many = (
        np.full((count, 8, 8, 3), count, np.uint8) for count in (2, LIMITS.max_media_bytes // 192 + 1)
    )
    examples = [{"frames": x, "text": f"text {len(x)}"} for x in (some, many)]
    folder = prepare(tmp_path, {"frames": frames, "text": FEATURES.Text()}, examples)
    source = opened(folder)
    short, long = sorted(range(2), key=lambda i: len(source.pairs(i)[0].targets[0]))
    np.testing.assert_array_equal(source[short].media.content, some)
    # Not unpacked first and measured then.
    with pytest.raises(BadRecordError, match=rf"of more than {LIMITS.max_media_bytes} bytes"):
        source[long]


def test_a_tensor_kept_by_zlib_that_is_damaged_is_a_bad_record(tmp_path):
    frames = FEATURES.Tensor(shape=(1, 8, 8, 3), dtype=np.uint8, encoding=FEATURES.Encoding.ZLIB)
    examples = [{"frames": np.zeros((1, 8, 8, 3), np.uint8), "text": "x"}]
    source = opened(prepare(tmp_path, {"frames": frames, "text": FEATURES.Text()}, examples))
    packed = zlib.compress(bytes(192))
    (record,) = list(source._records)
    for wrong in (packed[:-5] + bytes(5), b"no" + packed[2:]):
        assert packed in record
        source._records = [record.replace(packed, wrong)]
        assert cause_of(source, 0) == "line not readable"
