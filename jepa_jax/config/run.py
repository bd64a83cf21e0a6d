"""A whole run: model, data, objective, optimizer, checkpoints, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jepa_jax.config.data import DataConfig, DatasetConfig
from jepa_jax.config.model import BertConfig, ModelConfig
from jepa_jax.config.types import (
    OPTIONS,
    Decay,
    Factor,
    Fraction,
    NonEmpty,
    NonNegative,
    Positive,
    PositiveFloat,
    Seed,
    divides,
)


@dataclass(**OPTIONS)
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


@dataclass(**OPTIONS)
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


@dataclass(**OPTIONS)
class OptimizerConfig:
    """AdamW, or Muon for the matrices of linear layers and AdamW for the rest.

    `final_fraction` is where the cosine ends, as a fraction of `learning_rate`. Muon
    (arXiv 2502.16982) makes the momentum of a matrix orthogonal by `muon_steps` Newton-Schulz
    iterations; `muon_decay` is the momentum's. Its updates are scaled to the size of AdamW's, so
    rates and decays carry over.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: PositiveFloat = 5e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    final_fraction: Fraction = 0.0
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: PositiveFloat = 1e-8
    muon_decay: Decay = 0.95
    muon_steps: Positive = 5
    weight_decay: Factor = 0.0
    clip_norm: PositiveFloat | None = 1.0


@dataclass(**OPTIONS)
class OptimConfig(OptimizerConfig):
    """An optimizer with a learning-rate factor per part."""

    factors: LearningRateFactors = LearningRateFactors()

    def __post_init__(self):
        if not any(vars(self.factors).values()):
            raise ValueError("optim.factors are all 0: nothing would train")


@dataclass(**OPTIONS)
class CheckpointConfig:
    """Save every `every` steps; keep the `keep` latest and the best by `best_metric` (lowest loss or
    highest retrieval recall on the validation split)."""

    every: Positive = 1000
    keep: Positive = 2
    best_metric: Literal["loss", "recall_at_1"] = "recall_at_1"


@dataclass(**OPTIONS)
class EvalConfig:
    """Evaluation at the end of training: the splits, at most `clips` clips of each, and at most
    `retrieval_clips` for retrieval. `validation_split` tells the best checkpoint while training. They
    are splits of the dataset trained on (of a mixture, the first), or of `dataset`."""

    dataset: DatasetConfig | None = None
    splits: tuple[str, ...] = ()
    validation_split: NonEmpty = "validation"
    clips: Positive = 1024
    retrieval_clips: Positive = 256
    batch_size: Positive = 64


@dataclass(**OPTIONS)
class InitConfig:
    """Where a new run's parameters come from; what is not named starts from random numbers.

    `x_encoder`, `predictor` and `y_encoder` are folders written by `python -m weights_conversion`.
    `model` is a whole model, projections and temperature (unless this run fixes its own) included: a
    converted one, or the work directory (or WORKDIR/checkpoints/STEP) of an earlier run, as the next
    training stage takes it.
    """

    x_encoder: NonEmpty | None = None
    predictor: NonEmpty | None = None
    y_encoder: NonEmpty | None = None
    model: NonEmpty | None = None

    def __post_init__(self):
        if self.model and (self.x_encoder or self.predictor or self.y_encoder):
            raise ValueError(
                "init.model is a whole model and init.x_encoder, init.predictor, init.y_encoder are parts: "
                "name one or the other"
            )


@dataclass(**OPTIONS)
class Config:
    """A whole run. `fsdp` devices share each copy of the parameters; the rest split the batch.

    A batch is worked through in `micro_batches` pieces, with the gradient of the whole; the visual
    tokens of a frozen X-Encoder are kept between the two passes with `keep_visual_tokens`.
    """

    name: NonEmpty
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
    seed: Seed = 0
    fsdp: Positive = 1
    log_every: Positive = 10

    def __post_init__(self):
        divides("fsdp", self.fsdp, "batch_size", self.batch_size)
        divides("micro_batches", self.micro_batches, "batch_size", self.batch_size)
        if self.data.features and self.optim.factors.x_encoder:
            raise ValueError(
                f"data.features are the tokens of a frozen X-Encoder, but optim.factors.x_encoder="
                f"{self.optim.factors.x_encoder} trains it: set that to 0, or read frames"
            )
        learns = self.optim.factors.y_encoder or (self.model.y_projection and self.optim.factors.heads)
        if self.loss.can_collapse and learns:
            raise ValueError(
                f"loss.objective={self.loss.objective!r} is perfect when all embeddings are equal, so the "
                "target must stay as it is: set optim.factors.y_encoder=0 and model.y_projection=false"
            )
        if self.loss.objective == "vicreg" and self.batch_size * self.data.pairs_per_clip == 1:
            raise ValueError("loss.objective='vicreg' is of variances: set batch_size to 2 or more")
        text, longest = self.model.y_encoder, self.data.length_buckets[-1][1]
        if isinstance(text, BertConfig) and longest > text.max_length:
            raise ValueError(
                f"data.length_buckets go to {longest} target tokens, but model.y_encoder.max_length="
                f"{text.max_length}: shorten the buckets"
            )
        of_datasets = [(f"data.mixture[{i}].frames", d.frames) for i, d in enumerate(self.data.mixture)]
        for name, frames in [("data.frames", self.data.frames), *of_datasets]:
            if frames is not None and frames > 1:
                divides("model.x_encoder.tubelet_size", self.model.x_encoder.tubelet_size, name, frames)
        resize, crop = self.data.resize, self.model.x_encoder.image_size
        if resize is not None and resize < crop:
            raise ValueError(f"data.resize={resize} is smaller than model.x_encoder.image_size={crop}")
        if self.data.max_shift >= crop:
            raise ValueError(
                f"data.max_shift={self.data.max_shift} pixels moves all out of a frame of "
                f"model.x_encoder.image_size={crop}"
            )
        if self.optim.warmup_steps > self.steps:
            raise ValueError(f"optim.warmup_steps={self.optim.warmup_steps} exceeds steps={self.steps}")
