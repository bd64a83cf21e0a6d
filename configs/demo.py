"""Emoji in motion: all three parts trained from scratch, in minutes on a laptop CPU.

    python -m jepa_jax.train --config=configs/demo.py

Expected on pairs of thing and motion never seen together: text-to-video R@1 of 256 about 80%, what is it
87% (99% within five), what does it do 99%, VQA 95%. README.md has one run's figures.
"""

from jepa_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LearningRateFactors,
    LossConfig,
    ModelConfig,
    OptimConfig,
)

config = Config(
    name="demo",
    model=ModelConfig.demo(),
    # Left to learn, it falls to 0.03, and what sets captions of two things apart is the second, too small to
    # see: in such clips of unseen pairs the first was named right in 80%, at 0.07 in 86 (0.1: 85, 0.17: 75).
    loss=LossConfig(temperature=0.07, learnable_temperature=False),
    optim=OptimConfig(
        # Where AdamW learns by heart which motions a thing is never seen in, Muon with much decay learns
        # things and motions apart, in fewer steps.
        name="muon",
        muon_steps=3,
        learning_rate=5e-3,
        schedule="cosine",
        warmup_steps=100,
        final_fraction=0.02,
        weight_decay=0.4,
        # There are no pretrained weights here: every part learns, and at the same rate.
        factors=LearningRateFactors(x_encoder=1.0, token_embedding=1.0, y_encoder=1.0),
    ),
    data=DataConfig(
        dataset="emoji_motion",
        frames=4,
        length_buckets=((10, 14),),
        # A sixteenth of the side, either way: it learns things rather than clips.
        max_shift=2,
        # Four of a clip's six pairs at every step: the X-Encoder runs once for them. They are nearly always
        # the three that say what the clip shows, and one of the closed questions, which are learned last.
        pairs_per_clip=4,
        pair_weights=(
            ("describe", 4.0),
            ("what_is_it", 4.0),
            ("what_does_it_do", 4.0),
            ("is_present", 1.0),
            ("how_many", 1.0),
        ),
    ),
    checkpoint=CheckpointConfig(every=250),
    eval=EvalConfig(splits=("unseen_pairs", "unseen_art", "animations"), clips=720),
    steps=2000,
    batch_size=64,
)
