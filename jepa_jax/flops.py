"""Useful work of a training step, counted from the configuration.

Two FLOPs a multiply-add of every matrix product, attention's and the pools' included; embeddings are
lookups, and norms, activations and the optimizer are left out. Nothing that is computed twice to save
memory counts twice. A product is worth its forward pass, once more where its weights train, and once
more where a gradient passes through it to parameters below: attention has no weights, but two
activations that gradients pass to.
"""

import itertools

from jepa_jax.config import BertConfig, Config, LlamaConfig, LossConfig, XEncoderConfig, YEncoderConfig


def visible_pairs(length: int, *, window: int | None = None, causal: bool = False) -> int:
    """(query, key) pairs that a mask lets through over `length` positions: the useful ones."""
    reach = length if window is None else window
    before = sum(min(i, reach) for i in range(length))
    return length + before * (1 if causal else 2)


def _projections(config: LlamaConfig | YEncoderConfig) -> int:
    """Forward FLOPs a token of a gated block's linear maps."""
    attention = 2 * config.width * config.head_size * (2 * config.heads + 2 * config.kv_heads)
    return attention + 2 * 3 * config.width * config.mlp_width


def _plain_projections(config: XEncoderConfig | BertConfig) -> int:
    """The same of a block whose MLP has no gate and whose heads are as wide as the model."""
    return 2 * (4 * config.width**2 + 2 * config.width * config.mlp_width)


def x_encoder_forward(config: XEncoderConfig, frames: int) -> dict[str, int]:
    """Forward FLOPs a clip: of the patch embedding, of the blocks' linear maps, of attention."""
    tokens = config.visual_tokens(frames)
    patch = 3 * config.tubelet_size * config.patch_size**2
    return {
        "patches": 2 * tokens * patch * config.width,
        "projections": config.layers * tokens * _plain_projections(config),
        "attention": config.layers * 4 * tokens**2 * config.width,
    }


def _x_encoder(config: Config) -> int:
    if config.data.features:
        return 0  # its tokens are read
    train = config.optim.factors.x_encoder > 0
    forward = x_encoder_forward(config.model.x_encoder, config.data.frames)
    # No gradient is wanted of the frames.
    return forward["patches"] * (1 + train) + (forward["projections"] + forward["attention"]) * (
        1 + 2 * train
    )


def _predictor(config: Config, query_length: int) -> int:
    llama, factors, below = config.model.predictor, config.optim.factors, config.optim.factors.x_encoder > 0
    train, heads = factors.predictor > 0, factors.heads > 0
    tokens = config.model.x_encoder.visual_tokens(config.data.frames)
    length = tokens + query_length
    # Whether a gradient enters the blocks; what they train themselves sits at the very bottom of them.
    flow = train or heads or below or factors.token_embedding > 0
    projection = 2 * tokens * config.model.x_encoder.width * llama.width
    projections = llama.layers * length * _projections(llama)
    seen = visible_pairs(length, causal=llama.causal)
    attention = llama.layers * 4 * seen * llama.heads * llama.head_size
    pool = 2 * length * llama.width
    output = 2 * llama.width * config.model.embedding_size
    return (
        projection * (1 + heads + below)
        + projections * (1 + train + flow)
        + attention * (1 + 2 * flow)
        + pool * (1 + flow)
        + output * (1 + heads + flow)
    )


def _y_encoder(config: Config, length: int) -> int:
    text = config.model.y_encoder
    train, heads = config.optim.factors.y_encoder > 0, config.optim.factors.heads > 0
    if isinstance(text, BertConfig):
        stack = text.layers * (length * _plain_projections(text) + 4 * length**2 * text.width)
        pool, widths = 2 * length * text.width * (text.pool == "mean"), (text.width,)
    else:
        full = text.layers // text.full_every
        seen = full * visible_pairs(length)
        seen += (text.layers - full) * visible_pairs(length, window=text.window)
        attention = 4 * seen * text.heads * text.head_size
        stack = text.layers * length * _projections(text) + attention
        pool, widths = 2 * length * text.width, (text.width, *text.dense_widths)
    dense = sum(2 * a * b for a, b in itertools.pairwise(widths))
    output = 2 * widths[-1] * config.model.embedding_size * config.model.y_projection
    return (stack + dense) * (1 + 2 * train) + pool * (1 + train) + output * (1 + heads + train)


def _products(loss: LossConfig, pairs: int, width: int) -> int:
    """Forward FLOPs of one side's products for a whole batch; those of two sides share one of them."""
    match loss.objective:
        case "info_nce" | "sigmoid":
            return 2 * pairs**2 * width
        case "vicreg":
            return 2 * pairs * width**2
        case "sigreg":
            return 2 * pairs * width * loss.sigreg_directions
        case _:
            return 0


def _loss(config: Config) -> float:
    pairs, factors = config.batch_size * config.data.pairs_per_clip, config.optim.factors
    to_predicted = any((factors.x_encoder, factors.predictor, factors.token_embedding, factors.heads))
    to_target = bool(factors.y_encoder or (factors.heads and config.model.y_projection))
    forward = _products(config.loss, pairs, config.model.embedding_size)
    if config.loss.objective in ("info_nce", "sigmoid"):
        total = forward * (1 + to_predicted + to_target)
    elif config.loss.objective == "vicreg":  # x^T x on either side: its gradient is two such products
        total = forward * (2 + 2 * to_predicted + 2 * to_target)
    else:
        total = forward * (2 + to_predicted + to_target)
    return total / config.batch_size


def model_flops(config: Config, query_length: int, target_length: int) -> dict[str, float]:
    """FLOPs per sample of one training step.

    A sample is a clip with its `pairs_per_clip` pairs: a step has `batch_size` of them.

    Args:
      query_length, target_length: tokens of a query and of a target, padding included.

    Returns:
      FLOPs of `x_encoder`, `predictor`, `y_encoder` and `loss`.
    """
    pairs = config.data.pairs_per_clip
    return {
        "x_encoder": _x_encoder(config),
        "predictor": pairs * _predictor(config, query_length),
        "y_encoder": pairs * _y_encoder(config, target_length),
        "loss": _loss(config),
    }
