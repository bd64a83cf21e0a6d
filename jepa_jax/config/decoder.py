"""The Y-Decoder and how it is trained, after a run and on its texts alone."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from jepa_jax.config.model import LlamaConfig
from jepa_jax.config.run import CheckpointConfig, OptimizerConfig
from jepa_jax.config.types import OPTIONS, Factor, NonEmpty, NonNegative, Positive, Remat, Seed, Weight


@dataclass(**OPTIONS)
class DecoderConfig:
    """A causal Llama that reads an embedding as `prefix_tokens` tokens, and its training.

    `init` is a folder that `python -m weights_conversion --part=y_decoder` wrote; without it, training
    starts from random numbers. Texts are cut to `max_length` tokens, the one that ends them included;
    they are the targets of the run's dataset, drawn with `pair_weights` (without any, the run's own).
    The embedding of a text is disturbed by Gaussian noise of length `noise` and put back on the unit
    sphere, so that the decoder bears the predictor's, which lie beside those of texts. `run_step` is
    the checkpoint of the run whose embeddings are decoded; None is its last.
    """

    name: NonEmpty
    llama: LlamaConfig
    head: Literal["tied", "own"] = "tied"
    init: NonEmpty | None = None
    tokenizer: NonEmpty = "emoji_motion"
    prefix_tokens: Positive = 4
    max_length: Positive = 32
    noise: Factor = 1.0
    pair_weights: tuple[tuple[str, Weight], ...] = ()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    scan_layers: bool = False
    optim: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(best_metric="loss")
    run_step: NonNegative | None = None
    steps: Positive
    batch_size: Positive
    seed: Seed = 0
    log_every: Positive = 10

    def __post_init__(self):
        if not self.llama.causal:
            raise ValueError("llama.causal=False: a decoder writes from left to right, set it to True")
        if self.max_length < 2:
            raise ValueError("max_length=1 has room for the token that ends a text alone: give at least 2")
        if self.checkpoint.best_metric != "loss":
            raise ValueError(
                f"checkpoint.best_metric={self.checkpoint.best_metric!r}: a decoder's is its 'loss'"
            )
        if self.optim.warmup_steps > self.steps:
            raise ValueError(f"optim.warmup_steps={self.optim.warmup_steps} exceeds steps={self.steps}")
