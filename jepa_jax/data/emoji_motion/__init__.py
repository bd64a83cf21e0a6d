"""Emoji in motion: short clips composed from openly licensed artwork, with captions and questions.

Importing this package is cheap on purpose (no JAX, no TFDS): the processes that render clips do it.
Importing `jepa_jax.data.emoji_motion.builder` registers the dataset with TFDS.
"""
