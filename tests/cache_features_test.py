"""The command that caches visual tokens, and training that reads them."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import nnx

from jepa_jax import config as c
from jepa_jax import flags, sharding
from jepa_jax.checkpoint import sha256
from jepa_jax.data import cache_features, features, pipeline
from jepa_jax.data.bad_records import BadRecords
from jepa_jax.data.decode import read_frames
from jepa_jax.data.loader import Loader
from jepa_jax.data.records import BadRecordError, Limits
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.places import held
from jepa_jax.sharding import shard_global_batch
from jepa_jax.state import abstract_state, draw_state
from jepa_jax.step import abstract_batch, train_step
from tests import tiny
from tests.processes import environment, free_port
from tests.records import Records, example

ROOT = pathlib.Path(__file__).parent.parent
COUNT, SHARD = 31, 11
BAD = {7: ("media truncated", "clip 7", "at byte 17"), 22: ("text empty", "clip 22", "")}
CONFIG = tiny.run_config(
    model=tiny.model(
        # Wide enough that its matrices are split over 2 and 4 devices.
        x_encoder=tiny.x_encoder(layers=1, width=48, mlp_width=384),
        predictor=tiny.llama(layers=1, vocab_size=1024),
        y_encoder=tiny.bert(layers=1, vocab_size=1024),
    ),
    optim=c.OptimConfig(learning_rate=0.01, factors=c.LearningRateFactors(x_encoder=0.0)),
    data=c.DataConfig(frames=4, max_bad_fraction=0.1),
    batch_size=8,
)
TOKENS = (98, 48)
ENCODER = cache_features.Encoder


def source() -> Records:
    """Clips of noise, two of which cannot be read."""
    clips = [example(i) for i in range(COUNT)]
    clips = [
        dataclasses.replace(x, media=dataclasses.replace(x.media, content=tiny.pixels(8, 20, 30, 3, seed=i)))
        for i, x in enumerate(clips)
    ]
    return Records([BadRecordError(*BAD[i]) if i in BAD else x for i, x in enumerate(clips)])


def prepare() -> None:
    """The command on `source`, in shards that a test can fill; patched in this process for good."""
    cache_features.open_source = lambda dataset, limits: source()
    cache_features.SHARD_RECORDS = SHARD


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    monkeypatch.setattr(cache_features, "open_source", lambda dataset, limits: source())
    monkeypatch.setattr(cache_features, "SHARD_RECORDS", SHARD)


@functools.cache
def encoder(mesh) -> cache_features.Encoder:
    """Drawn and compiled once for all tests."""
    return ENCODER(dataclasses.replace(CONFIG, fsdp=mesh.shape["fsdp"]), mesh)


def one_device():
    return sharding.make_mesh(1, jax.devices()[:1])


def make(out, config: c.Config = CONFIG, *, devices: int = 1) -> int:
    """A cache made in this process on some of its devices, eight clips at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cache_features, "make_mesh", lambda fsdp: sharding.make_mesh(fsdp, jax.devices()[:devices])
        )
        patch.setattr(cache_features, "Encoder", lambda config, mesh: encoder(mesh))
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, features=str(out)))
        return cache_features.cache(config, epath.Path(out), 8)


def contents(out: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def tokens(out: pathlib.Path) -> np.ndarray:
    """[records, N, D] float32; NaN for those that cannot be read."""
    read = features.FeatureSource(str(out), source())
    missing = np.full(TOKENS, np.nan)
    return np.stack([missing if i in BAD else read.visual(i) for i in range(COUNT)]).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache that nobody disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_features, "open_source", lambda dataset, limits: source())
        patch.setattr(cache_features, "SHARD_RECORDS", SHARD)
        out = tmp_path_factory.mktemp("whole") / "cache"
        assert make(out) == 0
    return out


@pytest.fixture(scope="module")
def initial():
    """Structure and state that training by the config starts from."""
    mesh = one_device()
    graphdef, template = abstract_state(CONFIG, mesh)
    return graphdef, draw_state(CONFIG, jax.tree.map(lambda x: x.sharding, template))


def assert_same_tokens(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for rounding: a float32 result a few units away may fall to the next bfloat16."""
    np.testing.assert_allclose(actual, expected, rtol=2**-7, atol=1e-5)
    assert np.nanmean(actual != expected) < 0.1


def test_tokens_are_those_of_the_model_that_training_starts_from(whole, initial):
    graphdef, state = initial
    model: VLJEPA = nnx.merge(graphdef, state.trained, state.frozen)
    good = [i for i in range(COUNT) if i not in BAD]
    clips = [
        read_frames(source()[i].media, 4, resize=None, crop=35, name="", limits=Limits.of(CONFIG.data))
        for i in good
    ]
    found = np.asarray(jax.jit(lambda m, x: m.encode_frames(x))(model, np.stack(clips)))
    assert_same_tokens(tokens(whole)[good], found.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_three_shards_and_a_description_are_written(whole):
    names = ["00000-of-00003.bfloat16", "00001-of-00003.bfloat16", "00002-of-00003.bfloat16"]
    sizes = [(whole / name).stat().st_size for name in names]
    assert sizes == [n * np.prod(TOKENS) * 2 for n in (11, 11, 9)]
    manifest = features.read_manifest(whole)
    assert manifest.bad == {str(i): bad for i, bad in BAD.items()}
    assert (manifest.records, manifest.tokens, manifest.shard_records) == (COUNT, TOKENS, SHARD)
    read = features.FeatureSource(str(whole), source())
    for i, bad in BAD.items():
        with pytest.raises(BadRecordError) as raised:
            read.visual(i)
        assert raised.value.args == bad


def test_one_device_and_eight_give_the_same_tokens(whole, tmp_path):
    """With weights split over four of them; two devices are those of the two hosts below."""
    assert make(tmp_path, dataclasses.replace(CONFIG, fsdp=4), devices=8) == 0
    assert_same_tokens(tokens(tmp_path), tokens(whole))
    assert features.read_manifest(tmp_path) == features.read_manifest(whole)


def test_a_folder_that_another_caches_into_is_refused(tmp_path):
    """Half of its shard and half of ours would be under one name."""
    with held(tmp_path, "caching"), pytest.raises(flags.UsageError, match="another caching of features is"):
        make(tmp_path)
    assert not contents(tmp_path)


def child() -> None:
    """The command in a process of its own, which kills itself where it is told."""
    moment, *arguments = sys.argv[1:]
    prepare()
    writer = cache_features._ShardWriter
    calls = []

    def die_at(name: str, method):
        def called(self, *arguments):
            calls.append(name)
            if moment == f"{name}{calls.count(name)}":
                os.kill(os.getpid(), signal.SIGKILL)
            return method(self, *arguments)

        return called

    for name in ("write", "commit"):
        setattr(writer, name, die_at(name, getattr(writer, name)))
    sys.exit(flags.run(cache_features.main, arguments))


def start(tmp_path, out, moment: str, *arguments: str) -> subprocess.Popen:
    (tmp_path / "config.py").write_text("from tests.cache_features_test import CONFIG as config\n")
    program = "from tests.cache_features_test import child; child()"
    command = [sys.executable, "-c", program, moment, f"--config={tmp_path / 'config.py'}", f"--out={out}"]
    # As `conftest.py` sets them for this process: programs must be the same to the last bit.
    environ = environment() | {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *arguments], env=environ, cwd=ROOT, **output)


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_files(whole, tmp_path, monkeypatch):
    """In the middle of the second shard; then, in this process, to the end."""
    out = tmp_path / "cache"
    process = start(tmp_path, out, "write4", "--config.fsdp=1", "--batch_size=8")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == -signal.SIGKILL, output
    kept = contents(out)
    assert "00000-of-00003.bfloat16" in kept
    assert "00001-of-00003.bfloat16" not in kept
    with pytest.raises(ValueError, match="is not finished"):
        features.FeatureSource(str(out), source())
    read = []
    original = cache_features._read
    monkeypatch.setattr(cache_features, "_read", lambda i, *rest: (read.append(i), original(i, *rest))[1])
    assert make(out) == 0
    assert sorted(read) == list(range(SHARD, COUNT))  # the finished shard is kept
    assert contents(out) == contents(whole)
    assert make(out) == 0
    assert len(read) == COUNT - SHARD  # and now all of them


def test_two_hosts_share_the_records_and_give_the_same_tokens(whole, tmp_path):
    port = free_port()
    out = tmp_path / "cache"
    several = [f"--coordinator=127.0.0.1:{port}", "--processes=2", "--heartbeat=10", "--batch_size=16"]
    hosts = [start(tmp_path, out, "never", *several, f"--process={i}") for i in range(2)]
    try:
        outputs = [host.communicate(timeout=240)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], outputs
    # Two shards at a time, one on each.
    wrote = [{i for i in range(3) if f"0000{i}-of" in output} for output in outputs]
    assert wrote == [{0, 2}, {1}]
    assert features.read_manifest(out) == features.read_manifest(whole)
    assert_same_tokens(tokens(out), tokens(whole))


def test_a_folder_that_holds_another_cache_is_refused(whole, monkeypatch):
    before = contents(whole)
    with pytest.raises(flags.UsageError, match=r"data\.frames is 4 there and 2 in this run"):
        make(whole, dataclasses.replace(CONFIG, data=c.DataConfig(frames=2)))
    monkeypatch.setattr(encoder(one_device()), "sha256", "another")
    with pytest.raises(flags.UsageError, match="the weights of the X-Encoder are others"):
        make(whole)
    assert contents(whole) == before


def test_a_folder_that_holds_other_data_is_refused(whole, monkeypatch):
    monkeypatch.setattr(cache_features, "open_source", lambda *_: Records([example(0)]))
    with pytest.raises(flags.UsageError, match=r"31 records there, .*1 now\): name another"):
        make(whole)


def test_too_many_bad_records_end_it_and_a_larger_fraction_finishes(tmp_path, capsys, monkeypatch):
    strict = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_bad_fraction=0.05))
    assert make(tmp_path, strict) == 1
    assert (
        "error: 2 of 31 records cannot be read, more than data.max_bad_fraction=0.05 allows: "
        "1 media truncated (first clip 7), 1 text empty (first clip 22): allow for more, or mend them and "
        f"delete {tmp_path}, in which they are left out"
    ) in capsys.readouterr().err
    monkeypatch.delattr(cache_features, "_read")  # nothing is read again
    assert make(tmp_path) == 0
    assert tokens(tmp_path).shape == (COUNT, *TOKENS)


def test_a_shard_that_is_made_again_is_of_the_records_as_they_are_now(tmp_path, monkeypatch):
    assert make(tmp_path) == 0
    (tmp_path / "00000-of-00003.bfloat16").unlink()
    mended = Records([example(i) if i == 7 else x for i, x in enumerate(source()._records)])
    mended.identity = source().identity
    monkeypatch.setattr(cache_features, "open_source", lambda *_: mended)
    assert make(tmp_path) == 0
    assert list(features.read_manifest(tmp_path).bad) == ["22"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--config.data.mixture=({'dataset':'x','span':'random'},)"],
            "x, split 'train': span='random' takes other frames of a clip each time",
        ),
        (["--config.data.mixture=({'dataset':'x'},)"], "is of one dataset: data.mixture must be empty"),
        ([], "optim.factors.x_encoder=1.0 trains it: set that to 0"),
        (
            ["--config.optim.factors.x_encoder=0", "--batch_size=9"],
            "=9 is not a multiple of the 8 devices",
        ),
        (["--config.optim.factors.x_encoder=0", "--batch_size=0"], "at least 1"),
    ],
)
def test_what_cannot_be_cached_is_refused_and_nothing_written(tmp_path, capsys, arguments, sentence):
    out = tmp_path / "cache"
    command = ["--config=tests/tiny_config.py", f"--out={out}", *arguments]
    assert flags.run(cache_features.main, command) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def first_batches(config: c.Config) -> list[dict[str, np.ndarray]]:
    data = pipeline.batches(config, [source()], load_tokenizers(config), bad=BadRecords(1.0))
    with contextlib.closing(Loader(data, config.data, BadRecords(1.0))) as loader:
        return [next(loader) for _ in range(4)]


def rounded(batches, initial) -> list[dict[str, np.ndarray]]:
    """Batches of frames with what the model itself makes of them, to bfloat16."""
    graphdef, state = initial
    model: VLJEPA = nnx.merge(graphdef, state.trained, state.frozen)
    encode = jax.jit(lambda model, frames: model.encode_frames(frames).astype(jnp.bfloat16))
    return [
        {
            **{name: x for name, x in batch.items() if name != "frames"},
            "visual": encode(model, batch["frames"]),
        }
        for batch in batches
    ]


def steps(config: c.Config, initial, batches) -> list[dict[str, float]]:
    """Metrics of some steps from the start."""
    graphdef, state = initial
    mesh = one_device()
    step = jax.jit(train_step, static_argnames=("graphdef", "config"))
    metrics = []
    with jax.set_mesh(mesh):
        for batch in batches:
            placed = shard_global_batch(jax.device_get(batch), mesh)
            for name, x in abstract_batch(config, config.data.length_buckets[0], mesh).items():
                assert (placed[name].shape, placed[name].dtype) == (x.shape, x.dtype), name
            state, found = step(state, placed, graphdef=graphdef, config=config)
            metrics.append({name: float(x) for name, x in found.items()})
    return metrics


def test_training_from_a_cache_is_training_from_frames_to_bfloat16(whole, initial):
    cached = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, features=str(whole)))
    batches, live_batches = first_batches(cached), first_batches(CONFIG)
    from_cache, live = steps(cached, initial, batches), steps(CONFIG, initial, live_batches)
    for a, b in zip(batches, live_batches, strict=True):
        assert b.keys() - a.keys() == {"frames"}
        for name in a.keys() & b.keys():
            np.testing.assert_array_equal(a[name], b[name])
    # Each of the tokens is off by up to 2**-9 of itself, to either side, and the loss, which is smooth and
    # sums over thousands of them, by less; after the first step the parameters drift apart.
    losses = [metrics["loss"] for metrics in from_cache], [metrics["loss"] for metrics in live]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=2**-9)
    np.testing.assert_allclose(*losses, rtol=2**-7)
    assert losses[0] != losses[1]
    from_rounded = steps(cached, initial, rounded(live_batches, initial))
    for a, b in zip(from_cache, from_rounded, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)


def test_the_hash_is_of_all_names_and_values(initial):
    x_encoder = initial[1].frozen["x_encoder"]
    first = sha256(x_encoder)
    split = sharding.batch_sharding(sharding.make_mesh(2))
    assert sha256({"a": jax.device_put(np.arange(16.0), split)}) == sha256({"a": jnp.arange(16.0)})
    leaves, structure = jax.tree.flatten(x_encoder)
    for i in range(0, len(leaves), 5):
        changed = np.array(leaves[i])
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(1e9))
        others = [jnp.asarray(changed) if i == j else x for j, x in enumerate(leaves)]
        assert sha256(jax.tree.unflatten(structure, others)) != first
    assert sha256({"a": jnp.zeros(4)}) != sha256({"b": jnp.zeros(4)})
    assert sha256({"a": jnp.zeros(4)}) != sha256({"a": jnp.zeros((2, 2))})
