"""Batches are a pure function of (seed, step), on any number of hosts."""

import collections
import dataclasses

import numpy as np
import pytest

from jepa_jax import flags
from jepa_jax.data import pipeline
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.examples import text_id
from jepa_jax.data.loader import Loader
from jepa_jax.data.tokenizer import load_tokenizers
from tests.records import Records, example

CONFIG = flags.load_config("tests/tiny_config.py")


SOURCE = Records([example(i, long=i % 3 == 0) for i in range(50)])
TOKENIZERS = load_tokenizers(CONFIG)


def with_data(**fields):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **fields))


ONE_BUCKET = with_data(length_buckets=((16, 16),))


def records_of(batch) -> list[int]:
    return batch["frames"][:, 0, 0, 0, 0].tolist()


class Arrays:
    """What the batches of a run hold, without the tally."""

    def __init__(self, dataset):
        self._dataset = dataset

    def __getitem__(self, step: int):
        return self._dataset[step].arrays


def make(config, *sources, **options):
    return Arrays(pipeline.batches(config, sources or [SOURCE], TOKENIZERS, **options))


def test_shapes_and_types_are_those_of_the_legend():
    batch = make(ONE_BUCKET)[0]
    kinds = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
    assert kinds == {
        "frames": ((8, 4, 32, 32, 3), "uint8"),
        "query": ((8, 16), "int32"),
        "query_mask": ((8, 16), "bool"),
        "target": ((8, 16), "int32"),
        "target_mask": ((8, 16), "bool"),
        "target_id": ((8,), "int32"),
    }


@pytest.mark.parametrize("config", [CONFIG, ONE_BUCKET], ids=["two buckets", "one bucket"])
def test_a_batch_is_a_function_of_seed_and_step(config):
    first, again = make(config), make(config)
    other = make(dataclasses.replace(config, seed=1))
    for step in (5, 0, 7):
        for name, x in first[step].items():
            np.testing.assert_array_equal(x, again[step][name], err_msg=name)
    assert any(records_of(first[s]) != records_of(other[s]) for s in range(4))


@pytest.mark.parametrize("hosts", [2, 4])
def test_every_host_reads_its_share_of_the_same_global_batch(hosts):
    whole = make(CONFIG)
    shares = [make(CONFIG, process_index=i, process_count=hosts) for i in range(hosts)]
    for step in range(20):
        parts = [share[step] for share in shares]
        assert len({p["query"].shape for p in parts}) == 1
        assert {len(p["frames"]) for p in parts} == {8 // hosts}
        rows = sorted(i for p in parts for i in records_of(p))
        assert rows == sorted(records_of(whole[step]))
        # The texts too, whichever host drew them.
        ids = sorted(i for p in parts for i in p["target_id"].tolist())
        assert ids == sorted(whole[step]["target_id"].tolist())


def test_every_record_comes_once_an_epoch_in_another_order():
    config = dataclasses.replace(ONE_BUCKET, batch_size=10)
    dataset = make(config)
    epochs = [[i for s in range(5 * e, 5 * e + 5) for i in records_of(dataset[s])] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert epochs[0] != epochs[1] != epochs[2]


def test_pairs_change_from_epoch_to_epoch():
    config = dataclasses.replace(ONE_BUCKET, batch_size=10)
    dataset = make(config)
    drawn = collections.defaultdict(set)
    for step in range(40):
        batch = dataset[step]
        for record, target in zip(records_of(batch), batch["target_id"].tolist(), strict=True):
            drawn[record].add(target)
    assert np.mean([len(ids) for ids in drawn.values()]) > 2


def test_a_global_batch_comes_from_one_length_bucket():
    dataset = make(CONFIG)
    shapes = collections.Counter()
    for step in range(60):
        batch = dataset[step]
        long = {i % 3 == 0 for i in records_of(batch)}
        assert len(long) == 1
        assert batch["query"].shape[1] == (16 if long.pop() else 8)
        shapes[batch["query"].shape[1]] += 1
    # Each bucket as often as it has records: 17 of 50 are long.
    assert 0.2 < shapes[16] / 60 < 0.5


def test_weights_choose_the_kind_of_pair():
    dataset = make(with_data(length_buckets=((16, 16),), pair_weights=(("how_many", 2.0),)))
    one = text_id("one")
    assert all((dataset[s]["target_id"] == one).all() for s in range(3))


def test_several_pairs_of_a_clip_stand_side_by_side_and_none_twice():
    batch = make(with_data(length_buckets=((16, 16),), pairs_per_clip=3))[0]
    assert batch["frames"].shape[0] == 8
    assert batch["query"].shape == (24, 16)
    for record, ids in zip(records_of(batch), batch["target_id"].reshape(8, 3).tolist(), strict=True):
        texts = {f"a cat {record}", f"a dog {record}", "one"}
        assert set(ids) == {int(text_id(t)) for t in texts}


def test_more_pairs_than_a_record_has_are_filled_up():
    batch = make(with_data(length_buckets=((16, 16),), pairs_per_clip=5))[0]
    assert batch["query"].shape == (40, 16)


def test_the_iterator_goes_on_from_its_saved_state():
    dataset = pipeline.batches(CONFIG, [SOURCE], TOKENIZERS)
    loader = Loader(dataset, CONFIG.data, BadRecords(0.0))
    for _ in range(3):
        next(loader)
    state = loader.get_state()
    assert state == {"step": 3}
    expected = next(loader)
    found = next(Loader(dataset, CONFIG.data, BadRecords(0.0), state))
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)
        np.testing.assert_array_equal(dataset[3].arrays[name], x)


def test_equal_texts_have_equal_ids_and_others_differ():
    texts = [f"a cat {i}" for i in range(5000)]
    assert len({int(text_id(t)) for t in texts}) == 5000
    assert text_id("a cat") == text_id("a " + "cat")


def test_queries_and_targets_reach_the_right_tokenizer_and_the_prefix_only_targets():
    config = with_data(length_buckets=((16, 16),), pair_weights=(("how_many", 1.0),), target_prefix="a cat ")
    query, target = load_tokenizers(config)
    batch = pipeline.batches(config, [SOURCE], (query, target))[0].arrays
    np.testing.assert_array_equal(batch["query"][0], TOKENIZERS[0]("how many?", 16)[0])
    np.testing.assert_array_equal(batch["target"][0], TOKENIZERS[1]("a cat one", 16)[0])


@pytest.mark.parametrize(
    ("config", "source", "hosts", "sentence"),
    [
        (CONFIG, Records([]), 1, "has no records"),
        (CONFIG, SOURCE, 3, "batch_size=8 is not a multiple of the 3 hosts"),
        (with_data(pair_weights=(("poem", 1.0),)), SOURCE, 1, "gives no odds to any kind of pair"),
    ],
)
def test_what_cannot_work_is_said_at_once(config, source, hosts, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline.batches(config, [source], TOKENIZERS, process_count=hosts)
