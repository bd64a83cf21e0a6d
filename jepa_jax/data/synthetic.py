"""Batches of random numbers in the pipeline's form: what a benchmark runs on without a dataset."""

import ml_dtypes
import numpy as np

from jepa_jax.config import Config


def batch(config: Config, seed: int) -> dict[str, np.ndarray]:
    """A global batch of the longest length bucket, as `pipeline.batches` gives it.

    Texts fill between half and all of their positions, so that masks have something to hide.
    """
    rng = np.random.default_rng(seed)
    size, model = config.model.x_encoder.image_size, config.model
    pairs = config.batch_size * config.data.pairs_per_clip
    lengths = config.data.length_buckets[-1]
    if config.data.features:
        tokens = config.batch_size, model.x_encoder.visual_tokens(config.data.frames), model.x_encoder.width
        found = {"visual": rng.standard_normal(tokens, np.float32).astype(ml_dtypes.bfloat16)}
    else:
        clips = config.batch_size, config.data.frames, size, size, 3
        found = {"frames": rng.integers(0, 256, clips, np.uint8)}
    vocab_sizes = model.predictor.vocab_size, model.y_encoder.vocab_size
    for name, length, vocab_size in zip(("query", "target"), lengths, vocab_sizes, strict=True):
        filled = rng.integers((length + 1) // 2, length + 1, pairs)
        found[name] = rng.integers(0, vocab_size, (pairs, length), np.int32)
        found[f"{name}_mask"] = np.arange(length) < filled[:, None]
    return found | {"target_id": np.arange(pairs, dtype=np.int32)}
