"""Products of embeddings."""

import jax
import jax.numpy as jnp


def product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """An einsum in float32 throughout: a TPU's default would round the factors to bfloat16, and this is
    little work beside the model's."""
    return jnp.einsum(subscripts, x, y, precision="highest", preferred_element_type=jnp.float32)
