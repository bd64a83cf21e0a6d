"""VL-JEPA in JAX and Flax: predict the embedding of an answer from a video and a query.

Axis letters, used in docstrings, name suffixes and einsums throughout the package:

| letter | axis                    | letter | axis                       |
|--------|-------------------------|--------|----------------------------|
| B      | batch                   | K      | attention heads            |
| T      | frames                  | G      | key-value heads            |
| H, W   | pixels, rows, columns   | A      | size of an attention head  |
| N      | visual tokens           | E      | shared embedding space     |
| L      | sequence positions      | V      | vocabulary                 |
| D      | width of a transformer  | S      | layers of a stack          |
| F      | width of an MLP         | C      | colour channels (RGB)      |

`jepa_jax.load(DIR)` opens a trained model. JAX is imported only then, so that data workers, which need
none of it, start at once.
"""

__version__ = "0.1.0"


def load(directory, decoder=None, *, devices=None, batch_size=None):
    """The model of a run: see `jepa_jax.inference.load`, which this is."""
    from jepa_jax import inference

    return inference.load(directory, decoder, devices=devices, batch_size=batch_size)
