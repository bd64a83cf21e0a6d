"""Whole parts at their released size, random weights, against the references.

Errors are relative to the root mean square of the reference's values: 1e-4 for their own root mean
square, 1e-3 for the worst element, in float32 with the highest matmul precision; in bfloat16 the cosine
between both is at least 0.999. The figures are printed (`JEPA_JAX_FULL_SIZE=1 pytest -n 0 -s`).
"""

import gc
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the references are PyTorch's, of the extra `convert`")

import transformers
from flax import nnx
from transformers.initialization import no_init_weights

from jepa_jax import config as c
from jepa_jax import parts
from jepa_jax.models.layers import rope_frequencies
from tests import tiny
from tests.models import reference
from weights_conversion.verify import RMS_TOLERANCE, WORST_TOLERANCE, compare


@pytest.fixture(autouse=True)
def let_go():
    """Gigabytes of one test must not wait for the next one's."""
    yield
    gc.collect()
    jax.clear_caches()


def build(part: str, config, weights: reference.Weights, dtype=jnp.float32):
    """Our module around converted weights, which are taken out of `weights`."""
    graphdef, template = nnx.split(parts.abstract_module(part, config, dtype=dtype))
    arrays = {"/".join(path): jnp.asarray(x) for path, x in weights.items()}
    return nnx.merge(graphdef, parts.filled(template, arrays))


def assert_parity(name: str, run, expected: np.ndarray, keep=slice(None)) -> None:
    """`run(dtype)` gives our output."""
    with jax.default_matmul_precision("highest"):
        row = compare(name, np.asarray(run(jnp.float32))[keep], expected[keep])
    half = np.asarray(run(jnp.bfloat16), np.float64)[keep].ravel()
    theirs = expected[keep].astype(np.float64).ravel()
    cosine = half @ theirs / np.linalg.norm(half) / np.linalg.norm(theirs)
    print(f"\n{name}: rms {row.rms:.2e}, worst {row.worst:.2e}, bfloat16 cosine {cosine:.6f}")
    assert row.rms <= RMS_TOLERANCE
    assert row.worst <= WORST_TOLERANCE
    assert cosine >= 0.999


# The two longest take minutes of two cores: four frames through all of ViT-L say the same of its weights.
long = pytest.mark.skipif(
    "JEPA_JAX_FULL_SIZE" not in os.environ, reason="takes minutes: set JEPA_JAX_FULL_SIZE=1 to run it"
)


@pytest.mark.parametrize("shape", [pytest.param((16, 256, 256), marks=long), (4, 192, 320)], ids=str)
def test_vit_l(shape):
    """At its own size, and at one that is neither square nor 256 pixels, for which the reference, which
    counts on the square of its crop, is told the places."""
    config = c.XEncoderConfig.vit_l()
    grid = (shape[0] // 2, shape[1] // 16, shape[2] // 16)
    side = max(grid[1:])
    options = {"pred_num_hidden_layers": 1, "attn_implementation": "sdpa"}
    with no_init_weights():  # a quarter of the test's time, for values that `randomise` replaces
        theirs = transformers.VJEPA2Model(reference.to_vjepa2(config, **options))
    theirs = reference.randomise(theirs)
    for layer in theirs.encoder.layer:
        layer.attention.grid_size = side
    places = np.arange(grid[0] * side * side).reshape(grid[0], side, side)[:, : grid[1], : grid[2]]
    frames = tiny.normal(1, *shape, 3)
    video = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)))
    with torch.inference_mode():
        hidden = theirs.encoder.embeddings(video)
        for layer in theirs.encoder.layer:
            hidden = layer(hidden, position_mask=torch.from_numpy(places.reshape(1, -1).copy()))[0]
        expected = theirs.encoder.layernorm(hidden).numpy()
    weights = reference.x_encoder_weights(theirs)
    del theirs

    def run(dtype):
        module = build("x_encoder", config, weights, dtype)
        return jax.jit(lambda m, x: m(x))(module, frames.astype(dtype))

    assert_parity(f"ViT-L {shape}", run, expected)


@long
def test_eight_llama_layers_at_2560_positions():
    """Both directions, the second half of one row's last positions being padding."""
    config = c.LlamaConfig.llama_3_2_1b(layers=8)
    length, small = 2560, 1024
    # The table of tokens is not what is tested, and would take a gigabyte.
    config = c.LlamaConfig(**{**vars(config), "vocab_size": small, "rope_scaling": config.rope_scaling})
    theirs = reference.randomise(
        transformers.LlamaModel(reference.to_llama(config, attn_implementation="sdpa")).eval()
    )
    ids = np.random.default_rng(0).integers(0, small, (1, length), np.int32)
    mask = tiny.right_padded([length - 301], length)
    hidden = np.where(mask[:, None, None, :], 0.0, np.finfo(np.float32).min).astype(np.float32)
    hidden = torch.from_numpy(np.broadcast_to(hidden, (1, 1, length, length)).copy())
    with torch.inference_mode():
        tokens = torch.from_numpy(ids.astype(np.int64))
        expected = theirs(input_ids=tokens, attention_mask=hidden, use_cache=False).last_hidden_state.numpy()
    weights = reference.language_model_weights(theirs)
    del theirs

    def run(dtype):
        module = build("predictor", config, weights, dtype)
        return jax.jit(lambda m, t, v: m.hidden_states(t, v))(module, ids, mask)

    assert_parity("8 Llama-3.2-1B layers, 2560 positions", run, expected, mask)
    # Without the scaling by 32 the slow pairs would be turned by other angles at these positions.
    plain, scaled = (rope_frequencies(64, 500_000.0, s) for s in (None, config.rope_scaling))
    assert np.max(np.abs(plain - scaled) * length) > 0.1


def test_embedding_gemma_at_512_tokens():
    """The window of 256 to both sides bites, padding too; the Dense heads follow."""
    config = c.YEncoderConfig.embedding_gemma_300m(dense_heads=False)
    small = 4096
    config = c.YEncoderConfig(**{**vars(config), "vocab_size": small})
    theirs = reference.randomise(
        transformers.Gemma3TextModel(reference.to_gemma(config, attn_implementation="sdpa")).eval(), gain=0.0
    )
    ids = np.random.default_rng(0).integers(0, small, (2, 512), np.int32)
    mask = tiny.right_padded([512, 397], 512)
    with torch.inference_mode():
        states = theirs(
            input_ids=torch.from_numpy(ids.astype(np.int64)),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
        ).last_hidden_state.numpy()
    weights = reference.gemma_weights(theirs)
    del theirs
    widths = (768, 3072, 768)
    heads = [tiny.normal(a, b, seed=b) / np.float32(a**0.5) for a, b in itertools.pairwise(widths)]
    expected = np.stack([row[m].mean(axis=0) for row, m in zip(states, mask, strict=True)])
    for head in heads:
        expected = expected @ head
    config = c.YEncoderConfig(**{**vars(config), "dense_widths": widths[1:]})
    weights |= {("dense", str(k), "kernel"): head for k, head in enumerate(heads)}

    def run(dtype, config=config):
        module = build("y_encoder", config, weights, dtype)
        return jax.jit(lambda m, t, v: m(t, v))(module, ids, mask)

    assert_parity("EmbeddingGemma, 512 tokens", run, expected)
    wider = c.YEncoderConfig(**{**vars(config), "window": 511})
    assert tiny.relative_error(run(jnp.float32, wider), expected) > 0.01
