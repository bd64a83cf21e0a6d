"""Building a dataset from any source: the same files whoever writes them, and nothing lost in silence."""

import dataclasses
import datetime
import errno
import functools
import hashlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import threadpoolctl
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from jepa_jax.data import schema
from jepa_jax.data.build import dataset, duplicates, report
from jepa_jax.data.build.dataset import Options, TooManyBadRecordsError, build
from jepa_jax.data.build.layout import BuildError
from jepa_jax.data.build.prepare import Prepare
from jepa_jax.data.build.runner import BeamRunner, WorkerDiedError
from jepa_jax.data.records import BadRecordError, Media
from jepa_jax.places import PlaceError
from tests.data.build_spans_test import make_video
from tests.tiny_source import LIMITS, MemorySource, captions

WORDS = tuple(f"caption {i} of {i % 5} cats" for i in range(53))
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def blank_pictures(monkeypatch):
    """Drawing takes most of the time of so small a build."""
    monkeypatch.setattr(report, "plot_report", lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(autouse=True)
def one_thread():
    """More of them wait for each other busily where there are few cores."""
    with threadpoolctl.threadpool_limits(1):
        yield


def in_turn(function, shards) -> None:
    for shard in shards:
        function(shard)


def backwards_and_twice(function, shards) -> None:
    for shard in [*reversed(shards), *shards]:
        function(shard)


def build_in(tmp_path, source, *, run=in_turn, bad=0.5, check=None, embed=None, **options):
    """A build of one split; its folder and report."""
    folder = tmp_path / "tiny" / "1.0.0"
    report = build(
        {"train": source},
        folder,
        Options(limits=LIMITS, **options),
        run=run,
        check=check,
        embed=embed,
        max_bad_fraction=bad,
    )
    return folder, report["splits"]["train"]


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Every file's hash; the picture's is not the build's to promise."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def names_in(folder) -> list[str]:
    builder = tfds.builder_from_directory(folder)
    return [schema.to_record(example).name for example in builder.as_data_source(split="train")]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (2500, 3), (50_000, 16), (1_000_000, 250)])
def test_a_shard_s_records_are_bounded_however_small_they_are(count, shards):
    class Large(MemorySource):
        def __len__(self):
            return count

        def __getitem__(self, index):
            return MemorySource.__getitem__(self, 0)

    assert dataset._shards("train", Prepare(Large(captions("one")), LIMITS, None), None, 0.0) == shards


def test_the_result_is_a_tfds_dataset_in_the_source_order(tmp_path):
    source = MemorySource(captions(*WORDS))
    folder, report = build_in(tmp_path, source, shards=3)
    builder = tfds.builder_from_directory(folder)
    assert schema.is_built(builder)
    assert builder.info.full_name == "tiny/1.0.0"
    assert builder.info.splits["train"].shard_lengths == [17, 18, 18]
    found = [schema.to_record(example) for example in builder.as_data_source(split="train")]
    assert [record.name for record in found] == [source.name(i) for i in range(len(WORDS))]
    for i in (0, 18, 52):
        np.testing.assert_array_equal(found[i].media.content, source[i].media.content)
        assert (found[i].pairs, found[i].metadata) == (source.pairs(i), {"index": i})
    assert (report["records"], report["pairs"], report["left_out"]) == (53, 53, {})
    assert report["bytes"] == builder.info.splits["train"].num_bytes
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "tensorflow" not in sys.modules
    # The command again says the same and writes nothing.
    before = contents(folder)
    assert build_in(tmp_path, source, shards=3, run=None)[1] == report
    assert contents(folder) == before


@pytest.mark.parametrize("split", ["train", "train[20:40]"])
def test_texts_are_read_without_media(tmp_path, split):
    folder, _ = build_in(tmp_path, MemorySource(captions(*WORDS), faults={3: "media empty"}), shards=3)
    builder = tfds.builder_from_directory(folder)
    records = [schema.to_record(example) for example in builder.as_data_source(split=split)]
    for shard in folder.glob("*.array_record-*"):
        shard.unlink()
    texts = schema.Texts(builder, split)
    found = [(texts.name(i), texts.pairs(i)) for i in range(len(texts))]
    assert found == [(record.name, record.pairs) for record in records]
    next((folder / "texts").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"the texts tiny-train.* are missing: build the dataset again"):
        schema.Texts(builder, "train")


def test_the_files_are_the_same_whoever_writes_them(tmp_path):
    """In one process and in three, in another order, and when a worker does what another has done."""
    source = MemorySource(captions(*WORDS, *WORDS[:7]), faults={5: "no frames", 40: "text empty"})
    runs = {
        "turn": in_turn,
        "backwards": backwards_and_twice,
        "beam": BeamRunner(),
        "three": BeamRunner(workers=3),
    }
    found = {}
    for name, run in runs.items():
        folder, _ = build_in(tmp_path / name, source, run=run, shards=7, remove_duplicate_texts=True)
        found[name] = contents(folder)
    assert len(found["turn"]) == 2 * 7 + 5
    for name, files in found.items():
        assert files == found["turn"], name


@pytest.fixture
def sigint_taken():
    """A program that wants SIGINT for itself."""

    def take(*_):
        pass

    before = signal.signal(signal.SIGINT, take)
    yield take
    signal.signal(signal.SIGINT, before)


# Beam's threads, when their worker is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_ends_the_build_and_the_next_goes_on(tmp_path, sigint_taken):
    """Beam's own runner would wait for it forever."""
    source = MemorySource(captions(*WORDS), kill=30, armed=tmp_path / "a" / "tiny" / "1.0.0")
    with pytest.raises(WorkerDiedError, match=r"137|-9"):
        build_in(tmp_path / "a", source, shards=4, run=BeamRunner(workers=2))
    assert signal.getsignal(signal.SIGINT) is sigint_taken
    folder, _ = build_in(tmp_path / "a", source, shards=4)
    assert contents(folder) == contents(build_in(tmp_path / "b", source, shards=4)[0])


def test_ctrl_c_within_a_shard_is_ctrl_c(sigint_taken):
    """Beam makes a RuntimeError of it, with the whole pipeline in its message."""
    with pytest.raises(KeyboardInterrupt):
        BeamRunner()(lambda _: os.kill(os.getpid(), signal.SIGINT), [0, 1])
    assert signal.getsignal(signal.SIGINT) is sigint_taken


# All passes run, and what they remove is known.
SELECTED = {"remove_duplicate_texts": True, "rebalance": 3, "cluster_size": 100}
KILLED = """
import pathlib, sys
sys.path.insert(0, {tests!r})
from build_test import SELECTED, WORDS, MemorySource, build_in, captions
here = pathlib.Path({here!r})
source = MemorySource(captions(*WORDS, *WORDS), kill={kill}, armed=here / "tiny" / "1.0.0")
build_in(here, source, shards=5, **SELECTED)
"""


def test_a_killed_build_goes_on_and_ends_the_same(tmp_path):
    """Finished shards stay as they are."""
    whole = MemorySource(captions(*WORDS, *WORDS))
    wanted = contents(build_in(tmp_path / "whole", whole, shards=5, **SELECTED)[0])
    program = KILLED.format(tests=str(pathlib.Path(__file__).parent), here=str(tmp_path), kill=52)
    folder = tmp_path / "tiny" / "1.0.0"
    times = {}
    for attempt, status in enumerate((-9, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        files = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.array_record-*")}
        if attempt == 0:
            assert not (folder / "dataset_info.json").exists()
            assert list((folder / ".build").glob("*.tmp"))
            times = files
        else:
            assert {name: files[name] for name in times} == times
    assert contents(folder) == wanted
    assert len(times) == 2


NAMES = """
import pathlib, sys
sys.path.insert(0, {tests!r})
from build_test import WORDS, BadRecordError, MemorySource, build_in, captions, report
left_out = BadRecordError("media missing", "größe 🐶.mp4")
source = MemorySource(captions(*WORDS), skipped=(left_out,), identity="größe \\udcfc.jsonl")
for _ in range(2):
    folder, found = build_in(pathlib.Path({here!r}), source)
assert report.by_cause(folder / report.LEFT_OUT, "train") == "1 media missing (first größe 🐶.mp4)"
assert report.read(folder)["splits"]["train"]["source"] == source.identity
"""


def test_names_are_kept_whatever_they_are_and_the_locale(tmp_path):
    """A locale without UTF-8, and an identity that is none."""
    program = tmp_path / "program.py"
    code = NAMES.format(tests=str(pathlib.Path(__file__).parent), here=str(tmp_path))
    program.write_text(code, encoding="utf-8")
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ascii_alone}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"identity": "another"},
            {},
            'holds another build, with sources {"train": "in memory"} and not {"train"',
        ),
        (
            {},
            {"remove_duplicate_texts": True},
            "with remove_duplicate_texts false and not true: give another",
        ),
        ({}, {"shards": 3}, 'with shards {"train": 2} and not {"train": 3}'),
    ],
)
def test_another_build_in_the_same_folder_is_refused(tmp_path, change, options, message):
    texts = captions(*WORDS)
    folder, _ = build_in(tmp_path, MemorySource(texts), shards=2)
    before = contents(folder)
    with pytest.raises(BuildError, match=message):
        build_in(tmp_path, MemorySource(texts, **change), **({"shards": 2} | options))
    assert before == contents(folder)


def test_a_folder_that_is_not_a_builds_is_refused(tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"holds thesis.txt, which no build wrote"):
        build_in(tmp_path, MemorySource(captions(*WORDS)))
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_disk_without_locks_holds_a_build(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    build_in(tmp_path, MemorySource(captions(*WORDS)))


def test_two_builds_at_once_are_refused(tmp_path):
    def meanwhile(function, shards):
        with pytest.raises(PlaceError, match="another build is at work in"):
            build_in(tmp_path, MemorySource(captions(*WORDS)))
        in_turn(function, shards)

    build_in(tmp_path, MemorySource(captions(*WORDS)), run=meanwhile)


def test_what_is_left_out_is_counted_and_listed(tmp_path):
    faults = {3: "media missing", 7: "media missing"}
    texts = list(captions(*WORDS))
    texts[11], texts[13], texts[17], texts[19] = (("", "\udc80"),), (("", " "),), (("", "x" * 54),), ()

    def check(media, name):
        if name == "record 23":
            raise BadRecordError("media truncated", name, "to order")

    source = MemorySource(
        tuple(texts), faults, skipped=(BadRecordError("line not readable", "rows.jsonl:5", "no JSON"),)
    )
    folder, report = build_in(tmp_path, source, check=check, shards=2)
    lines = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert [(line["name"], line["cause"]) for line in lines] == [
        ("rows.jsonl:5", "line not readable"),
        ("record 3", "media missing"),
        ("record 7", "media missing"),
        ("record 11", "text not UTF-8"),
        ("record 13", "text empty"),
        ("record 17", "text too long"),
        ("record 19", "text empty"),
        ("record 23", "media truncated"),
    ]
    assert lines[0] | {"detail": "no JSON", "split": "train"} == lines[0]
    assert sum(report["left_out"].values()) == len(lines) == report["source_records"] - report["records"]
    assert report["left_out"]["media missing"] == 2
    assert "record 3" not in names_in(folder)


def test_too_many_bad_records_stop_the_build(tmp_path):
    faults = dict.fromkeys(range(0, 12), "media empty") | {13: "no frames"}
    source = MemorySource(captions(*WORDS), faults)
    message = (
        r"train: 13 of 53 records .* max_bad_fraction is 0.2: 12 media empty \(first record 0\), 1 no frames"
    )
    with pytest.raises(TooManyBadRecordsError, match=message):
        build_in(tmp_path, source, bad=0.2)
    folder = tmp_path / "tiny" / "1.0.0"
    assert not (folder / "dataset_info.json").exists()
    # Nothing is read again when more of them are allowed.
    _, report = build_in(tmp_path, source, bad=0.3, run=lambda function, shards: [1 / 0 for _ in shards])
    assert report["records"] == 40


def test_where_nothing_can_be_read_it_stops_at_once(tmp_path):
    source = MemorySource(captions(*WORDS), dict.fromkeys(range(53), "media missing"))
    with pytest.raises(
        TooManyBadRecordsError, match=r"32 of the 32 records looked at first .* record 0: media"
    ):
        build_in(tmp_path, source, run=None)
    assert not (tmp_path / "tiny").exists()


def test_of_equal_texts_the_first_stays(tmp_path, monkeypatch):
    texts = (
        (("", "A cat"),),
        (("", "a  CAT "), ("what?", "a cat")),
        (("", "a dog"), ("", "A dog")),
        (("What?", "A cat"),),
        (("", "\uff41 cat"),),
        (("", "a bird"),),
    )
    folder, report = build_in(tmp_path / "all", MemorySource(texts), shards=3, remove_duplicate_texts=True)
    texts_of = schema.Texts(tfds.builder_from_directory(folder), "train")
    found = [
        (texts_of.name(i), [(p.query, *p.targets) for p in texts_of.pairs(i)]) for i in range(len(texts_of))
    ]
    assert found == [
        ("record 0", [("", "A cat")]),
        ("record 1", [("what?", "a cat")]),
        ("record 2", [("", "a dog")]),
        ("record 5", [("", "a bird")]),
    ]
    assert report["removed"] == {"records of duplicate texts": 2, "texts": 2}
    monkeypatch.setattr(duplicates, "_AT_ONCE", 2)
    parts, _ = build_in(tmp_path / "parts", MemorySource(texts), shards=3, remove_duplicate_texts=True)
    assert contents(parts) == contents(folder)


def test_rebalancing_evens_out_what_texts_say(tmp_path):
    """90 records of one topic and 15 each of two others; and the same whoever runs it."""
    topics = {
        "cat": "a cat sleeps on the warm sofa",
        "boat": "sailing boats cross a windy harbour",
        "soup": "stirring vegetable soup in the kitchen",
    }
    random.seed(3)
    said = ["cat"] * 90 + ["boat"] * 15 + ["soup"] * 15
    random.shuffle(said)
    source = MemorySource(captions(*(f"{topics[t]} {i}" for i, t in enumerate(said))))

    def kept(where, **options):
        folder, report = build_in(tmp_path / where, source, shards=4, rebalance=3, **options)
        names = names_in(folder)
        return names, [said[int(name.split()[1])] for name in names], report

    names, found, report = kept("first")
    assert {topic: found.count(topic) for topic in topics} == {"cat": 40, "boat": 15, "soup": 15}
    assert sorted(report["rebalanced"]["sizes"]) == [15, 15, 90]
    assert report["rebalanced"]["embedder"] == "n-grams"
    assert report["removed"] == {"records of large clusters": 50}
    assert kept("again", run=backwards_and_twice)[0] == names
    others = kept("other seed", seed=1)[0]
    assert len(others) == len(names)
    assert others != names


def test_a_given_embedder_decides_on_clusters(tmp_path):
    source = MemorySource(captions(*(f"{'xy'[i % 5 == 0]} {i}" for i in range(50))))

    def embed(texts):
        return np.array([[text.startswith("x"), text.startswith("y")] for text in texts], np.float32)

    folder, report = build_in(
        tmp_path, source, rebalance=2, cluster_size=10, embed=embed, embedder="first letter"
    )
    assert sorted(report["rebalanced"]["sizes"]) == [10, 40]
    assert report["rebalanced"]["embedder"] == "first letter"
    assert len(names_in(folder)) == 20


def test_more_clusters_than_texts_are_refused(tmp_path):
    with pytest.raises(BuildError, match=r"--rebalance=5: the split 'train' has only 2 different texts"):
        build_in(tmp_path, MemorySource(captions(*("ab" * 20))), rebalance=5)


def test_shards_are_as_many_as_the_records_need(tmp_path, monkeypatch):
    source = MemorySource(captions(*WORDS))
    assert build_in(tmp_path / "one", source)[1]["shards"] == 1
    monkeypatch.setattr(dataset, "_RECORDS_PER_SHARD", 20)
    assert build_in(tmp_path / "few", source)[1]["shards"] == 3
    monkeypatch.setattr(dataset, "_SHARD_BYTES", 2000)
    assert build_in(tmp_path / "large", source)[1]["shards"] > 5


def test_spans_are_stored_cut(tmp_path):
    path = tmp_path / "long.mp4"
    make_video(path, "libx264")
    picture = io.BytesIO()
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(picture, "PNG")
    media = [Media(content=epath.Path(path), start=i / 20, end=i / 20 + 0.3) for i in range(40)]
    media += [Media(content=epath.Path(path)), Media(content=picture.getvalue(), start=0.0, end=1.0)]
    source = MemorySource(captions(*WORDS[:42]), media=tuple(media))
    seen = []
    folder, report = build_in(tmp_path, source, check=lambda media, name: seen.append(type(media.content)))
    assert report["spans"] == {"cut": 40, "kept whole": 1}
    assert set(seen) == {bytes}
    assert (
        report["media_bytes"]["most"] == path.stat().st_size > 2 * report["media_bytes"]["quantiles"]["50%"]
    )
    assert report["duration_seconds"]["most"] == pytest.approx(3, abs=0.1)
    assert report["duration_seconds"]["quantiles"]["50%"] == pytest.approx(0.3, rel=0.1)
    assert len(names_in(folder)) == 42


@pytest.mark.parametrize(
    ("media", "cause"),
    [
        (Media(content=epath.Path("/nowhere/a.mp4")), "media missing"),
        (Media(content=epath.Path("/nowhere/a.mp4"), start=1.0), "media missing"),
        (Media(content=b""), "media empty"),
        (Media(content=b"x" * (2**16 + 1)), "media too large"),
    ],
)
def test_media_that_cannot_be_stored_are_left_out(tmp_path, media, cause):
    good = Media(content=b"x")
    source = MemorySource(captions(*WORDS[:4]), media=(good, media, good, good))
    folder, report = build_in(tmp_path, source)
    assert report["left_out"] == {cause: 1}
    assert names_in(folder) == ["record 0", "record 2", "record 3"]


def test_what_json_has_no_form_for_is_stored_as_text(tmp_path):
    class Source(MemorySource):
        def __getitem__(self, index):
            deep = functools.reduce(lambda inner, _: [inner], range(2000), 1)
            said = ({"key": b"caf\xc3\xa9"}, {"key": {"on": datetime.date(2020, 1, 2)}}, {"deep": deep})
            return dataclasses.replace(super().__getitem__(index), metadata=said[index])

    folder, report = build_in(tmp_path, Source(captions(*WORDS[:3])))
    assert report["left_out"] == {"line not readable": 1}
    found = tfds.builder_from_directory(folder).as_data_source(split="train")
    assert [schema.to_record(x).metadata["key"] for x in found] == ["café", {"on": "2020-01-02"}]
