"""A model for use: what it takes, what it refuses, and that batching changes nothing."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from jepa_jax import inference
from jepa_jax.config import DataConfig, EvalConfig
from jepa_jax.evaluate import untrained_twin
from jepa_jax.flags import UsageError
from jepa_jax.models.vl_jepa import VLJEPA
from tests import tiny
from tests.tiny_config import config as run_config

CLIPS = 7


@pytest.fixture(scope="module")
def parts():
    from jepa_jax.data.tokenizer import load_tokenizers

    config = dataclasses.replace(
        run_config, data=DataConfig(length_buckets=((16, 16),)), eval=EvalConfig(batch_size=3)
    )
    model = tiny.filled(lambda: VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0)))
    return model, config, load_tokenizers(config)


@pytest.fixture(scope="module")
def model(parts):
    return inference.Model(*parts)


@pytest.fixture(scope="module")
def frames():
    return tiny.pixels(CLIPS, 4, 32, 32, 3)


def test_the_batch_size_changes_nothing(parts, model, frames):
    net, config, tokenizers = parts
    whole = dataclasses.replace(config, eval=EvalConfig(batch_size=CLIPS))
    other = inference.Model(net, whole, tokenizers)
    queries = [f"is there a dog{'?' * (i % 2)}" for i in range(CLIPS)]
    first, second = (m.embed_video(frames, queries) for m in (model, other))
    assert first.shape == (CLIPS, config.model.embedding_size)
    tiny.assert_close(first, second, 1e-5)
    tiny.assert_close(model.embed_text(queries), other.embed_text(queries), 1e-5)


def test_embeddings_are_unit_vectors_of_their_own_input(model, frames):
    embedded = model.embed_video(frames, "what is it?")
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)
    turned = model.embed_video(frames[::-1], "what is it?")
    tiny.assert_close(turned[::-1], embedded, 1e-5)
    assert np.abs(model.embed_video(frames, "what does it do?") - embedded).max() > 1e-3


def test_one_encoding_serves_many_queries(model, frames):
    visual = model.encode_video(frames)
    tiny.assert_close(
        model.predict(visual, ["count the things"] * CLIPS),
        model.embed_video(frames, "count the things"),
        1e-6,
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 32, 32, 3), np.uint8), ((1, 4, 32, 32, 1), np.uint8), ((1, 4, 32, 32, 3), np.float32)],
)
def test_frames_of_another_form_are_refused(model, shape, dtype):
    with pytest.raises(ValueError, match=r"frames must be \[B, T, H, W, 3\] uint8"):
        model.encode_video(np.zeros(shape, dtype))


def test_empty_and_uneven_input_is_refused(model, frames):
    with pytest.raises(ValueError, match="empty"):
        model.embed_text([])
    with pytest.raises(ValueError, match="empty"):
        model.encode_video(frames[:0])
    with pytest.raises(ValueError, match="7 videos but 1 queries"):
        model.predict(model.encode_video(frames), ["what is it?"])


def test_the_untrained_twin_has_other_weights(model, frames):
    twin = untrained_twin(model)
    assert twin.config is model.config
    one, other = (m.embed_video(frames, "what is it?") for m in (model, twin))
    assert np.abs(one - other).max() > 1e-2


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is neither a work directory"):
        inference.load(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(UsageError, match="is neither a work directory"):
        inference.load(tmp_path / "checkpoints" / "5")
