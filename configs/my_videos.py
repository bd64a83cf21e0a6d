"""A folder of your own videos or images, as it is: a small model from scratch, on a laptop.

    python -m jepa_jax.train --config=configs/my_videos.py --config.data.path=FOLDER

FOLDER holds clip.mp4 beside clip.txt (a caption), or a manifest (.jsonl, .csv, .parquet) whose lines name
a file and its texts, or tar shards. Nothing is converted first; what cannot be read is left out and named
in runs/my_videos/bad_records.json. With a split of held-out clips ("validation" in FOLDER), add
--config.checkpoint.best_metric=recall_at_1 and --config.eval.splits="('validation',)".
Expected: the loss falls from 3.5 towards what your captions tell apart. 48 clips of 320 x 240, eight captions
among them, were told apart within 120 steps of 1.1 s on two CPU cores, of which data took next to none. A
model this small, from scratch, learns what is in the clips and does not know what it never saw. For that
start from open weights: configs/open.py.
Captions have no queries: ask the model "", as in model.answer(video, "", texts); commands do it themselves.
On a TPU add --config.model.scan_layers=True, which compiles in two fifths of the time (CPUs run it slower).
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
    name="my_videos",
    model=ModelConfig(
        # 4 tubelets of 6 x 6 patches: 144 visual tokens.
        x_encoder=XEncoderConfig(
            width=192, layers=4, heads=4, mlp_width=768, image_size=96, patch_size=16, tubelet_size=2
        ),
        predictor=LlamaConfig(
            vocab_size=1024,
            width=192,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=48,
            mlp_width=512,
            rope_theta=10_000.0,
        ),
        y_encoder=YEncoderConfig(
            vocab_size=1024,
            width=192,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=48,
            mlp_width=512,
            full_every=1,
            query_scalar=48.0,
        ),
        embedding_size=192,
        compute_dtype="float32",
        remat="none",
        scan_layers=False,
    ),
    optim=OptimConfig(
        learning_rate=5e-4,
        schedule="cosine",
        warmup_steps=100,
        final_fraction=0.05,
        weight_decay=0.01,
        # Nothing is pretrained: every part learns.
        factors=LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=1.0),
    ),
    data=DataConfig(
        path="my_videos",
        frames=8,
        resize=96,
        # The shipped tokenizer spells words it does not know: captions come to many tokens.
        length_buckets=((16, 32), (32, 64), (64, 128)),
    ),
    checkpoint=CheckpointConfig(every=200, best_metric="loss"),
    steps=2000,
    batch_size=32,
)
