"""BERT-family sentence encoders: the name table of Hugging Face's checkpoints."""

from jepa_jax.config import BertConfig
from weights_conversion.engine import SAME, TRANSPOSE, Rule, Unused, prefixed, require

UNUSED = [
    Unused(r"embeddings\.position_ids", "0, 1, 2, ..., a buffer"),
    Unused(r"pooler\.dense\..*", "BERT's pooler, which sentence encoders pass by; kept for the way back"),
    Unused(r"cls\..*", "the head of a checkpoint trained to fill in masked words"),
]
_LAYER = [
    ("query", "attention.self.query"),
    ("key", "attention.self.key"),
    ("value", "attention.self.value"),
    ("out", "attention.output.dense"),
    ("norm1", "attention.output.LayerNorm"),
    ("up", "intermediate.dense"),
    ("down", "output.dense"),
    ("norm2", "output.LayerNorm"),
]


def rules(config: BertConfig, prefix: str = "", *, old: bool = False) -> list[Rule]:
    """The table; `prefix` stands before every name ("bert." around a model with a head).

    Args:
      old: the gains and biases of norms are called gamma and beta, as in Google's own checkpoints.
    """
    gain, shift = ("gamma", "beta") if old else ("weight", "bias")
    table = [
        Rule("token_embedding", "embeddings.word_embeddings.weight"),
        Rule("position_embedding", "embeddings.position_embeddings.weight"),
        Rule("type_embedding", "embeddings.token_type_embeddings.weight"),
        Rule("embedding_norm/scale", f"embeddings.LayerNorm.{gain}"),
        Rule("embedding_norm/bias", f"embeddings.LayerNorm.{shift}"),
    ]
    for ours, theirs in _LAYER:
        norm = ours.startswith("norm")
        first = ("scale", SAME, gain) if norm else ("kernel", TRANSPOSE, "weight")
        for name, transform, kind in (first, ("bias", SAME, shift if norm else "bias")):
            table.append(
                Rule(
                    f"blocks/stacked/{ours}/{name}",
                    f"encoder.layer.{{}}.{theirs}.{kind}",
                    transform,
                    layers=range(config.layers),
                )
            )
    return prefixed(table, theirs=prefix)


def kept(names, prefix: str = "") -> list[Rule]:
    """BERT's pooler: `BertModel` reports it missing without."""
    found = ("pooler.dense.weight", "pooler.dense.bias")
    return [Rule(name, prefix + name) for name in found if prefix + name in names]


def config_from(reference, pool: str = "mean") -> BertConfig:
    """From a `transformers.BertConfig`.

    Raises:
      ConversionError: it asks for something that is not built.
    """
    require(reference, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
    return BertConfig(
        vocab_size=reference.vocab_size,
        width=reference.hidden_size,
        layers=reference.num_hidden_layers,
        heads=reference.num_attention_heads,
        mlp_width=reference.intermediate_size,
        max_length=reference.max_position_embeddings,
        types=reference.type_vocab_size,
        norm_eps=reference.layer_norm_eps,
        pool=pool,
    )


def config_to(config: BertConfig) -> dict:
    """The fields of a `transformers.BertConfig` that say the same."""
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "gelu",
    }
