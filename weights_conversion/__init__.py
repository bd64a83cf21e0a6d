"""Released checkpoints to parts that `jepa_jax` takes, and back: strict, streaming, both ways.

    python -m weights_conversion --source=SOURCE --out=DIR [--part=PART] [--verify]
    python -m weights_conversion.export --source=DIR --out=DIR

One engine (`engine.py`), one name table per model (`vjepa2.py`, `llama.py`, `gemma.py`, `bert.py`,
`open_vljepa.py`). `jepa_jax` never imports this package.
"""
