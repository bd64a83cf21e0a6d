"""A model of a few thousand parameters that learns in seconds: what tests run.

python -m jepa_jax.train --config=tests/tiny_config.py --workdir=DIR --config.fsdp=1
"""

from jepa_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LearningRateFactors,
    LlamaConfig,
    ModelConfig,
    OptimConfig,
    XEncoderConfig,
    YEncoderConfig,
)

config = Config(
    name="tiny",
    model=ModelConfig(
        x_encoder=XEncoderConfig(
            width=24, layers=2, heads=2, mlp_width=40, image_size=32, patch_size=16, tubelet_size=4
        ),
        predictor=LlamaConfig(
            vocab_size=1024,
            width=32,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=8,
            mlp_width=48,
            rope_theta=10_000.0,
        ),
        y_encoder=YEncoderConfig(
            vocab_size=1024,
            width=32,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=8,
            mlp_width=48,
            window=4,
            full_every=2,
            query_scalar=8.0,
        ),
        embedding_size=16,
        compute_dtype="float32",
        remat="none",
        scan_layers=False,
    ),
    optim=OptimConfig(
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=3,
        factors=LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=1.0),
    ),
    data=DataConfig(dataset="emoji_motion/tiny", frames=4, length_buckets=((8, 8), (16, 16))),
    checkpoint=CheckpointConfig(every=4, best_metric="loss"),
    steps=24,
    batch_size=8,
    log_every=1,
    fsdp=2,  # with two devices every run goes through the sharded path
)
