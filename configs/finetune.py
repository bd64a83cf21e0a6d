"""The paper's supervised fine-tuning: questions, captions, classes; X-Encoder frozen (arXiv 2512.10942).

    python -m jepa_jax.train --config=configs/finetune.py --config.data.dataset=NAME
    python -m jepa_jax.preflight --config=configs/finetune.py --topology=v5p:4x4x8

For a pod, after stage 3, whose work directory it starts from. NAME is a TFDS dataset of
videos with questions and answers (docs/data.md has the other sources); `data.pair_weights` may weight the
kinds of its pairs.
Expected: see `docs/pods.md` for what the step costs; it was not run here.
"""

import dataclasses

from jepa_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
)

config = Config(
    name="finetune",
    # Batches so small leave the memory to keep all matrix products for the backward pass.
    model=dataclasses.replace(ModelConfig.paper(), remat="elementwise"),
    init=InitConfig(model="runs/pretrain_long_video"),
    optim=OptimConfig(learning_rate=5e-5, schedule="cosine", warmup_steps=1000),
    data=DataConfig(
        dataset="video_instructions",
        frames=8,
        resize=292,
        length_buckets=((32, 16), (64, 32), (128, 64), (512, 512)),
        query_tokenizer="weights/llama-3.2-1b",
        target_tokenizer="weights/embeddinggemma-300m",
    ),
    checkpoint=CheckpointConfig(every=1000, keep=3, best_metric="loss"),
    steps=83_000,
    batch_size=3_072,
    fsdp=8,
    log_every=50,
)
