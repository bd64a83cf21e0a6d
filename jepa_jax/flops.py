"""Useful work of a training step: what the model's definition asks for, whatever the program does.

Two FLOPs for a multiply-add of a matrix product, attention's among them at its true length. A lookup in
a table is none, and computing something again is none.
"""

import itertools
import math

from jepa_jax.config import BertConfig, Config, LlamaConfig, XEncoderConfig, YEncoderConfig


def _times(work: tuple[float, float], own: float, below: bool) -> float:
    """A stack's (products with parameters, products of activations) forward, as a step runs them.

    A parameter that trains and an input below which something does each cost as much again; of two
    activations that are multiplied both have gradients.
    """
    weights, attention = work
    if own:
        return 3 * (weights + attention)
    return 2 * weights + 3 * attention if below else weights + attention


def _x_encoder(c: XEncoderConfig, frames: int) -> tuple[float, tuple[float, float], int]:
    """Forward FLOPs of a clip in the patch embedding and in the blocks, and its visual tokens N."""
    tokens = math.ceil(frames / c.tubelet_size) * (c.image_size // c.patch_size) ** 2
    patch = 2.0 * tokens * c.tubelet_size * c.patch_size**2 * 3 * c.width
    weights = 4 * c.width**2 + 2 * c.width * c.mlp_width
    return patch, (2.0 * tokens * c.layers * weights, 4.0 * tokens**2 * c.layers * c.width), tokens


def _gated_layer(c: LlamaConfig | YEncoderConfig) -> float:
    """Parameters of a Llama or Gemma layer's matrices."""
    inner, kv = c.heads * c.head_size, c.kv_heads * c.head_size
    return 2 * c.width * (inner + kv) + 3 * c.width * c.mlp_width


def _in_window(length: int, window: int) -> float:
    """Mean number of positions that a position sees within |i - j| <= window."""
    reach = min(window, length - 1)
    return (length * (2 * reach + 1) - reach * (reach + 1)) / length


def _y_encoder(c: YEncoderConfig | BertConfig, length: int) -> tuple[tuple[float, float], float]:
    """Forward FLOPs of a text in the blocks, and in the Dense heads."""
    if isinstance(c, BertConfig):
        weights = 4 * c.width**2 + 2 * c.width * c.mlp_width
        return (2.0 * length * c.layers * weights, 4.0 * length**2 * c.layers * c.width), 0.0
    full = c.layers // c.full_every
    seen = full * length + (c.layers - full) * _in_window(length, c.window)
    attention = 4.0 * length * seen * c.heads * c.head_size
    dense = 2.0 * sum(a * b for a, b in itertools.pairwise((c.width, *c.dense_widths)))
    return (2.0 * length * c.layers * _gated_layer(c), attention), dense


def model_flops(config: Config, query_length: int, target_length: int) -> dict[str, float]:
    """FLOPs of one training step by part, over the batch's (query, target) pairs: per pair.

    A part that trains costs its forward pass three times (the gradients of its inputs and of its
    parameters), a frozen one above which nothing trains once, and one through which gradients pass
    twice. A clip is encoded once for its `pairs_per_clip`.

    Args:
      query_length, target_length: tokens, padding included, as a length bucket gives them.

    Returns:
      `x_encoder`, `predictor`, `y_encoder` and `loss`, the last for a whole row of negatives.
    """
    model, factors = config.model, config.optim.factors
    pairs = config.data.pairs_per_clip
    patch, blocks, visual = _x_encoder(model.x_encoder, config.data.frames)
    x_trains, y_trains = factors.x_encoder > 0, factors.y_encoder > 0
    # What comes first has no inputs that could have gradients.
    encoder = (1 + x_trains) * patch + _times(blocks, factors.x_encoder, False)

    c = model.predictor
    length = visual + query_length
    seen = (length + 1) / 2 if c.causal else length
    attention = 4.0 * length * seen * c.layers * c.heads * c.head_size
    below = bool(factors.x_encoder or factors.heads or factors.token_embedding)
    heads = int(factors.heads > 0)
    predictor = (
        (1 + heads + x_trains) * 2.0 * visual * model.x_encoder.width * c.width
        + _times((2.0 * length * c.layers * _gated_layer(c), attention), factors.predictor, below)
        + (1 + heads + (below or factors.predictor > 0)) * 2.0 * c.width * model.embedding_size
    )

    text, dense = _y_encoder(model.y_encoder, target_length)
    y_encoder = _times(text, factors.y_encoder, False) + (3 if y_trains else 1) * dense
    if model.y_projection:
        y_encoder += (1 + heads + y_trains) * 2.0 * model.y_encoder.output_width * model.embedding_size
    # One product forward and one back for each side that learns.
    row = 2.0 * config.batch_size * pairs * model.embedding_size
    sides = 2 + bool(y_trains or (model.y_projection and heads))
    return {
        "x_encoder": encoder / pairs,
        "predictor": predictor,
        "y_encoder": y_encoder,
        "loss": sides * row if config.loss.has_temperature else 0.0,
    }
