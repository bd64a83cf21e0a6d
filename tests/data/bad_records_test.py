"""Bad records are replaced, counted and named, and too many of them stop a run."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jepa_jax import flags
from jepa_jax.data import pipeline
from jepa_jax.data.bad_records import UNWANTED, BadRecords, TooManyBadRecordsError
from jepa_jax.data.examples import TRIES
from jepa_jax.data.loader import Loader
from jepa_jax.data.records import BadRecordError, Pair
from jepa_jax.data.tokenizer import load_tokenizers
from tests.records import Records, example, record

CONFIG = flags.override(
    flags.load_config("tests/tiny_config.py"), [("data.length_buckets", "((16, 16),)"), ("data.threads", "1")]
)
TOKENIZERS = load_tokenizers(CONFIG)


def missing(number: int) -> BadRecordError:
    return BadRecordError("media missing", f"clip {number}", "no such file")


def source(*bad: int) -> Records:
    return Records([missing(i) if i in bad else example(i) for i in range(40)])


def batches(records, config=CONFIG, **options):
    return pipeline.batches(config, [records], TOKENIZERS, **options)


def numbers(batch) -> list[int]:
    return batch.arrays["frames"][:, 0, 0, 0, 0].tolist()


def test_a_bad_record_is_replaced_and_all_others_stay():
    whole, torn = batches(source()), batches(source(5, 17))
    met = []
    for step in range(20):
        expected, found = numbers(whole[step]), numbers(torn[step])
        assert not {5, 17} & set(found)
        replaced = [i for i, number in enumerate(expected) if number in (5, 17)]
        assert [n for i, n in enumerate(expected) if i not in replaced] == [
            n for i, n in enumerate(found) if i not in replaced
        ]
        assert torn[step].records == 8 + len(torn[step].bad)
        assert len(torn[step].bad) >= len(replaced)
        met += [error.name for error in torn[step].bad]
    assert {"clip 5", "clip 17"} == set(met)
    # Not always by the same record.
    assert len({n for step in range(20) for n in numbers(torn[step])} - {5, 17}) > 30


def test_the_replacement_is_a_function_of_seed_and_place():
    torn, again = batches(source(*range(20))), batches(source(*range(20)))
    shares = [batches(source(*range(20)), process_index=i, process_count=2) for i in range(2)]
    for step in (3, 0, 7):
        for name, x in torn[step].arrays.items():
            np.testing.assert_array_equal(x, again[step].arrays[name])
        rows = np.empty(8, int)
        rows[0::2], rows[1::2] = (numbers(share[step]) for share in shares)
        assert rows.tolist() == numbers(torn[step])
        assert sum(len(share[step].bad) for share in shares) == len(torn[step].bad)


def test_a_dataset_of_bad_records_only_says_so():
    with pytest.raises(TooManyBadRecordsError) as error:
        batches(source(*range(40)))[0]
    assert f"{TRIES} records of emoji_motion/tiny" in str(error.value)
    assert f"{TRIES} media missing (first clip " in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_length_bucket_of_bad_records_only_is_filled_from_the_others(tmp_path):
    rows = [{"media": f"{i}.png", "caption": f"a square of the very dark colour {i}"} for i in range(6)]
    for i in range(6):
        Image.new("RGB", (32, 32), (i, i, i)).save(tmp_path / f"{i}.png")
    rows.append({"media": "gone.png", "caption": "gone"})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = [("data.path", str(tmp_path)), ("data.length_buckets", "((4, 4), (16, 16))")]
    config = flags.override(CONFIG, changes)
    sources = pipeline.open_sources(config.data, BadRecords(1.0))
    dataset = pipeline.batches(config, sources, TOKENIZERS)
    lengths, met = set(), set()
    for step in range(30):
        batch = dataset[step]
        lengths.add(batch.arrays["target"].shape[1])
        assert set(numbers(batch)) <= set(range(6))
        met |= {error.name for error in batch.bad}
    assert lengths == {4, 16}
    assert met == {"manifest.jsonl:7"}


def test_records_without_a_wanted_pair_are_left_out_and_are_no_fault():
    other = record(0, Pair(kind="poem", query="cat", targets=("one",)))
    weights = dataclasses.replace(CONFIG.data, pair_weights=(("how_many", 1.0),), max_bad_fraction=0.0)
    config = dataclasses.replace(CONFIG, data=weights)
    mixed = Records([other, *(example(i) for i in range(1, 5))])
    bad = BadRecords(0.0)
    loader = Loader(batches(mixed, config), config.data, bad)
    for _ in range(5):
        assert 0 not in next(loader)["frames"][:, 0, 0, 0, 0]
    assert bad.total
    assert UNWANTED in bad.summary()


@pytest.mark.parametrize(
    ("bad", "limit", "stops"), [(2, 0.2, False), (20, 0.2, True), (1, 0.0, True), (0, 0.0, False)]
)
def test_more_than_the_limit_stops_the_loader(bad, limit, stops):
    loader = Loader(batches(source(*range(bad))), CONFIG.data, BadRecords(limit))
    error = None
    try:
        for _ in range(20):
            next(loader)
    except TooManyBadRecordsError as caught:
        error = str(caught)
    assert (error is not None) == stops
    if stops:
        assert f"more than data.max_bad_fraction={limit:g} allows: media missing (" in error
        assert "first clip " in error


def test_what_was_left_out_while_opening_counts_by_itself():
    bad = BadRecords(0.25)
    skipped = [BadRecordError("line not readable", f"line {i}") for i in range(30)]
    bad.opened("a", 200, skipped)
    assert bad.total == 30
    bad.read(1_000_000, [])
    with pytest.raises(
        TooManyBadRecordsError, match=r"30 of 100 records of b cannot be used.*line not readable"
    ):
        bad.opened("b", 100, skipped)


def test_every_record_is_named_once_in_the_log(caplog):
    bad = BadRecords(1.0)
    for _ in range(3):
        bad.read(10, [missing(1), BadRecordError("media truncated", "clip 2", "3 of 9 bytes")])
    assert [r.message for r in caplog.records] == [
        "left out: clip 1: media missing (no such file)",
        "left out: clip 2: media truncated (3 of 9 bytes)",
    ]
    assert bad.total == 6
    caplog.clear()
    bad.read(5000, [missing(i) for i in range(3000)])
    assert 10 < len(caplog.records) < 25
    assert "2048 records so far: media missing" in caplog.text


def test_the_file_names_all_and_the_next_run_goes_on_with_it(tmp_path, caplog):
    file = tmp_path / "run" / "bad_records.json"
    BadRecords(1.0, file).save()
    assert not file.exists()
    first = BadRecords(1.0, file)
    first.read(8, [missing(1), missing(2)])
    first.save()
    caplog.clear()
    second = BadRecords(1.0, file)
    second.read(8, [missing(2), missing(3), BadRecordError("text empty", "x")])
    second.save()
    assert "clip 2" not in caplog.text
    found = json.loads(file.read_text())
    assert found["causes"]["media missing"] == {
        "records": 3,
        "names": {f"clip {i}": "no such file" for i in (1, 2, 3)},
    }
    assert found["causes"]["text empty"] == {"records": 1, "names": {"x": ""}}
    assert second.summary() == f"left out: 3 media missing, 1 text empty; see {file}"
    assert second.total == 3


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"causes": {"text empty": {"names": 1, "records": 2}}}', "[" * 10**5]
)
def test_a_damaged_file_of_a_run_that_goes_on_is_begun_anew(tmp_path, caplog, content):
    file = epath.Path(tmp_path / "bad_records.json")
    file.write_text(content)
    bad = BadRecords(0.5, file)
    assert "is damaged, and the count begins anew" in caplog.text
    bad.read(100, [BadRecordError("text empty", "a")])
    bad.save()
    assert "1 text empty" in BadRecords(0.5, file).summary()


def test_a_name_does_not_tell_a_terminal_what_to_do(caplog):
    name = "a\x1b]0;owned\x07\nerror: all is well é"
    BadRecords(0.5).read(1, [BadRecordError("text empty", name)])
    with pytest.raises(TooManyBadRecordsError) as caught:
        BadRecords(0.0).read(1, [BadRecordError("text empty", name)])
    for said in (caplog.messages[0], str(caught.value)):
        assert said.isprintable()
        assert r"a\x1b]0;owned\x07\nerror: all is well é" in said
