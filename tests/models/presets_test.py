"""Every preset is its released checkpoint: field by field, and parameter by parameter."""

import dataclasses
import functools
import math

import jax
import pytest
from flax import nnx

from jepa_jax.config import LlamaConfig, LossConfig, ModelConfig, XEncoderConfig, YEncoderConfig
from jepa_jax.models.vl_jepa import VLJEPA
from tests import tiny

# The configs that the checkpoints were published with, in the reference library's names.
VJEPA2 = {
    "vit_l": (
        XEncoderConfig.vit_l(),
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4.0},
    ),
    "vit_h": (
        XEncoderConfig.vit_h(),
        {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_ratio": 4.0},
    ),
    "vit_g": (
        XEncoderConfig.vit_g(),
        {
            "hidden_size": 1408,
            "num_hidden_layers": 40,
            "num_attention_heads": 22,
            "mlp_ratio": 4.363636363636363,
        },
    ),
    "vit_g_384": (
        XEncoderConfig.vit_g(image_size=384),
        {
            "hidden_size": 1408,
            "num_hidden_layers": 40,
            "num_attention_heads": 22,
            "mlp_ratio": 4.363636363636363,
            "crop_size": 384,
        },
    ),
}
LLAMA = {
    "llama_3_2_1b": (
        LlamaConfig.llama_3_2_1b(layers=16),
        {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "smollm2_135m": (
        LlamaConfig.smollm2_135m(),
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000,
        },
    ),
    "smollm2_360m": (
        LlamaConfig.smollm2_360m(),
        {
            "vocab_size": 49_152,
            "hidden_size": 960,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "intermediate_size": 2560,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100_000,
        },
    ),
}
EMBEDDING_GEMMA = {
    "vocab_size": 262_144,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 1152,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "use_bidirectional_attention": True,
}


def count(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@functools.cache
def abstract_model(**parts) -> VLJEPA:
    """The paper's model, or one with other parts, as shapes alone."""
    config = dataclasses.replace(ModelConfig.paper(), **parts)
    return nnx.eval_shape(lambda: VLJEPA(config, LossConfig(), rngs=nnx.Rngs(0)))


def without_token_embedding(part) -> int:
    return count(part) - count(part.token_embedding)


def agree(ours, published: dict) -> None:
    """Every field that we set in a reference config has the published one's value."""
    for name in ours.to_diff_dict():
        if name not in ("transformers_version", "use_cache", "max_position_embeddings"):
            assert getattr(ours, name) == getattr(published, name), name


@pytest.mark.parametrize("name", VJEPA2)
def test_v_jepa_2_config(name):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from tests.models import reference

    preset, published = VJEPA2[name]
    published = transformers.VJEPA2Config(**published)
    assert reference.from_vjepa2(published) == preset
    agree(reference.to_vjepa2(preset), published)


@pytest.mark.parametrize("name", LLAMA)
def test_llama_config(name):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from tests.models import reference

    preset, published = LLAMA[name]
    published = transformers.LlamaConfig(**published)
    assert reference.from_llama(published) == preset
    agree(reference.to_llama(preset), published)


@pytest.mark.parametrize("dense_heads", [True, False])
def test_embedding_gemma_config(dense_heads):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from tests.models import reference

    preset = YEncoderConfig.embedding_gemma_300m(dense_heads)
    published = transformers.Gemma3TextConfig(**EMBEDDING_GEMMA)
    assert reference.from_gemma(published, (3072, 768) if dense_heads else ()) == preset
    assert preset.window == 256
    agree(reference.to_gemma(preset), published)


def test_the_paper_s_predictor_has_the_last_8_of_16_layers():
    assert ModelConfig.paper().predictor == dataclasses.replace(LLAMA["llama_3_2_1b"][0], layers=8)


def test_parameters_of_the_paper_s_model():
    model = abstract_model()
    predictor = model.predictor
    eight_layers = count(predictor.llama.blocks)
    assert eight_layers == 486_572_032
    assert eight_layers == 8 * 60_821_504
    assert count(predictor.llama) == 486_574_080, "with the final norm"
    assert count(predictor.visual_projection) == 2_099_200
    assert count(predictor.output_projection) == 3_147_264
    assert without_token_embedding(predictor) == 491_820_544
    assert count(predictor.token_embedding) == 262_668_288
    assert count(model.x_encoder) == 303_885_312
    text = count(model.y_encoder) - count(model.y_encoder.output_projection)
    assert text == 307_581_696
    assert text - count(model.y_encoder.dense) == 302_863_104
    parts = (model.x_encoder, model.predictor, model.y_encoder)
    assert count(model) == sum(map(count, parts)) + 1, "and the temperature"


def test_one_llama_layer():
    model = abstract_model(predictor=LlamaConfig.llama_3_2_1b(layers=1))
    assert count(model.predictor.llama.blocks) == 60_821_504


@pytest.mark.parametrize(
    ("name", "total"),
    [("llama_3_2_1b", 1_235_814_400), ("smollm2_135m", 134_515_008), ("smollm2_360m", 361_821_120)],
)
def test_a_language_model_preset_has_the_published_number_of_parameters(name, total):
    """Their output layer is tied to the token embedding."""
    predictor = abstract_model(predictor=LLAMA[name][0]).predictor
    assert count(predictor.llama) + count(predictor.token_embedding) == total


def test_the_dense_heads_can_be_switched_off():
    config = YEncoderConfig.embedding_gemma_300m(dense_heads=False)
    text = abstract_model(y_encoder=config).y_encoder
    assert not jax.tree.leaves(text.dense)
    assert count(text) - count(text.output_projection) == 302_863_104


@pytest.mark.parametrize("name", VJEPA2)
def test_parameters_of_the_x_encoder_equal_the_reference(name):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    preset, published = VJEPA2[name]
    with torch.device("meta"):
        theirs = transformers.VJEPA2Model(transformers.VJEPA2Config(**published)).encoder
    expected = sum(p.numel() for p in theirs.parameters())
    assert count(abstract_model(x_encoder=preset).x_encoder) == expected


def test_parameters_of_embedding_gemma_equal_the_reference():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**EMBEDDING_GEMMA))
    text = abstract_model().y_encoder
    ours = count(text) - count(text.output_projection) - count(text.dense)
    assert ours == sum(p.numel() for p in theirs.parameters())


def test_every_weight_is_float32():
    assert {x.dtype.name for x in jax.tree.leaves(nnx.state(abstract_model()))} == {"float32"}
    assert (
        tiny.parameters(abstract_model()).keys()
        == tiny.parameters(
            nnx.eval_shape(lambda: VLJEPA(tiny.model(), LossConfig(), rngs=nnx.Rngs(0)))
        ).keys()
    ), "the names do not depend on the size"
