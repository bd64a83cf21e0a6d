"""Reading a cache of visual tokens, and every kind of cache that is refused."""

import dataclasses
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from pydantic import ValidationError

from jepa_jax import config as c
from jepa_jax.data import features
from jepa_jax.data.features import FeatureSource, Manifest
from jepa_jax.data.records import BadRecordError
from tests import tiny
from tests.records import Records, example

RECORDS, SHARD, TOKENS = 11, 3, (5, 7)
BAD = {"4": ("media truncated", "clip 4", "at byte 17")}
FROZEN = c.OptimConfig(factors=c.LearningRateFactors(x_encoder=0.0))


def records(count: int = RECORDS) -> Records:
    return Records([example(i) for i in range(count)])


def run_with(folder, **changes) -> c.Config:
    """A run from a cache; changes of `data`."""
    return tiny.run_config(optim=FROZEN, data=c.DataConfig(features=str(folder), **changes))


def written(folder, **changes) -> np.ndarray:
    """A cache, written by other means than the package's; its tokens."""
    made_with = features.made_with(run_with("anywhere"))
    content = {
        "format": 1,
        "x_encoder": "abc",
        "made_with": made_with,
        "dataset": "clips, split 'train'",
        "identity": features.identity_of(records()),
        "records": RECORDS,
        "tokens": TOKENS,
        "shard_records": SHARD,
        "bad": BAD,
    }
    (folder / "features.json").write_text(json.dumps(content | changes))
    visual = tiny.normal(RECORDS, *TOKENS).astype(ml_dtypes.bfloat16)
    for shard in range(4):
        part = visual[shard * SHARD : (shard + 1) * SHARD]
        (folder / f"0000{shard}-of-00004.bfloat16").write_bytes(part.tobytes())
    return visual


def test_every_record_is_read_in_any_order_by_threads_and_after_pickling(tmp_path):
    visual = written(tmp_path)
    source = FeatureSource(str(tmp_path), records())
    assert len(source) == RECORDS
    order = [i for i in np.random.default_rng(0).permutation(RECORDS * 20) % RECORDS if i != 4]
    for reader in (source, pickle.loads(pickle.dumps(source))):
        with ThreadPoolExecutor(4) as pool:
            for i, found in zip(order, pool.map(reader.visual, order), strict=True):
                assert (found.shape, found.dtype) == (TOKENS, ml_dtypes.bfloat16)
                np.testing.assert_array_equal(found, visual[i])
    for index in (-1, RECORDS):
        with pytest.raises(IndexError):
            source.visual(index)


def test_it_may_be_in_the_home_directory(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(FeatureSource(f"~/{tmp_path.name}", records())) == RECORDS


def test_a_record_that_could_not_be_read_says_why_again(tmp_path):
    written(tmp_path)
    with pytest.raises(BadRecordError) as raised:
        FeatureSource(str(tmp_path), records()).visual(4)
    assert (raised.value.cause, raised.value.name, raised.value.detail) == BAD["4"]


@pytest.mark.parametrize("count", [RECORDS - 1, RECORDS + 1])
def test_other_data_is_refused(tmp_path, count):
    written(tmp_path)
    words = rf"made of other data \(clips, split 'train', 11 records\) than this run's {count} records"
    with pytest.raises(ValueError, match=words):
        FeatureSource(str(tmp_path), records(count))


def test_as_many_other_records_are_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(ValueError, match="made of other data"):
        FeatureSource(str(tmp_path), Records([example(i + 1) for i in range(RECORDS)]))


def test_a_cache_that_is_not_finished_is_refused(tmp_path):
    written(tmp_path, bad=None)
    with pytest.raises(
        ValueError, match=r"is not finished: run python -m jepa_jax\.data\.cache_features again"
    ):
        FeatureSource(str(tmp_path), records())


@pytest.mark.parametrize("damage", ["missing", "cut", "longer"])
@pytest.mark.parametrize("shard", [1, 3])
def test_a_shard_that_is_not_whole_is_refused(tmp_path, damage, shard):
    written(tmp_path)
    path = tmp_path / f"0000{shard}-of-00004.bfloat16"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-1] if damage == "cut" else content + b"x")
    with pytest.raises(ValueError, match=f"lacks a whole 0000{shard}-of-00004"):
        FeatureSource(str(tmp_path), records())


def test_a_shard_cut_while_in_use_is_an_error(tmp_path):
    written(tmp_path)
    source = FeatureSource(str(tmp_path), records())
    path = tmp_path / "00000-of-00004.bfloat16"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="was cut while it was in use"):
        source.visual(2)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"records": "11"},
        {"records": 0},
        {"tokens": [5]},
        {"shard_records": 0},
        {"more": 1},
        {"bad": {"11": BAD["4"]}},
        {"bad": {"x": BAD["4"]}},
        {"bad": {"4": ["bored", "clip 4", ""]}},
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path, change):
    written(tmp_path, **change)
    with pytest.raises(ValueError, match=r"features\.json describes no cache of visual tokens \("):
        FeatureSource(str(tmp_path), records())


def test_a_folder_without_a_description_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no features\.json: make it with python -m"):
        FeatureSource(str(tmp_path), records())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"frames": 6}}, "data.frames is 8 there and 6 in this run"),
        ({"data": {"resize": 50}}, "data.resize is None there and 50 in this run"),
        ({"data": {"max_pixels": 3}}, f"data.max_pixels is {2**26} there and 3 in this run"),
        (
            {"model": {"compute_dtype": "bfloat16"}},
            "model.compute_dtype is 'float32' there and 'bfloat16' in",
        ),
        ({"x_encoder": {"image_size": 40}}, "model.x_encoder.image_size is 35 there and 40 in this run"),
        ({"x_encoder": {"patch_size": 7}}, "model.x_encoder.patch_size is 5 there and 7 in this run"),
        ({"x_encoder": {"tubelet_size": 4}}, "model.x_encoder.tubelet_size is 2 there and 4 in this run"),
        (
            {"x_encoder": {"tiled_rope": False}},
            "model.x_encoder.tiled_rope is True there and False in this run",
        ),
        ({"x_encoder": {"norm_eps": 1e-5}}, "model.x_encoder.norm_eps is 1e-06 there and 1e-05 in this run"),
    ],
)
def test_other_preprocessing_is_refused_with_the_field_that_differs(tmp_path, changes, sentence):
    written(tmp_path)
    config = run_with(tmp_path, **changes.get("data", {}))
    features.check_preprocessing(run_with(tmp_path))
    model = tiny.model(x_encoder=tiny.x_encoder(**changes.get("x_encoder", {})), **changes.get("model", {}))
    with pytest.raises(ValueError, match="was made otherwise: ") as raised:
        features.check_preprocessing(dataclasses.replace(config, model=model))
    assert sentence in str(raised.value)
    assert ";" not in str(raised.value)


def test_what_tokens_do_not_depend_on_may_differ(tmp_path):
    written(tmp_path)
    config = run_with(tmp_path, threads=7, pairs_per_clip=2, length_buckets=((5, 9),), max_bad_fraction=0.9)
    model = tiny.model(remat="layer", scan_layers=True, predictor=tiny.llama(layers=1))
    features.check_preprocessing(dataclasses.replace(config, model=model, batch_size=4, seed=3))


def test_other_weights_are_refused(tmp_path):
    written(tmp_path)
    features.check_weights(str(tmp_path), "abc")
    with pytest.raises(ValueError, match="made by an X-Encoder of other weights than this run's"):
        features.check_weights(str(tmp_path), "abd")


def test_a_trained_x_encoder_has_no_features():
    trained = c.OptimConfig(factors=c.LearningRateFactors(x_encoder=0.5))
    with pytest.raises(
        ValidationError, match=r"frozen X-Encoder, but optim\.factors\.x_encoder=0\.5 trains it"
    ):
        tiny.run_config(optim=trained, data=c.DataConfig(features="somewhere"))


def test_shards_cover_all_records_once():
    manifest = Manifest(
        x_encoder="", made_with={}, dataset="", identity="", records=11, tokens=(1, 1), shard_records=3
    )
    assert [i for shard in range(manifest.shards) for i in manifest.records_of(shard)] == list(range(11))
