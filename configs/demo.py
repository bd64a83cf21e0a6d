"""Emoji in motion: all three parts trained from scratch, in minutes on a laptop CPU.

    python -m jepa_jax.train --config=configs/demo.py

"""

from jepa_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LearningRateFactors,
    ModelConfig,
    OptimConfig,
)

config = Config(
    name="demo",
    model=ModelConfig.demo(),
    optim=OptimConfig(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=50,
        final_fraction=0.02,
        weight_decay=0.01,
        # There are no pretrained weights here: every part learns, and at the same rate.
        factors=LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=1.0),
    ),
    data=DataConfig(
        dataset="emoji_motion",
        frames=8,
        length_buckets=((16, 16),),
        pair_weights=(
            ("describe", 4.0),
            ("what_is_it", 2.0),
            ("what_does_it_do", 1.0),
            ("is_present", 1.0),
            ("how_many", 1.0),
        ),
    ),
    checkpoint=CheckpointConfig(every=200),
    eval=EvalConfig(splits=("unseen_pairs", "unseen_art", "animations"), clips=540),
    steps=800,
    batch_size=64,
)
