"""Batches are a pure function of (seed, step), on any number of hosts."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import types

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from jepa_jax import flags
from jepa_jax.config import DatasetConfig, LearningRateFactors
from jepa_jax.data import pipeline
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.examples import draw_by_odds, target_id
from jepa_jax.data.loader import Loader
from jepa_jax.data.records import Pair
from jepa_jax.data.tokenizer import Tokenizer, load_tokenizers
from tests.records import Records, example
from tests.records import record as make_record

CONFIG = flags.load_config("tests/tiny_config.py")


SOURCE = Records([example(i, long=i % 3 == 0) for i in range(50)])
CAPTIONS = Records([make_record(0, Pair(query="", targets=("a cat",)))])
TOKENIZERS = load_tokenizers(CONFIG)


def text_id(text: str) -> np.int32:
    return target_id(*TOKENIZERS[1](text, 16))


def with_data(**fields):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **fields))


ONE_BUCKET = with_data(length_buckets=((16, 16),))


# Three datasets: 1 of clips of 4 frames and short texts, 2 of 8 frames, with short and long texts. Numbers
# tell them apart: below 50, from 50, from 100 on.
MIXED = [
    Records([example(i) for i in range(30)]),
    Records([example(i, long=i % 2 == 0) for i in range(50, 90)]),
    Records([example(i, long=i % 5 == 0) for i in range(100, 120)]),
]
MIXTURE = with_data(
    mixture=(
        DatasetConfig(path="a", weight=2.0),
        DatasetConfig(path="b", weight=3.0, frames=8),
        DatasetConfig(path="c", weight=1.0, frames=8),
    )
)


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


# SHA-256 of the first batches: the demo's figures in README.md were measured on these.
GOLDEN = {
    "configs/demo.py": "843c37f4be07fbea 5999121f660f0849 97d5fcf981af0da1 5e63d750d69e3659",
    "tests/tiny_config.py": "0a291ed6d948fca3 e457687ce3362c15 5a554230d65e53ed 96e0b3e65b557345",
}


def digest(batch) -> str:
    found = hashlib.sha256()
    ids = batch["target_id"]
    # Which ids are equal is all that is asked of them.
    for name, x in sorted((batch | {"target_id": ids[:, None] == ids}).items()):
        found.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(("file", "expected"), GOLDEN.items(), ids=["demo", "two buckets"])
def test_the_demo_s_batches_are_what_they_were(file, expected, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "golden"
    seed = "3" if "demo" in file else "0"
    changes = [("data.dataset", "emoji_motion/tiny"), ("data.data_dir", str(folder)), ("seed", seed)]
    config = flags.override(flags.load_config(file), changes)
    sources = pipeline.open_sources(config.data, BadRecords(0.0))
    dataset = pipeline.batches(config, sources, load_tokenizers(config))
    assert " ".join(digest(dataset[s].arrays) for s in (0, 1, 7, 400)) == expected


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("mixed", [False, True], ids=["one dataset", "a mixture"])
def test_every_host_reads_its_share_of_the_same_global_batch(hosts, mixed):
    config, sources = (MIXTURE, MIXED) if mixed else (CONFIG, [SOURCE])
    whole = make(config, *sources)
    shares = [make(config, *sources, process_index=i, process_count=hosts) for i in range(hosts)]
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


def test_a_batch_of_a_mixture_has_one_shape_and_each_dataset_its_share():
    dataset = make(MIXTURE, *MIXED)
    shapes, drawn = collections.Counter(), collections.Counter()
    steps = 240
    for step in range(steps):
        batch = dataset[step]
        shapes[batch["frames"].shape[1], batch["query"].shape[1]] += 1
        for number in records_of(batch):
            # A dataset's frames and a record's bucket are those of the batch.
            assert batch["frames"].shape[1] == (4 if number < 50 else 8)
            long = number % 2 == 0 if number < 100 else number % 5 == 0
            assert batch["query"].shape[1] == (16 if number >= 50 and long else 8)
        drawn.update("abc"[number // 50] for number in records_of(batch))
    share = {shape: n / steps for shape, n in shapes.items()}
    # 2/6; 3/6 x 1/2 + 1/6 x 4/5; 3/6 x 1/2 + 1/6 x 1/5.
    expected = {(4, 8): 2 / 6, (8, 8): 23 / 60, (8, 16): 17 / 60}
    assert share == pytest.approx(expected, abs=0.02)
    whole = {name: n / drawn.total() for name, n in drawn.items()}
    assert whole == pytest.approx({"a": 2 / 6, "b": 3 / 6, "c": 1 / 6}, abs=0.02)
    # Record by record: no batch of a shape that two datasets have is of one alone, where the smaller
    # share, 8 of 23, is that of a record or more.
    for step in range(40):
        batch = dataset[step]
        if (batch["frames"].shape[1], batch["query"].shape[1]) == (8, 8):
            assert {number < 100 for number in records_of(batch)} == {True, False}


def test_weights_as_far_apart_as_they_may_be_mix_and_others_are_refused():
    def weighed(*weights):
        mixture = [
            dataclasses.replace(d, weight=w) for d, w in zip(MIXTURE.data.mixture, weights, strict=True)
        ]
        return with_data(mixture=tuple(mixture))

    assert max(records_of(make(weighed(1e12, 1e-12, 1e12), *MIXED)[0])) < 120
    for weight in (1e308, 1e-308):
        with pytest.raises(ValueError, match="weight"):
            weighed(weight, 1.0, 1.0)


def of_dataset(**fields):
    """A run on one dataset with such settings."""
    return with_data(length_buckets=((16, 16),), mixture=(DatasetConfig(path="a", **fields),))


def texts_of(config, source, side: str, steps: int = 12) -> set[str]:
    """All queries or targets of the first batches."""
    tokenizer = TOKENIZERS[side == "target"]
    known = {tuple(tokenizer(text, 16)[0]): text for text in KNOWN}
    dataset = make(config, source)
    return {known[tuple(row)] for s in range(steps) for row in dataset[s][side]}


KNOWN = ("cat", "the cat", "how many cat", "one", "a cat", "two cats and a dog", "one {query}")
ANSWERS = Records(
    [make_record(i, Pair(query="cat", targets=("one", "two cats and a dog", "a cat"))) for i in range(5)]
)


@pytest.mark.parametrize(
    ("fields", "side", "texts"),
    [
        ({}, "query", {"cat"}),
        ({"query_templates": ("{query}", "the {query}", "how many {query}")}, "query", set(KNOWN[:3])),
        ({}, "target", {"one", "a cat", "two cats and a dog"}),
        ({"target": "first"}, "target", {"one"}),
        ({"target": "longest"}, "target", {"two cats and a dog"}),
    ],
)
def test_a_dataset_says_what_is_asked_and_learnt(fields, side, texts):
    assert texts_of(of_dataset(**fields), ANSWERS, side) == texts


def test_a_query_may_hold_braces():
    source = Records([make_record(0, Pair(query="{query}", targets=("one",)))])
    assert texts_of(of_dataset(query_templates=("one {query}",)), source, "query") == {"one {query}"}


def test_a_random_span_changes_and_a_whole_one_does_not():
    source = Records([make_record(0, Pair(query="cat", targets=("one",)), frames=40)])
    for span, several in (("whole", False), ("random", True)):
        dataset = make(of_dataset(span=span), source)
        seen = {tuple(clip[:, 0, 0, 1]) for s in range(3) for clip in dataset[s]["frames"]}
        assert (len(seen) > 1) == several
        assert all(list(clip) == sorted(clip) for clip in seen)


def test_several_pairs_are_drawn_one_after_the_other_by_the_odds_of_those_left():
    """Frequencies of ordered draws of two against their probabilities, by chi-square."""
    odds = np.array([0.5, 0.0, 0.3, 0.2])
    rng = np.random.default_rng(0)
    draws = [tuple(draw_by_odds(rng, odds, 2).tolist()) for _ in range(6000)]
    expected = {
        (i, j): odds[i] * odds[j] / (1 - odds[i])
        for i, j in itertools.permutations(range(4), 2)
        if odds[i] and odds[j]
    }
    counts = collections.Counter(draws)
    assert set(counts) == set(expected)
    seen = [counts[pair] for pair in expected]
    assert stats.chisquare(seen, [6000 * p for p in expected.values()]).pvalue > 1e-3
    assert stats.chisquare(seen, [6000 / 6] * 6).pvalue < 1e-6
    # Three of four have odds: a fourth can only be one of them again.
    assert set(draw_by_odds(rng, odds, 4).tolist()) <= {0, 2, 3}


def test_odds_of_a_pair_are_its_own_times_its_kind_s():
    pairs = [
        Pair(kind="x", query="cat", targets=("one",), weight=3.0),
        Pair(kind="y", query="cat", targets=("a cat",)),
        Pair(kind="z", query="cat", targets=("two cats and a dog",), weight=50.0),
    ]
    dataset = make(of_dataset(pair_weights=(("x", 1.0), ("y", 2.0))), Records([make_record(0, *pairs)]))
    ids = np.concatenate([dataset[s]["target_id"] for s in range(100)])
    assert np.mean(ids == text_id("one")) == pytest.approx(3 / 5, abs=0.05)
    assert np.mean(ids == text_id("a cat")) == pytest.approx(2 / 5, abs=0.05)


def test_features_stand_for_frames_and_media_are_not_read(tmp_path, monkeypatch):
    class Features:
        def __init__(self, folder, source):
            assert (folder, len(source)) == (str(tmp_path), 50)

        def visual(self, index):
            return np.full((7, 5), index, ml_dtypes.bfloat16)

    def unread(*_):
        raise AssertionError("media were read")

    monkeypatch.setattr(pipeline, "FeatureSource", Features)
    monkeypatch.setattr(Records, "__getitem__", unread)
    monkeypatch.setattr(Records, "pairs", lambda self, i: self._records[i].pairs)
    frozen = dataclasses.replace(CONFIG.optim, factors=LearningRateFactors(x_encoder=0.0))
    data = dataclasses.replace(ONE_BUCKET.data, features=str(tmp_path))
    batch = make(dataclasses.replace(CONFIG, optim=frozen, data=data))[0]
    assert "frames" not in batch
    assert (batch["visual"].shape, batch["visual"].dtype) == ((8, 7, 5), ml_dtypes.bfloat16)
    ids = {int(text_id(text)): i for i in range(50) for text in (f"a cat {i}", f"a dog {i}")}
    for visual, target in zip(batch["visual"], batch["target_id"].tolist(), strict=True):
        assert target == text_id("one") or ids[target] == visual[0, 0]


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


def test_a_clip_is_shifted_as_a_whole_and_by_every_shift_there_is():
    marked = example(0)
    marked.media.content[..., 0] = 0
    marked.media.content[:, 10, 20, 0] = 255
    batches = make(with_data(length_buckets=((16, 16),), max_shift=2), Records([marked] * 8))
    seen = set()
    for step in range(40):
        for clip in batches[step]["frames"]:
            frames, rows, columns = np.nonzero(clip[..., 0])
            assert frames.tolist() == [0, 1, 2, 3]
            assert len(set(rows)) == len(set(columns)) == 1
            seen.add((rows[0] - 10, columns[0] - 20))
    assert seen == set(itertools.product(range(-2, 3), repeat=2))


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


@pytest.mark.parametrize("config", [ONE_BUCKET, CONFIG], ids=["one bucket", "two"])
def test_a_batch_may_be_one_clip(config):
    dataset = pipeline.batches(dataclasses.replace(config, batch_size=1, fsdp=1), [SOURCE], TOKENIZERS)
    with contextlib.closing(Loader(dataset, config.data, BadRecords(0.0))) as loader:
        assert len(next(loader)["frames"]) == 1


def test_equal_texts_have_equal_ids_and_others_differ():
    texts = [f"a cat {i}" for i in range(5000)]
    assert len({int(text_id(t)) for t in texts}) == 5000
    assert text_id("a cat") == target_id(*TOKENIZERS[1]("a cat", 12))


def test_texts_with_the_same_tokens_are_one_target():
    """The Y-Encoder gives them one embedding: as negatives of one another they could not be told apart."""
    same = "a cat and a dog and a cat and a dog and a cat and a dog "
    pair = lambda text: Pair(query="what", targets=(text,))
    records = [make_record(i, pair(same + end)) for i, end in enumerate(["walk", "run", "sleep"])]
    batch = make(ONE_BUCKET, Records([*records, make_record(3, pair("a cat"))]))[0]
    found = dict(zip(records_of(batch), batch["target_id"].tolist(), strict=True))
    assert len({found[i] for i in found if i < 3}) == 1
    assert len(set(found.values())) == 2


def test_queries_and_targets_reach_the_right_tokenizer_and_the_prefix_only_targets():
    config = with_data(length_buckets=((16, 16),), pair_weights=(("how_many", 1.0),), target_prefix="a cat ")
    query, target = load_tokenizers(config)
    batch = pipeline.batches(config, [SOURCE], (query, target))[0].arrays
    np.testing.assert_array_equal(batch["query"][0], TOKENIZERS[0]("how many?", 16)[0])
    np.testing.assert_array_equal(batch["target"][0], TOKENIZERS[1]("a cat one", 16)[0])


def test_a_pair_s_targets_are_not_the_letters_of_one_text():
    with pytest.raises(ValueError, match="one text, 'a cat': put it into a tuple"):
        Pair(query="", targets="a cat")


@pytest.mark.parametrize("weight", [-1.0, np.inf, np.nan])
def test_a_record_whose_weights_are_no_odds_is_left_out(weight):
    """Of a source of one's own: those of the package see to it."""
    rest = [make_record(i, Pair(query="one", targets=("one",))) for i in range(8)]
    pairs = (Pair(query="one", targets=("one",)), Pair(query="two", targets=("two",), weight=weight))
    source = Records([*rest, make_record(8, *pairs)])
    batches = pipeline.batches(dataclasses.replace(ONE_BUCKET, batch_size=9, fsdp=1), [source], TOKENIZERS)
    found = batches[0]
    assert 8 not in records_of(found.arrays)
    assert [str(error) for error in found.bad] == [f"clip 8: no pair to draw (weights: 1, {weight:g})"]


@pytest.mark.parametrize("side", ["query", "target"])
def test_a_text_with_a_token_that_the_model_lacks_is_left_out(side):
    """As <image_soft_token> of Gemma 3's tokenizer, which a caption may well hold."""
    texts = [{"query": "one", "targets": ("one",)} for _ in range(9)]
    texts[4][side if side == "query" else "targets"] = "expands" if side == "query" else ("expands",)
    source = Records([make_record(i, Pair(**text)) for i, text in enumerate(texts)])
    small = Tokenizer("emoji_motion", vocab_size=1 + max(TOKENIZERS[0]("one", 16)[0]))
    tokenizers = tuple(small if name == side else TOKENIZERS[0] for name in ("query", "target"))
    batches = pipeline.batches(dataclasses.replace(ONE_BUCKET, batch_size=9, fsdp=1), [source], tokenizers)
    found = batches[0]
    assert 4 not in records_of(found.arrays)
    assert {(error.cause, error.name) for error in found.bad} == {("text not in the vocabulary", "clip 4")}


@pytest.mark.parametrize(
    ("config", "source", "hosts", "sentence"),
    [
        (CONFIG, Records([]), 1, "has no records"),
        (CONFIG, SOURCE, 3, "batch_size=8 is not a multiple of the 3 hosts"),
        (with_data(pair_weights=(("poem", 1.0),)), SOURCE, 1, "gives no odds to any kind of pair"),
        # As captions beside files have none, whose run is given the demo decoder's weights.
        (
            with_data(pair_weights=(("describe", 1.0),)),
            CAPTIONS,
            1,
            r"have, '': name these, or set it to \(\)",
        ),
    ],
)
def test_what_cannot_work_is_said_at_once(config, source, hosts, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline.batches(config, [source], TOKENIZERS, process_count=hosts)


def test_files_whose_names_are_not_utf_8_have_an_identity():
    one, other = (types.SimpleNamespace(identity=f"manifest train-{c}.jsonl") for c in "\udcfc\udce4")
    assert len({pipeline.identity([source]) for source in (one, other)}) == 2
