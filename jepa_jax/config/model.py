"""The parts of a model, a classmethod per released checkpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jepa_jax.config.types import (
    OPTIONS,
    Positive,
    PositiveFloat,
    Remat,
    divides,
)


@dataclass(**OPTIONS)
class XEncoderConfig:
    """V-JEPA 2 vision transformer (arXiv 2506.09985): frames to visual tokens.

    `image_size` is the crop, in pixels, that preprocessing makes; the position grid comes from the
    frames themselves, so other sizes run too. `tiled_rope` keeps the released V-JEPA 2 weights'
    rotary frequencies; V-JEPA 2.1 sets it to False.
    """

    width: Positive
    layers: Positive
    heads: Positive
    mlp_width: Positive
    image_size: Positive = 256
    patch_size: Positive = 16
    tubelet_size: Positive = 2
    norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10_000.0
    tiled_rope: bool = True

    def __post_init__(self):
        divides("x_encoder.heads", self.heads, "x_encoder.width", self.width)
        divides("x_encoder.patch_size", self.patch_size, "x_encoder.image_size", self.image_size)
        if self.head_size < 6:
            raise ValueError(
                f"x_encoder.width={self.width} over heads={self.heads} leaves {self.head_size} per "
                "head; 3-D rotary positions need at least 6"
            )

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    def visual_tokens(self, frames: int) -> int:
        """N, the visual tokens of a clip; one frame is repeated to fill a tubelet."""
        side = self.image_size // self.patch_size
        return max(frames, self.tubelet_size) // self.tubelet_size * side**2

    @classmethod
    def vit_l(cls, image_size: int = 256) -> XEncoderConfig:
        """https://huggingface.co/facebook/vjepa2-vitl-fpc64-256 (303.9M parameters)."""
        return cls(width=1024, layers=24, heads=16, mlp_width=4096, image_size=image_size)

    @classmethod
    def vit_h(cls, image_size: int = 256) -> XEncoderConfig:
        """https://huggingface.co/facebook/vjepa2-vith-fpc64-256; the width is 1,280."""
        return cls(width=1280, layers=32, heads=16, mlp_width=5120, image_size=image_size)

    @classmethod
    def vit_g(cls, image_size: int = 256) -> XEncoderConfig:
        """https://huggingface.co/facebook/vjepa2-vitg-fpc64-256, and -384 with `image_size=384`."""
        return cls(width=1408, layers=40, heads=22, mlp_width=6144, image_size=image_size)


@dataclass(**OPTIONS)
class RopeScaling:
    """Llama 3's stretch of rotary wavelengths; `original_length` in positions."""

    factor: PositiveFloat = 32.0
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_length: Positive = 8192

    def __post_init__(self):
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"rope_scaling.high_frequency_factor={self.high_frequency_factor} must exceed "
                f"low_frequency_factor={self.low_frequency_factor}"
            )


@dataclass(**OPTIONS)
class LlamaConfig:
    """Llama blocks. The predictor runs them bidirectionally; `causal=True` keeps the causal mask."""

    vocab_size: Positive
    width: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_size: Positive
    mlp_width: Positive
    rope_theta: PositiveFloat
    rope_scaling: RopeScaling | None = None
    norm_eps: PositiveFloat = 1e-5
    causal: bool = False

    def __post_init__(self):
        divides("its kv_heads", self.kv_heads, "a Llama's heads", self.heads)
        divides("2 (rotary pairs)", 2, "a Llama's head_size", self.head_size)

    @classmethod
    def llama_3_2_1b(cls, layers: int = 8) -> LlamaConfig:
        """https://huggingface.co/meta-llama/Llama-3.2-1B: the paper's predictor is its last 8 layers."""
        return cls(
            vocab_size=128_256,
            width=2048,
            layers=layers,
            heads=32,
            kv_heads=8,
            head_size=64,
            mlp_width=8192,
            rope_theta=500_000.0,
            rope_scaling=RopeScaling(),
        )

    @classmethod
    def smollm2_135m(cls, layers: int = 30) -> LlamaConfig:
        """https://huggingface.co/HuggingFaceTB/SmolLM2-135M (ungated)."""
        return cls(
            vocab_size=49_152,
            width=576,
            layers=layers,
            heads=9,
            kv_heads=3,
            head_size=64,
            mlp_width=1536,
            rope_theta=100_000.0,
        )

    @classmethod
    def smollm2_360m(cls, layers: int = 32) -> LlamaConfig:
        """https://huggingface.co/HuggingFaceTB/SmolLM2-360M (ungated)."""
        return cls(
            vocab_size=49_152,
            width=960,
            layers=layers,
            heads=15,
            kv_heads=5,
            head_size=64,
            mlp_width=2560,
            rope_theta=100_000.0,
        )


@dataclass(**OPTIONS)
class YEncoderConfig:
    """EmbeddingGemma (arXiv 2509.20354): a bidirectional Gemma 3 text model and its Dense heads.

    Every `full_every`-th layer attends everywhere, the others to |i - j| <= `window` positions.
    Queries are scaled by `query_scalar ** -0.5`. `dense_widths` are the output widths of the Dense
    heads after the pool; an empty tuple switches them off.
    """

    vocab_size: Positive
    width: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_size: Positive
    mlp_width: Positive
    window: Positive = 256
    full_every: Positive = 6
    rope_theta_sliding: PositiveFloat = 10_000.0
    rope_theta_full: PositiveFloat = 1_000_000.0
    query_scalar: PositiveFloat = 256.0
    norm_eps: PositiveFloat = 1e-6
    dense_widths: tuple[Positive, ...] = ()
    kind: Literal["gemma3"] = "gemma3"

    def __post_init__(self):
        divides("y_encoder.kv_heads", self.kv_heads, "y_encoder.heads", self.heads)
        divides("2 (rotary pairs)", 2, "y_encoder.head_size", self.head_size)

    @property
    def output_width(self) -> int:
        """Of the embedding before any projection."""
        return (self.width, *self.dense_widths)[-1]

    @classmethod
    def embedding_gemma_300m(cls, dense_heads: bool = True) -> YEncoderConfig:
        """https://huggingface.co/google/embeddinggemma-300m (302.9M; 307.6M with its Dense heads)."""
        return cls(
            vocab_size=262_144,
            width=768,
            layers=24,
            heads=3,
            kv_heads=1,
            head_size=256,
            mlp_width=1152,
            dense_widths=(3072, 768) if dense_heads else (),
        )


@dataclass(**OPTIONS)
class BertConfig:
    """A BERT-family sentence encoder as Y-Encoder: small, and its weights are free to have.

    `pool` is the mean over tokens (all-MiniLM) or the first token's state (BGE). `max_length` is the
    number of learned positions, `types` that of segment embeddings, of which the first is used.
    """

    vocab_size: Positive
    width: Positive
    layers: Positive
    heads: Positive
    mlp_width: Positive
    max_length: Positive = 512
    types: Positive = 2
    norm_eps: PositiveFloat = 1e-12
    pool: Literal["mean", "first"] = "mean"
    kind: Literal["bert"] = "bert"

    def __post_init__(self):
        divides("y_encoder.heads", self.heads, "y_encoder.width", self.width)

    @property
    def output_width(self) -> int:
        """Of the embedding before any projection."""
        return self.width

    @classmethod
    def all_minilm_l6_v2(cls) -> BertConfig:
        """https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (22.6M without its pooler)."""
        return cls(vocab_size=30_522, width=384, layers=6, heads=12, mlp_width=1536)


@dataclass(**OPTIONS)
class ModelConfig:
    """VL-JEPA: the three parts and the space they share (arXiv 2512.10942, section 3).

    Without `y_projection` the shared space is the Y-Encoder's own, of its width.

    `compute_dtype` is the type of activations; weights stay float32. float16 is not offered,
    because Gemma 3's activations overflow it. `remat` recomputes each layer's activations in the
    backward pass; `scan_layers` runs a stack under one `lax.scan` (short compilation; small models
    on a CPU are faster unrolled).
    """

    x_encoder: XEncoderConfig
    predictor: LlamaConfig
    y_encoder: Annotated[YEncoderConfig | BertConfig, Field(discriminator="kind")]
    embedding_size: Positive = 1536
    y_projection: bool = True
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    remat: Remat = "layer"
    scan_layers: bool = True

    def __post_init__(self):
        if not self.y_projection and self.embedding_size != self.y_encoder.output_width:
            raise ValueError(
                f"model.embedding_size={self.embedding_size} without y_projection must be the Y-Encoder's "
                f"own width, {self.y_encoder.output_width}"
            )

    @classmethod
    def paper(cls) -> ModelConfig:
        """The paper's instance: ViT-L, 8 layers of Llama-3.2-1B, EmbeddingGemma-300M."""
        return cls(
            x_encoder=XEncoderConfig.vit_l(),
            predictor=LlamaConfig.llama_3_2_1b(),
            y_encoder=YEncoderConfig.embedding_gemma_300m(),
        )

    @classmethod
    def demo(cls) -> ModelConfig:
        """Small enough to learn emoji in motion from scratch in minutes on two CPU cores.

        Eight visual tokens: two tubelets of two frames, each of four patches. Small patches learn
        motions sooner and large ones names; long tubelets, and a second layer of the X-Encoder, tie a thing's
        looks to how it moves.
        """
        return cls(
            x_encoder=XEncoderConfig(
                width=256, layers=1, heads=8, mlp_width=1024, image_size=32, patch_size=16, tubelet_size=2
            ),
            predictor=LlamaConfig(
                vocab_size=1024,
                width=128,
                layers=1,
                heads=4,
                kv_heads=2,
                head_size=32,
                mlp_width=256,
                rope_theta=10_000.0,
            ),
            y_encoder=YEncoderConfig(
                vocab_size=1024,
                width=128,
                layers=1,
                heads=4,
                kv_heads=2,
                head_size=32,
                mlp_width=256,
                full_every=1,
                query_scalar=32.0,
            ),
            embedding_size=128,
            compute_dtype="float32",
            remat="none",
            scan_layers=False,
        )
