"""A decoder for models of `tests/tiny_config.py` that learns in seconds: what tests run."""

from jepa_jax.config import CheckpointConfig, DecoderConfig, LlamaConfig, OptimizerConfig

config = DecoderConfig(
    name="tiny_decoder",
    llama=LlamaConfig(
        vocab_size=1024,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=8,
        mlp_width=48,
        rope_theta=10_000.0,
        causal=True,
    ),
    prefix_tokens=3,
    max_length=11,
    noise=0.3,
    scan_layers=True,
    optim=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=3),
    checkpoint=CheckpointConfig(every=3, best_metric="loss"),
    steps=20,
    batch_size=8,
    log_every=1,
)
