"""The paper's stage 2: captions of short clips, X-Encoder frozen (arXiv 2512.10942, section 3.2).

    python -m jepa_jax.train --config=configs/pretrain_video.py --config.data.dataset=NAME
    python -m jepa_jax.preflight --config=configs/pretrain_video.py --topology=v5p:4x4x8

For a pod, after stage 1, whose work directory it starts from. NAME is a TFDS dataset of
videos and captions; docs/data.md has the other sources.
Expected: see `docs/pods.md` for what the step costs; it was not run here.
"""

from jepa_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
)

config = Config(
    name="pretrain_video",
    # What fits 16 GB; on larger chips remat="mlp" or "elementwise" is faster (docs/pods.md).
    model=ModelConfig.paper(),
    init=InitConfig(model="runs/pretrain_images"),
    optim=OptimConfig(learning_rate=5e-5, schedule="constant", warmup_steps=1000),
    data=DataConfig(
        dataset="video_captions",
        frames=8,
        resize=292,
        length_buckets=((1, 32), (1, 64), (1, 128), (1, 512)),
        query_tokenizer="weights/llama-3.2-1b",
        target_tokenizer="weights/embeddinggemma-300m",
    ),
    checkpoint=CheckpointConfig(every=1000, keep=3, best_metric="loss"),
    steps=60_000,
    batch_size=12_288,
    fsdp=8,
    log_every=50,
)
