"""The paper's stage 3: captions of 32 frames, the X-Encoder trained too (arXiv 2512.10942, section 3.2).

    python -m jepa_jax.train --config=configs/pretrain_long_video.py --config.data.dataset=NAME
    python -m jepa_jax.preflight --config=configs/pretrain_long_video.py --topology=v5p:4x4x8

For a pod, after stage 2, whose work directory it starts from. The paper accumulates 3,072 clips four
times; here all 12,288 are negatives of one another: every piece is embedded, the loss is taken over the
whole batch, and the pieces are back-propagated one by one. Many small pieces cost little and leave the
memory to keep all matrix products for the backward pass.
Expected: see `docs/pods.md` for what the step costs; it was not run here.
"""

import dataclasses

from jepa_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    InitConfig,
    LearningRateFactors,
    ModelConfig,
    OptimConfig,
)

config = Config(
    name="pretrain_long_video",
    model=dataclasses.replace(ModelConfig.paper(), remat="elementwise"),
    init=InitConfig(model="runs/pretrain_video"),
    optim=OptimConfig(
        learning_rate=5e-5,
        schedule="constant",
        warmup_steps=500,
        factors=LearningRateFactors(x_encoder=1.0),
    ),
    data=DataConfig(
        dataset="video_captions",
        frames=32,
        resize=292,
        length_buckets=((1, 32), (1, 64), (1, 128), (1, 512)),
        query_tokenizer="weights/llama-3.2-1b",
        target_tokenizer="weights/embeddinggemma-300m",
    ),
    checkpoint=CheckpointConfig(every=500, keep=3, best_metric="loss"),
    steps=10_000,
    batch_size=12_288,
    micro_batches=48,
    fsdp=8,
    log_every=10,
)
