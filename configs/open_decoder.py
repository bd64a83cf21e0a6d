"""A decoder that starts from SmolLM2-135M, for models that embed English texts.

    python -m weights_conversion --source=HuggingFaceTB/SmolLM2-135M --part=y_decoder \\
        --out=weights/smollm2-135m-decoder
    python -m jepa_jax.train_decoder --config=configs/open_decoder.py --checkpoint=runs/open

For one accelerator: by the TPU's compiler a step takes 5.7 GB beside the model's 1.5, of the 17 of a v5e.
Expected: not measured at full size; docs/decoding.md has what was.
"""

import dataclasses

from jepa_jax.config import CheckpointConfig, DecoderConfig, LlamaConfig, OptimizerConfig

config = DecoderConfig(
    name="open_decoder",
    llama=dataclasses.replace(LlamaConfig.smollm2_135m(), causal=True),
    init="weights/smollm2-135m-decoder",
    tokenizer="weights/smollm2-135m-decoder",
    prefix_tokens=8,
    max_length=32,
    noise=0.7,
    compute_dtype="bfloat16",
    # With nothing computed again a step takes 15.9 GB: with the model, more than a v5e or a T4 has.
    remat="mlp",
    scan_layers=True,
    optim=OptimizerConfig(
        learning_rate=1e-4, schedule="cosine", warmup_steps=100, final_fraction=0.05, weight_decay=0.01
    ),
    checkpoint=CheckpointConfig(every=500, best_metric="loss"),
    steps=3000,
    batch_size=256,
)
