"""Weights that anyone may download: V-JEPA 2 ViT-L, SmolLM2-135M, all-MiniLM-L6-v2.

    python -m weights_conversion --source=facebook/vjepa2-vitl-fpc64-256 --out=weights/vjepa2-vitl
    python -m weights_conversion --source=HuggingFaceTB/SmolLM2-135M --part=predictor \\
        --out=weights/smollm2-135m
    python -m weights_conversion --source=sentence-transformers/all-MiniLM-L6-v2 \\
        --out=weights/all-minilm-l6-v2
    python -m jepa_jax.train --config=configs/open.py

For one accelerator. The X-Encoder is frozen, the predictor learns, the Y-Encoder learns slowly, as in the
paper. Expected: not measured with V-JEPA 2's weights, which were not at hand; docs/weights.md has what was.
"""

from jepa_jax.config import (
    BertConfig,
    Config,
    DataConfig,
    EvalConfig,
    InitConfig,
    LlamaConfig,
    ModelConfig,
    OptimConfig,
    XEncoderConfig,
)

config = Config(
    name="open",
    model=ModelConfig(
        x_encoder=XEncoderConfig.vit_l(),
        predictor=LlamaConfig.smollm2_135m(layers=8),
        y_encoder=BertConfig.all_minilm_l6_v2(),
        embedding_size=384,
    ),
    init=InitConfig(
        x_encoder="weights/vjepa2-vitl",
        predictor="weights/smollm2-135m",
        y_encoder="weights/all-minilm-l6-v2",
    ),
    optim=OptimConfig(
        # Ten times the paper's: a predictor a twentieth the size, on batches a hundredth.
        learning_rate=5e-4,
        schedule="cosine",
        warmup_steps=100,
        final_fraction=0.05,
        weight_decay=0.01,
    ),
    data=DataConfig(
        dataset="emoji_motion",
        frames=4,
        length_buckets=((16, 16),),
        query_tokenizer="weights/smollm2-135m",
        target_tokenizer="weights/all-minilm-l6-v2",
        pairs_per_clip=4,
    ),
    eval=EvalConfig(splits=("unseen_pairs", "unseen_art", "animations"), clips=720, batch_size=16),
    steps=2000,
    batch_size=64,
)
