"""Configuration: one frozen dataclass per part, a classmethod per released checkpoint.

Pydantic dataclasses check types and refuse unknown fields at construction, so a misspelt or
mistyped field never trains with a default. Checks across fields stand in `__post_init__`.
"""

from jepa_jax.config.data import DataConfig, DatasetConfig, FieldMap
from jepa_jax.config.decoder import DecoderConfig
from jepa_jax.config.model import (
    BertConfig,
    LlamaConfig,
    ModelConfig,
    RopeScaling,
    XEncoderConfig,
    YEncoderConfig,
)
from jepa_jax.config.run import (
    CheckpointConfig,
    Config,
    EvalConfig,
    InitConfig,
    LearningRateFactors,
    LossConfig,
    OptimConfig,
    OptimizerConfig,
)
from jepa_jax.config.types import Remat

__all__ = [
    "BertConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DatasetConfig",
    "DecoderConfig",
    "EvalConfig",
    "FieldMap",
    "InitConfig",
    "LearningRateFactors",
    "LlamaConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "OptimizerConfig",
    "Remat",
    "RopeScaling",
    "XEncoderConfig",
    "YEncoderConfig",
]
