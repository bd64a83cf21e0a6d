"""Configuration: one frozen dataclass per part, a classmethod per released checkpoint.

Pydantic dataclasses check types and refuse unknown fields at construction, so a misspelt or
mistyped field never trains with a default. Checks across fields stand in `__post_init__`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

_OPTIONS = {
    "frozen": True,
    "kw_only": True,
    "config": ConfigDict(extra="forbid", strict=True, validate_default=False),
}
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# What a layer computes again in its backward pass: nothing; norms, activations and rotations; those and
# the wide products of its MLP; all of it.
Remat = Literal["none", "elementwise", "mlp", "layer"]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    if value % divisor:
        raise ValueError(
            f"{name}={value} is not a multiple of {divisor_name}={divisor}: choose values that divide"
        )


@dataclass(**_OPTIONS)
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
        _divides("x_encoder.heads", self.heads, "x_encoder.width", self.width)
        _divides("x_encoder.patch_size", self.patch_size, "x_encoder.image_size", self.image_size)
        if self.head_size < 6:
            raise ValueError(
                f"x_encoder.width={self.width} over heads={self.heads} leaves {self.head_size} per "
                "head; 3-D rotary positions need at least 6"
            )

    @property
    def head_size(self) -> int:
        return self.width // self.heads

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


@dataclass(**_OPTIONS)
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


@dataclass(**_OPTIONS)
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
        _divides("predictor.kv_heads", self.kv_heads, "predictor.heads", self.heads)
        _divides("2 (rotary pairs)", 2, "predictor.head_size", self.head_size)

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


@dataclass(**_OPTIONS)
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
        _divides("y_encoder.kv_heads", self.kv_heads, "y_encoder.heads", self.heads)
        _divides("2 (rotary pairs)", 2, "y_encoder.head_size", self.head_size)

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


@dataclass(**_OPTIONS)
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
        _divides("y_encoder.heads", self.heads, "y_encoder.width", self.width)

    @property
    def output_width(self) -> int:
        """Of the embedding before any projection."""
        return self.width

    @classmethod
    def all_minilm_l6_v2(cls) -> BertConfig:
        """https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (22.6M without its pooler)."""
        return cls(vocab_size=30_522, width=384, layers=6, heads=12, mlp_width=1536)


@dataclass(**_OPTIONS)
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
        motions sooner and large ones names; long tubelets tie a thing's looks to how it moves.
        """
        return cls(
            x_encoder=XEncoderConfig(
                width=256, layers=2, heads=8, mlp_width=512, image_size=32, patch_size=16, tubelet_size=2
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


@dataclass(**_OPTIONS)
class LossConfig:
    """The objective: bi-directional InfoNCE, or an alternative of `losses`.

    `temperature` is tau, its inverse never exceeds `max_logit_scale`; InfoNCE and sigmoid have one.
    Logits exist for `chunk` rows (InfoNCE: and columns) at a time on a device. `sigmoid_bias` is added
    to sigmoid's logits. VICReg's weights are relative to its invariance; SIGReg has `sigreg_weight` of
    the loss, the distance of the pairs the rest.
    """

    objective: Literal["info_nce", "sigmoid", "cosine", "l1", "l2", "vicreg", "sigreg"] = "info_nce"
    temperature: PositiveFloat = 0.07
    learnable_temperature: bool = True
    max_logit_scale: PositiveFloat = 100.0
    chunk: Positive = 1024
    sigmoid_bias: float = -10.0
    variance_weight: Factor = 1.0
    covariance_weight: Factor = 0.04
    sigreg_weight: Fraction = 0.05
    sigreg_directions: Positive = 256
    sigreg_knots: Annotated[int, Field(ge=2)] = 17

    def __post_init__(self):
        if 1 / self.temperature > self.max_logit_scale * (1 + 1e-6):
            raise ValueError(
                f"loss.temperature={self.temperature} is below 1/max_logit_scale="
                f"{1 / self.max_logit_scale:g}: raise one of the two"
            )

    @property
    def has_temperature(self) -> bool:
        return self.objective in ("info_nce", "sigmoid")

    @property
    def on_the_sphere(self) -> bool:
        """Whether it compares unit vectors; the others look at how embeddings are spread."""
        return self.objective not in ("vicreg", "sigreg")

    @property
    def can_collapse(self) -> bool:
        """Whether all embeddings equal is a perfect score, so that the target must not learn."""
        return self.objective in ("cosine", "l1", "l2")


@dataclass(**_OPTIONS)
class LearningRateFactors:
    """Learning-rate factor per part; 0 freezes a part (no gradient, no optimizer state).

    `heads` are the three projections and the temperature: the new parameters, which learn at x1
    whatever the backbones do.
    """

    x_encoder: Factor = 0.0
    predictor: Factor = 1.0
    token_embedding: Factor = 0.0
    y_encoder: Factor = 0.05
    heads: Factor = 1.0


@dataclass(**_OPTIONS)
class OptimConfig:
    """AdamW. `final_fraction` is where the cosine ends, as a fraction of `learning_rate`."""

    learning_rate: PositiveFloat = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    final_fraction: Fraction = 0.0
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: Factor = 0.0
    clip_norm: PositiveFloat | None = 1.0
    factors: LearningRateFactors = LearningRateFactors()

    def __post_init__(self):
        if not any(vars(self.factors).values()):
            raise ValueError("optim.factors are all 0: nothing would train")


@dataclass(**_OPTIONS)
class DataConfig:
    """What is read and how it becomes a batch.

    `length_buckets` are (query, target) token lengths, ascending; all of a global batch is padded
    to one of them. Longer texts are cut to the last. `pair_weights` are (kind, relative
    odds) of a record's (query, target) pairs; a kind left out is not drawn, and without any all have
    the same odds. With `pairs_per_clip` over 1 a clip is encoded once for so many pairs: where the
    X-Encoder trains, that is most of the cost of a step. `target_prefix` is put
    before every target and candidate text alike.
    """

    dataset: str = "emoji_motion"
    split: str = "train"
    data_dir: str | None = None
    frames: Positive = 8
    resize: Positive | None = None
    length_buckets: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)] = ((16, 16),)
    query_tokenizer: str = "emoji_motion"
    target_tokenizer: str = "emoji_motion"
    target_prefix: str = ""
    pair_weights: tuple[tuple[str, PositiveFloat], ...] = ()
    pairs_per_clip: Positive = 1
    threads: Positive = 2
    prefetch: Positive = 4

    def __post_init__(self):
        if list(self.length_buckets) != sorted(set(self.length_buckets)):
            raise ValueError(f"data.length_buckets={self.length_buckets} must ascend without repeats")


@dataclass(**_OPTIONS)
class CheckpointConfig:
    """Save every `every` steps; keep the `keep` latest and the best by `best_metric` (lowest loss or
    highest retrieval recall on the validation split)."""

    every: Positive = 1000
    keep: Positive = 2
    best_metric: Literal["loss", "recall_at_1"] = "recall_at_1"


@dataclass(**_OPTIONS)
class EvalConfig:
    """Evaluation at the end of training: the splits, at most `clips` clips of each, and at most
    `retrieval_clips` for retrieval. `validation_split` tells the best checkpoint while training."""

    splits: tuple[str, ...] = ()
    validation_split: str = "validation"
    clips: Positive = 1024
    retrieval_clips: Positive = 256
    batch_size: Positive = 64


@dataclass(**_OPTIONS)
class InitConfig:
    """Where a new run's parameters come from; what is not named starts from random numbers.

    `x_encoder`, `predictor` and `y_encoder` are folders written by `python -m weights_conversion`.
    `model` is a whole model, projections and temperature included: a converted one, or the work
    directory (or WORKDIR/checkpoints/STEP) of an earlier run, as the next training stage takes it.
    """

    x_encoder: str | None = None
    predictor: str | None = None
    y_encoder: str | None = None
    model: str | None = None

    def __post_init__(self):
        if self.model and (self.x_encoder or self.predictor or self.y_encoder):
            raise ValueError(
                "init.model is a whole model and init.x_encoder, init.predictor, init.y_encoder are parts: "
                "name one or the other"
            )


@dataclass(**_OPTIONS)
class Config:
    """A whole run. `fsdp` devices share each copy of the parameters; the rest split the batch.

    A batch is worked through in `micro_batches` pieces, with the gradient of the whole; the visual
    tokens of a frozen X-Encoder are kept between the two passes with `keep_visual_tokens`.
    """

    name: str
    model: ModelConfig
    init: InitConfig = InitConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    steps: Positive
    batch_size: Positive
    micro_batches: Positive = 1
    keep_visual_tokens: bool = True
    seed: NonNegative = 0
    fsdp: Positive = 1
    log_every: Positive = 10

    def __post_init__(self):
        _divides("fsdp", self.fsdp, "batch_size", self.batch_size)
        _divides("micro_batches", self.micro_batches, "batch_size", self.batch_size)
        learns = self.optim.factors.y_encoder or (self.model.y_projection and self.optim.factors.heads)
        if self.loss.can_collapse and learns:
            raise ValueError(
                f"loss.objective={self.loss.objective!r} is perfect when all embeddings are equal, so the "
                "target must stay as it is: set optim.factors.y_encoder=0 and model.y_projection=false"
            )
        text, longest = self.model.y_encoder, self.data.length_buckets[-1][1]
        if isinstance(text, BertConfig) and longest > text.max_length:
            raise ValueError(
                f"data.length_buckets go to {longest} target tokens, but model.y_encoder.max_length="
                f"{text.max_length}: shorten the buckets"
            )
        if self.data.frames > 1:
            _divides(
                "model.x_encoder.tubelet_size",
                self.model.x_encoder.tubelet_size,
                "data.frames",
                self.data.frames,
            )
        if self.optim.warmup_steps > self.steps:
            raise ValueError(f"optim.warmup_steps={self.optim.warmup_steps} exceeds steps={self.steps}")
