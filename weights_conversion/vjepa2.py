"""V-JEPA 2: the name tables of Hugging Face's and of Meta's own checkpoints."""

import logging
import math
from collections.abc import Mapping

from jepa_jax.config import XEncoderConfig
from weights_conversion.engine import SAME, TRANSPOSE, ConversionError, Rule, Transform, Unused, require
from weights_conversion.tensors import TensorInfo

logger = logging.getLogger(__name__)
# Of which the heads are known: ViT-B, ViT-L, ViT-H and ViT-g.
_RELEASED_WIDTHS = (768, 1024, 1280, 1408)
_LINEAR = {"kernel": ("weight", TRANSPOSE), "bias": ("bias", SAME)}
_NORM = {"scale": ("weight", SAME), "bias": ("bias", SAME)}

UNUSED = [
    Unused(r"(pooler|classifier)\..*", "the head of a checkpoint fine-tuned to classify"),
    Unused(r"predictor\..*", "V-JEPA's own predictor, which VL-JEPA replaces; kept for the way back"),
    Unused(r"encoder\.embeddings\.position_embeddings", "rotary models do not add positions"),
]
META_UNUSED = [
    Unused(r"pos_embed", "saved by the training code; rotary models do not add positions"),
    Unused(r"predictor:.*", "V-JEPA's own predictor, which VL-JEPA replaces; kept for the way back"),
]
# Where Meta's checkpoints keep the weights; published configurations evaluate `target_encoder`,
# Hugging Face's conversion read `encoder`.
ENCODERS = ("encoder", "target_encoder")


def _both(ours: str, theirs: str, kinds, **options) -> list[Rule]:
    return [Rule(f"{ours}/{a}", f"{theirs}.{b}", t, **options) for a, (b, t) in kinds.items()]


def _patches(config: XEncoderConfig) -> Transform:
    """The patch convolution [D, C, t, p, p] as a product over flattened tubelets, colour fastest."""
    t, p, width = config.tubelet_size, config.patch_size, config.width
    return Transform(
        lambda x: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(t, p, p, 3, width).transpose(4, 3, 0, 1, 2),
    )


def _embedding(config: XEncoderConfig, theirs: str) -> list[Rule]:
    return [
        Rule("patch_embedding/kernel", f"{theirs}.weight", _patches(config)),
        Rule("patch_embedding/bias", f"{theirs}.bias"),
    ]


def rules(config: XEncoderConfig) -> list[Rule]:
    """Hugging Face's names (`VJEPA2Model`)."""
    at = {"layers": range(config.layers)}
    inner, layer = "blocks/stacked", "encoder.layer.{}"
    table = _embedding(config, "encoder.embeddings.patch_embeddings.proj")
    for ours, theirs in (
        ("query", "attention.query"),
        ("key", "attention.key"),
        ("value", "attention.value"),
        ("out", "attention.proj"),
        ("up", "mlp.fc1"),
        ("down", "mlp.fc2"),
    ):
        table += _both(f"{inner}/{ours}", f"{layer}.{theirs}", _LINEAR, **at)
    for norm in ("norm1", "norm2"):
        table += _both(f"{inner}/{norm}", f"{layer}.{norm}", _NORM, **at)
    return table + _both("norm", "encoder.layernorm", _NORM)


def meta_rules(config: XEncoderConfig) -> list[Rule]:
    """Meta's names: query, key and value are one matrix."""
    at = {"layers": range(config.layers)}
    inner, layer = "blocks/stacked", "blocks.{}"
    table = _embedding(config, "patch_embed.proj")
    for k, ours in enumerate(("query", "key", "value")):
        table += _both(f"{inner}/{ours}", f"{layer}.attn.qkv", _LINEAR, share=(k, 3), **at)
    for ours, theirs in (("out", "attn.proj"), ("up", "mlp.fc1"), ("down", "mlp.fc2")):
        table += _both(f"{inner}/{ours}", f"{layer}.{theirs}", _LINEAR, **at)
    for norm in ("norm1", "norm2"):
        table += _both(f"{inner}/{norm}", f"{layer}.{norm}", _NORM, **at)
    return table + _both("norm", "norm", _NORM)


def kept(names) -> list[Rule]:
    """V-JEPA's predictor under Hugging Face's names: `VJEPA2Model` will not open without it."""
    return [Rule(name, name) for name in names if name.startswith("predictor.")]


def meta_kept(names) -> list[Rule]:
    """V-JEPA's predictor from Meta's names (here after "predictor:") to Hugging Face's."""
    tokens = count_numbers(names, "predictor:mask_tokens.")
    if not tokens:
        return []  # the predictor of another objective (V-JEPA 2-AC), which VJEPA2Model does not have
    found = []
    layers = count_numbers(names, "predictor:predictor_blocks.")
    for i in range(layers):
        theirs, ours = f"predictor:predictor_blocks.{i}", f"predictor.layer.{i}"
        for kind in ("weight", "bias"):
            for k, part in enumerate(("query", "key", "value")):
                name = f"{ours}.attention.{part}.{kind}"
                found.append(Rule(name, f"{theirs}.attn.qkv.{kind}", share=(k, 3)))
            found.append(Rule(f"{ours}.attention.proj.{kind}", f"{theirs}.attn.proj.{kind}"))
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found.append(Rule(f"{ours}.{part}.{kind}", f"{theirs}.{part}.{kind}"))
    for kind in ("weight", "bias"):
        for ours, theirs in (
            ("embeddings.predictor_embeddings", "predictor_embed"),
            ("layernorm", "predictor_norm"),
            ("proj", "predictor_proj"),
        ):
            found.append(Rule(f"predictor.{ours}.{kind}", f"predictor:{theirs}.{kind}"))
    found.append(Rule("predictor.embeddings.mask_tokens", "predictor:mask_tokens.{}", layers=range(tokens)))
    return found


def count_numbers(names, prefix: str) -> int:
    """How many numbers follow a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def config_from(reference) -> XEncoderConfig:
    """From a `transformers.VJEPA2Config`.

    Raises:
      ConversionError: it asks for something V-JEPA 2's released encoders do not have.
    """
    require(reference, hidden_act="gelu", qkv_bias=True, in_chans=3)
    return XEncoderConfig(
        width=reference.hidden_size,
        layers=reference.num_hidden_layers,
        heads=reference.num_attention_heads,
        mlp_width=int(reference.hidden_size * reference.mlp_ratio),
        image_size=reference.crop_size,
        patch_size=reference.patch_size,
        tubelet_size=reference.tubelet_size,
        norm_eps=reference.layer_norm_eps,
    )


def config_to(config: XEncoderConfig) -> dict:
    """The fields of a `transformers.VJEPA2Config` that say the same.

    Raises:
      ConversionError: `transformers` has no such encoder.
    """
    if not config.tiled_rope or config.rope_theta != 10_000.0:
        raise ConversionError(
            "transformers' V-JEPA 2 has tiled rotary positions of base 10,000 only; this encoder has others"
        )
    return {
        "model_type": "vjepa2",
        "architectures": ["VJEPA2Model"],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "mlp_ratio": _ratio(config.mlp_width, config.width),
        "crop_size": config.image_size,
        "patch_size": config.patch_size,
        "tubelet_size": config.tubelet_size,
        "layer_norm_eps": config.norm_eps,
    }


def _ratio(mlp_width: int, width: int) -> float:
    """What `transformers` multiplies a width by, rounding down, to have the MLP's."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)


def config_of_shapes(
    info: Mapping[str, TensorInfo], patch: str, layer: str, up: str, image_size: int
) -> XEncoderConfig:
    """From shapes alone, where a checkpoint has no configuration.

    Heads leave no trace in the shapes: the released widths have 64 a head, but ViT-H, with 80.
    """
    try:
        width, _, tubelet, size, _ = info[patch].shape
        mlp_width = info[up].shape[0]
    except (KeyError, ValueError) as error:
        raise ConversionError(f"no V-JEPA 2 encoder: {patch} and {up} are not there as expected") from error
    most = 16 if width == 1280 else max(1, width // 64)
    heads = next(n for n in range(most, 0, -1) if width % n == 0)
    if width not in _RELEASED_WIDTHS:
        logger.warning(
            "heads leave no trace in the weights: without --config.heads=N they are taken to be %d", heads
        )
    return XEncoderConfig(
        width=width,
        layers=count_numbers(info, layer),
        heads=heads,
        mlp_width=mlp_width,
        image_size=max(image_size - image_size % size, size),
        patch_size=size,
        tubelet_size=tubelet,
    )


def clean_meta_names(state: Mapping[str, object]) -> dict[str, object]:
    """Meta's names without the wrappers' `module.` and `backbone.`."""
    return {str(name).removeprefix("module.").removeprefix("backbone."): x for name, x in state.items()}


def predictor_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The `pred_*` fields of a `transformers.VJEPA2Config` from the shapes of V-JEPA's predictor."""
    width = shapes["predictor.proj.weight"][1]
    layers = count_numbers(shapes, "predictor.layer.")
    mlp_width = shapes["predictor.layer.0.mlp.fc1.weight"][0] if layers else 4 * width
    return {
        "pred_hidden_size": width,
        "pred_num_hidden_layers": layers,
        # The released predictors have 12 heads.
        "pred_num_attention_heads": 12 if width % 12 == 0 else 1,
        "pred_num_mask_tokens": shapes["predictor.embeddings.mask_tokens"][0],
        "pred_mlp_ratio": _ratio(mlp_width, width),
    }
