"""The demo's decoder: the texts of emoji in motion from their embeddings, in minutes on a laptop CPU.

    python -m jepa_jax.train_decoder --config=configs/demo_decoder.py --checkpoint=runs/demo
    python -m jepa_jax.evaluate --checkpoint=runs/demo --task=decode

Expected on pairs of thing and motion never seen together: thing and motion named right in about 84% of
the clips that find their own caption (the nearest of all captions: 84%), CIDEr 3.1; three and a half
minutes on two cores.
"""

from jepa_jax.config import CheckpointConfig, DecoderConfig, LlamaConfig, OptimizerConfig

config = DecoderConfig(
    name="demo_decoder",
    llama=LlamaConfig(
        vocab_size=1024,
        width=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=32,
        mlp_width=256,
        rope_theta=10_000.0,
        causal=True,
    ),
    prefix_tokens=4,
    max_length=16,
    # Between two and three times as far as the predictor's embedding lies from its text's: the cosine of the
    # two is 0.92. At 0.8 it names as many; docs/decoding.md has figures.
    noise=1.1,
    # Captions above all, for they are what is hard.
    pair_weights=(
        ("describe", 4.0),
        ("what_is_it", 1.0),
        ("what_does_it_do", 1.0),
        ("is_present", 0.5),
        ("how_many", 0.5),
    ),
    optim=OptimizerConfig(
        name="muon",
        muon_steps=3,
        learning_rate=5e-3,
        schedule="cosine",
        warmup_steps=50,
        final_fraction=0.02,
        weight_decay=0.5,
    ),
    checkpoint=CheckpointConfig(every=250, best_metric="loss"),
    steps=2200,
    batch_size=128,
)
