"""The shape at which this package is compared with PyTorch on a CPU: 8 frames of 128 px, batches of 8.

    python -m jepa_jax.benchmark --config=configs/benchmark_cpu.py --compare=pytorch

Expected: 1.23 times the steps a second of PyTorch (ten turns, 1.09 to 1.33) on two cores of an AMD EPYC with
AVX-512, where XLA's library multiplies matrices a fifth to a half faster than PyTorch's. On two cores of an
Intel Xeon PyTorch's is as fast or faster, and it is 1.00 times (ten turns, 0.80 to 1.03). On the AMD, XLA's
library also added to a product what followed it; CHANGELOG.md says why no longer.
"""

from jepa_jax.config import (
    Config,
    DataConfig,
    LlamaConfig,
    ModelConfig,
    OptimConfig,
    RopeScaling,
    XEncoderConfig,
    YEncoderConfig,
)

config = Config(
    name="benchmark_cpu",
    model=ModelConfig(
        x_encoder=XEncoderConfig(width=384, layers=12, heads=6, mlp_width=1536, image_size=128),
        # The last 8 of 16 layers: those before them never run.
        predictor=LlamaConfig(
            vocab_size=32_768,
            width=512,
            layers=8,
            heads=8,
            kv_heads=4,
            head_size=64,
            mlp_width=1408,
            rope_theta=500_000.0,
            rope_scaling=RopeScaling(),
        ),
        y_encoder=YEncoderConfig(
            vocab_size=32_768,
            width=256,
            layers=6,
            heads=4,
            kv_heads=1,
            head_size=64,
            mlp_width=1024,
            query_scalar=64.0,
        ),
        embedding_size=512,
        compute_dtype="float32",
        remat="none",
        scan_layers=False,
    ),
    optim=OptimConfig(learning_rate=5e-5, weight_decay=0.01),
    data=DataConfig(dataset="emoji_motion", frames=8, length_buckets=((16, 32),)),
    steps=1000,
    batch_size=8,
)
