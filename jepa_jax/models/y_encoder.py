"""Y-Encoder: text to target embedding; what every text backbone shares after its token states."""

import itertools

import jax
from flax import nnx

from jepa_jax.models.layers import linear, masked_mean


class YEncoder(nnx.Module):
    """Pool, Dense heads and projection to the shared space (arXiv 2512.10942, section 3.1).

    The token states come from a subclass: `gemma.Gemma` (the paper's) or `bert.Bert`.
    """

    def _add_heads(self, widths: tuple[int, ...], embedding_size: int | None, *, dtype, rngs: nnx.Rngs):
        """`widths` are the backbone's and the Dense heads'; without `embedding_size` there is no
        projection, and the module gives the backbone's own embedding of a text."""
        self.dense = nnx.List([linear(*pair, dtype=dtype, rngs=rngs) for pair in itertools.pairwise(widths)])
        project = lambda: linear(widths[-1], embedding_size, bias=True, dtype=dtype, rngs=rngs)
        self.output_projection = None if embedding_size is None else project()

    def hidden_states(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Token states after the final norm: [B, L] int32, [B, L] bool -> [B, L, D]."""
        raise NotImplementedError

    def pool(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """One state for a text: [B, L, D], [B, L] -> [B, D]. The mean, unless a subclass differs."""
        return masked_mean(x, mask)

    @jax.named_scope("y_encoder")
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Target embedding S_Y, before normalisation.

        Args:
          tokens: [B, L] int32 token ids; `mask`: [B, L] bool, False on padding.

        Returns:
          [B, E]; without a projection, [B, D] or the last Dense head's width.
        """
        x = self.pool(self.hidden_states(tokens, mask), mask)
        for dense in self.dense:
            x = dense(x)
        return x if self.output_projection is None else self.output_projection(x)
