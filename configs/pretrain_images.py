"""The paper's stage 1: image captions without a query, X-Encoder frozen (arXiv 2512.10942, section 3.2).

    python -m weights_conversion --source=facebook/vjepa2-vitl-fpc64-256 --out=weights/vjepa2-vitl
    python -m weights_conversion --source=meta-llama/Llama-3.2-1B --part=predictor \\
        --out=weights/llama-3.2-1b
    python -m weights_conversion --source=google/embeddinggemma-300m --out=weights/embeddinggemma-300m
    python -m jepa_jax.train --config=configs/pretrain_images.py --config.data.dataset=NAME

For a pod. NAME is a TFDS dataset of images and captions; docs/data.md has the other sources, such as
tar shards (`data.path`) and mixtures. Expected: the paper reports 61.6% zero-shot on ImageNet
after this stage; it was not run here.
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
    name="pretrain_images",
    # On chips of more than 30 GB remat="elementwise" fits too and is faster (docs/pods.md).
    model=dataclasses.replace(ModelConfig.paper(), remat="mlp"),
    init=InitConfig(
        x_encoder="weights/vjepa2-vitl",
        predictor="weights/llama-3.2-1b",
        y_encoder="weights/embeddinggemma-300m",
    ),
    optim=OptimConfig(learning_rate=5e-5, schedule="constant", warmup_steps=1000),
    data=DataConfig(
        dataset="image_captions",
        frames=1,
        resize=292,
        # Without a query there is only the first token of an empty text. Captions of web images are
        # short; the few of more than 128 tokens are cut.
        length_buckets=((1, 32), (1, 64), (1, 128)),
        query_tokenizer="weights/llama-3.2-1b",
        target_tokenizer="weights/embeddinggemma-300m",
    ),
    checkpoint=CheckpointConfig(every=1000, keep=3, best_metric="loss"),
    steps=100_000,
    batch_size=24_576,
    fsdp=8,
    log_every=50,
)
