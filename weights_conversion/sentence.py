"""A sentence-transformers folder: what its modules do with the states of the model."""

import logging
import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from jepa_jax.flags import UsageError
from weights_conversion.files import inside, read_json

logger = logging.getLogger(__name__)
# The Dense head that `export` writes for the projection of a run to its shared space.
PROJECTION = "projection"
# What sentence-transformers calls the vector of a text, from pooling on.
_EMBEDDING = "sentence_embedding"
_OPTIONS = "config_sentence_transformers.json"
# No text is so long.
_NO_BOUND = 10**9
# Options of the tokenizer's call that leave the tokens of a text as they are.
_HARMLESS = ("padding", "pad_to_multiple_of", "return_tensors")


@dataclass
class SentenceModules:
    """What a sentence-transformers folder has around the model.

    Attributes:
      folder: of the model itself, in which its tokenizer is.
      pool: "mean" or "first".
      dense: folders of the Dense heads.
      max_length: tokens that a text is cut to, None where there is no bound.
    """

    folder: pathlib.Path
    pool: str = "mean"
    dense: list[pathlib.Path] = field(default_factory=list)
    max_length: int | None = None


def read_modules(path: pathlib.Path) -> SentenceModules:
    """Those that modules.json lists.

    Raises:
      UsageError: one of them is malformed, outside of the folder, or computes what is not built.
    """
    found, model = SentenceModules(folder=path), None
    for module in read_json(path / "modules.json", list):
        if not isinstance(module, dict):
            raise UsageError(f"{path / 'modules.json'} lists {module!r}, which is no module")
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        place = inside(path, str(module.get("path", "")))
        match kind:
            case "Transformer":
                model = place
            case "Pooling":
                found.pool = _pool(read_json(place / "config.json"), place)
            case "Dense" if place.name == PROJECTION:
                logger.warning("%s: left out, it leads to the shared space of the run it comes from", place)
            case "Dense":
                found.dense.append(place)  # `check_dense` is for those that are taken
            case "Normalize":
                _check_normalize(place)  # embeddings are L2-normalised in any case
            case _:
                raise UsageError(f"{path / 'modules.json'} has a module {kind!r} that is not built")
    if model is None:
        raise UsageError(f"{path / 'modules.json'} names no Transformer")
    _check_texts(path, model)
    _check_size(path)
    found.folder, found.max_length = model, _max_length(model)
    return found


def _check_size(path: pathlib.Path) -> None:
    """Warn where sentence-transformers keeps the first numbers of an embedding alone."""
    options = path / _OPTIONS
    size = read_json(options).get("truncate_dim") if options.is_file() else None
    if size is not None:
        logger.warning(
            "%s: sentence-transformers keeps the first %s numbers of an embedding, and this conversion all",
            options,
            size,
        )


def _check_texts(path: pathlib.Path, model: pathlib.Path) -> None:
    """What sentence-transformers does to a text before the tokenizer sees it.

    Raises:
      UsageError: it makes all letters lower case where the tokenizer does not, or has other tokens made.
    """
    name = "sentence_bert_config.json"
    lower = lambda file: (model / file).is_file() and read_json(model / file).get("do_lower_case")
    if lower(name) and not lower("tokenizer_config.json"):
        raise UsageError(
            f"{model / name}: do_lower_case is true, and not in tokenizer_config.json: not built"
        )
    given = read_json(model / name).get("processing_kwargs") if (model / name).is_file() else None
    for kind in ("common", "text"):
        asked = given.get(kind) if isinstance(given, dict) else None
        for option, value in asked.items() if isinstance(asked, dict) else ():
            if option not in _HARMLESS and (option, value) != ("truncation", True):
                raise UsageError(f"{model / name}: processing_kwargs has {option}={value!r}: not built")
    options = path / _OPTIONS
    found = read_json(options) if options.is_file() else {}
    prompts, chosen = found.get("prompts"), found.get("default_prompt_name")
    prompt = prompts.get(chosen) if isinstance(prompts, dict) and isinstance(chosen, str) else None
    if prompt:
        logger.warning(
            "%s: sentence-transformers puts %r before every text, and this conversion nothing: name it in "
            "data.target_prefix of a run",
            options,
            prompt,
        )


def _max_length(model: pathlib.Path) -> int | None:
    """Tokens that sentence-transformers cuts a text to. From version 6 on it leaves that to the tokenizer,
    whose configuration has an astronomical number where there is no bound, and to the model's positions."""

    def bound(name: str, key: str) -> float:
        found = read_json(model / name).get(key) if (model / name).is_file() else None
        if found is None:
            return math.inf
        if not isinstance(found, int | float) or not found >= 1:
            raise UsageError(f"{model / name}: {key}={found!r} must be a number from 1 on")
        return found

    length = bound("sentence_bert_config.json", "max_seq_length")
    if length == math.inf:
        length = bound("tokenizer_config.json", "model_max_length")
        length = min(length, bound("config.json", "max_position_embeddings"))
    return int(length) if length < _NO_BOUND else None


def _pool(config: Mapping, place: pathlib.Path) -> str:
    """Both spellings of sentence-transformers: one mode by name, or a flag for each."""
    named = config.get("pooling_mode")
    flags = [k.removeprefix("pooling_mode_") for k, on in config.items() if on is True]
    modes = [str(named)] if named else flags
    known = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}
    found = [mode for mode in modes if mode not in ("include_prompt",)]
    if len(found) != 1 or found[0] not in known:
        raise UsageError(
            f"{place / 'config.json'} pools by {found}; only the mean and the first token are built"
        )
    return known[found[0]]


def _check_normalize(place: pathlib.Path) -> None:
    """Raise UsageError where the normalisation in a folder, which need not be there, is of the states of
    single tokens: their mean is another then."""
    file = place / "config.json"
    of = read_json(file).get("module_input_name", _EMBEDDING) if file.is_file() else _EMBEDDING
    if of != _EMBEDDING:
        raise UsageError(f"{file}: a normalisation with module_input_name={of!r} is not built")


def check_dense(place: pathlib.Path) -> None:
    """Raise UsageError where the Dense head in a folder computes what is not built."""
    config = read_json(place / "config.json")
    # What sentence-transformers adds, and where it reads and writes, if nothing is said.
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if config.get("bias") or not activation.endswith("Identity"):
        raise UsageError(
            f"{place / 'config.json'}: a Dense head with bias={config.get('bias')} and {activation}; only "
            "plain ones are built"
        )
    wanted = {
        "use_residual": (False, None),
        "module_input_name": (_EMBEDDING,),
        "module_output_name": (_EMBEDDING, None),
    }
    for name, values in wanted.items():
        if name in config and config[name] not in values:
            raise UsageError(
                f"{place / 'config.json'}: a Dense head with {name}={config[name]!r}; only plain ones are "
                "built"
            )
