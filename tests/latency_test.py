"""What the latency table measures: three ways to the same number of tokens, one forward pass apart."""

import numpy as np
import pytest
from flax import nnx

from jepa_jax import flags, inference, latency
from jepa_jax.data.tokenizer import load_tokenizers
from jepa_jax.decoder import Decoder
from jepa_jax.models.vl_jepa import VLJEPA
from jepa_jax.models.y_decoder import YDecoder
from tests import tiny
from tests.tiny_config import config
from tests.tiny_decoder import config as decoder_config


@pytest.fixture(scope="module")
def model():
    net = tiny.filled(lambda: VLJEPA(config.model, config.loss, rngs=nnx.Rngs(0)))
    return inference.Model(net, config, load_tokenizers(config))


@pytest.fixture(scope="module")
def decoder(model):
    size = config.model.embedding_size
    net = tiny.filled(lambda: YDecoder(decoder_config, size, rngs=nnx.Rngs(0)))
    return Decoder(net, decoder_config, None, batch_size=1)


def test_each_way_does_what_it_says(model, decoder):
    answers = {name: np.asarray(answer()) for name, answer in latency.ways(model, decoder).items()}
    assert list(answers) == ["embedding", "embedding and text", "token by token"]
    assert answers["embedding"].shape == (1, config.model.embedding_size)
    np.testing.assert_allclose(np.linalg.norm(answers["embedding"]), 1, rtol=1e-5)
    for way in ("embedding and text", "token by token"):
        assert answers[way].shape == (1, decoder_config.max_length)
        assert (answers[way] >= 0).all()  # nothing ended early
    assert (answers["embedding and text"] != answers["token by token"]).any()


def test_the_table_is_relative_to_the_embedding():
    table = latency.format_table({"embedding": 0.002, "embedding and text": 0.005}).splitlines()
    assert [line.split()[-2:] for line in table[1:]] == [["2.00", "1.0"], ["5.00", "2.5"]]


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    assert flags.run(latency.main, [f"--checkpoint={tmp_path}", "--rounds=0"]) == 2
    assert "--rounds: at least 1" in capsys.readouterr().err
    assert flags.run(latency.main, [f"--checkpoint={tmp_path}"]) == 2
    assert "is neither a work directory" in capsys.readouterr().err
