"""What a source is: a file, a folder or a hub name, told apart by what is in it."""

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jepa_jax.flags import UsageError
from weights_conversion import llama, open_vljepa, vjepa2
from weights_conversion.files import read_json
from weights_conversion.sentence import SentenceModules, read_modules
from weights_conversion.tensors import (
    GGUF,
    Joined,
    ModelParallel,
    Pickled,
    Safetensors,
    Tensors,
    load_pickle,
)

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
# What a hub name is downloaded for; other formats of the same weights are left where they are.
# Dense heads are often older than their model, and pickled beside its safetensors.
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "README.md", "*_Dense/pytorch_model.bin"]
_MODEL_TYPES = ("vjepa2", "llama", "gemma3_text", "bert")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_ACCEPTED = (
    "give a Hugging Face folder (config.json and safetensors), a sentence-transformers folder, Meta's .pt or "
    "consolidated.*.pth with params.json, a GGUF file, open-vljepa's best.pt, or a hub name like "
    "facebook/vjepa2-vitl-fpc64-256"
)


@dataclass
class Source:
    """An opened source.

    Attributes:
      kind: the name table it needs: "vjepa2", "vjepa2_meta", "llama", "llama_meta", "llama_gguf",
        "gemma3", "gemma3_gguf", "bert" or "open_vljepa".
      config: its own configuration: config.json, params.json, GGUF metadata, or a saved dict.
      root: the folder around it.
      sentence: the sentence-transformers modules around the model.
      revision: the commit of a hub download.
    """

    kind: str
    tensors: Tensors
    config: Mapping[str, Any]
    root: pathlib.Path
    sentence: SentenceModules | None = None
    revision: str | None = None

    def tokenizer_files(self) -> list[pathlib.Path]:
        """The tokenizer's files beside the model."""
        folder = self.root if self.sentence is None else self.sentence.folder
        return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]

    def license(self) -> str | None:
        """The licence that a GGUF file or a model card's header names."""
        if self.config.get("general.license"):
            return str(self.config["general.license"])
        card = self.root / "README.md"
        if not card.is_file():
            return None
        head = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
        if len(head) < 3:
            return None
        # On the same line, or as the items of a list below it.
        header = re.sub(r"(^|\s)#.*", "", head[1])
        named = re.search(r"^license:[ \t]*(\S.*)?((?:\s*\n[ \t]*- .*)*)", header, re.MULTILINE)
        words = re.findall(r"[^\s,\[\]'\"]+", f"{named[1] or ''}{named[2]}") if named else []
        return ", ".join(word for word in words if word != "-") or None


def open_source(name: str, *, encoder: str = "encoder", x_encoder: str | None = None) -> Source:
    """Open a file, a folder, or a name on the Hugging Face hub.

    Args:
      encoder: which weights of Meta's V-JEPA 2 file, one of `vjepa2.ENCODERS`.
      x_encoder: for an open-vljepa checkpoint without its frozen encoder: where that is.

    Raises:
      UsageError: there is no such source, or it is none of those that are known.
    """
    path = pathlib.Path(name)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path, encoder, x_encoder)
    if _HUB_NAME.fullmatch(name):
        folder, revision = _download(name)
        source = _open_folder(folder)
        source.revision = revision
        return source
    raise UsageError(f"there is no file or folder {name!r}, and it is no hub name: {_ACCEPTED}")


def _download(name: str) -> tuple[pathlib.Path, str]:
    """A hub repository's folder on this machine and its commit."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        folder = pathlib.Path(snapshot_download(name, allow_patterns=_HUB_FILES))
        if not any(folder.rglob("*.safetensors")):
            snapshot_download(name, revision=folder.name, allow_patterns=["pytorch_model*.bin*"])
    except hub.GatedRepoError as error:
        raise UsageError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise UsageError(
            f"the hub has no repository {name!r}, or it is private: check the name, or log in with "
            "`hf auth login`"
        ) from error
    except Exception as error:  # every HTTP library below raises its own when there is no network
        raise UsageError(
            f"{name!r} is no file or folder here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}): check the network, or download the repository elsewhere and give "
            "its folder"
        ) from error
    return folder, folder.name


def _open_folder(path: pathlib.Path) -> Source:
    if (path / "modules.json").is_file():
        return _open_sentence_folder(path)
    if (path / "config.json").is_file():
        return _open_hugging_face(path)
    if (path / "params.json").is_file():
        return _open_meta_llama(path)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return _open_gguf(ggufs[0])
    if list(path.glob("consolidated.*.pth")):
        raise UsageError(f"{path} has consolidated files but no params.json, which says their sizes: add it")
    raise UsageError(f"{path} holds no checkpoint that is known: {_ACCEPTED}")


def _open_file(path: pathlib.Path, encoder: str, x_encoder: str | None) -> Source:
    match path.suffix:
        case ".gguf":
            return _open_gguf(path)
        case ".safetensors":
            if (path.parent / "config.json").is_file():
                return _open_folder_of(path)
            raise UsageError(f"{path} needs the config.json that belongs to it, in the same folder")
        case ".pth" if path.name.startswith("consolidated."):
            return _open_folder_of(path)
        case ".pt" | ".pth" | ".bin" | ".ckpt":
            return _open_pickle(path, encoder, x_encoder)
    raise UsageError(f"{path} is of no kind that is known: {_ACCEPTED}")


def _open_folder_of(path: pathlib.Path) -> Source:
    """The folder around a file that must be one of those its weights are read from."""
    source = _open_folder(path.parent)
    if path not in source.tensors.files:
        used = ", ".join(file.name for file in source.tensors.files[:3])
        raise UsageError(
            f"{path} is not what is read from its folder ({used}): give it a folder of its own, under the "
            "name that its format has"
        )
    return source


def _weights(path: pathlib.Path) -> Tensors:
    """The tensors of a Hugging Face folder, in one file or in shards."""
    for single, kind in (("model.safetensors", Safetensors), ("pytorch_model.bin", None)):
        index = path / f"{single}.index.json"
        if (path / single).is_file():
            return Safetensors([path / single]) if kind else Pickled(path / single)
        if index.is_file():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict):
                raise UsageError(f"{index} has no weight_map: download it again")
            names = sorted(set(map(str, named.values())))
            for name in names:
                if pathlib.PurePath(name).name != name:
                    raise UsageError(f"{index} names {name!r}, which lies outside of its folder: refused")
            missing = [name for name in names if not (path / name).is_file()]
            if missing:
                raise UsageError(
                    f"{path} lacks {len(missing)} of its {len(names)} shards ({', '.join(missing[:3])}): "
                    "download them"
                )
            files = [path / name for name in names]
            return Safetensors(files) if kind else Joined([("", Pickled(f)) for f in files])
    raise UsageError(f"{path} has a config.json but no model.safetensors: download it")


def _open_hugging_face(path: pathlib.Path) -> Source:
    config = read_json(path / "config.json")
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        raise UsageError(
            f"{path / 'config.json'} is of model type {kind!r}; converted are {', '.join(_MODEL_TYPES)}"
        )
    return Source(kind.removesuffix("_text"), _weights(path), config, path)


def _open_sentence_folder(path: pathlib.Path) -> Source:
    sentence = read_modules(path)
    source = _open_hugging_face(sentence.folder)
    source.root, source.sentence = path, sentence
    dense = [(f"dense:{k}/", _weights(place)) for k, place in enumerate(sentence.dense)]
    source.tensors = Joined([("", source.tensors), *dense])
    return source


def _open_meta_llama(path: pathlib.Path) -> Source:
    params = read_json(path / "params.json")
    files = sorted(path.glob("consolidated.*.pth"))
    if not files:
        raise UsageError(f"{path} has a params.json but no consolidated.*.pth: download them")
    numbers = [file.name.split(".")[1] for file in files]
    wanted = [f"{i:02d}" for i in range(len(files))]
    if numbers != wanted:
        missing = sorted(set(f"{i:02d}" for i in range(int(numbers[-1]) + 1)) - set(numbers))
        raise UsageError(f"{path} lacks consolidated.{missing[0]}.pth: download it")
    shards = [Pickled(file) for file in files]
    if "tok_embeddings.weight" not in shards[0].info:
        raise UsageError(f"{files[0]} is no Llama of Meta's: it has no tok_embeddings.weight")

    def axis_of(name: str) -> int | None:
        return llama.axis_of(name, params.get("dim"), shards[0].info[name])

    return Source("llama_meta", ModelParallel(shards, axis_of), params, path)


def _open_gguf(file: pathlib.Path) -> Source:
    tensors = GGUF(file)
    kind = tensors.metadata.get("general.architecture")
    if kind not in ("llama", "gemma3"):
        raise UsageError(f"{file} is of architecture {kind!r}; converted are llama and gemma3")
    return Source(f"{kind}_gguf", tensors, tensors.metadata, file.parent)


def _open_pickle(path: pathlib.Path, encoder: str, x_encoder: str | None) -> Source:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, not a state dict: {_ACCEPTED}")
    if any(name in content for name in (*vjepa2.ENCODERS, "ema_encoder")):
        return _open_meta_vjepa2(path, content, encoder)
    key = next((k for k in open_vljepa.NESTED if isinstance(content.get(k), dict)), None)
    state = content if key is None else content[key]
    if open_vljepa.looks_like(state):
        saved = content.get("config") if key else None
        return _open_vljepa(path, key, saved if isinstance(saved, dict) else {}, x_encoder)
    cleaned = vjepa2.clean_meta_names(state)
    if "patch_embed.proj.weight" in cleaned:

        def bare(content):
            return vjepa2.clean_meta_names(content if key is None else content[key])

        return Source("vjepa2_meta", Pickled(path, bare), {}, path.parent)
    some = ", ".join(list(map(str, content))[:4])
    raise UsageError(f"{path} is of no kind that is known (it has {some}, ...): {_ACCEPTED}")


def _open_meta_vjepa2(path: pathlib.Path, content: dict, encoder: str) -> Source:
    if not isinstance(content.get(encoder), dict):
        there = ", ".join(name for name in (*vjepa2.ENCODERS, "ema_encoder") if name in content)
        raise UsageError(f"{path} has no {encoder}: it has {there}; choose with --encoder")
    if any("patch_embed_img" in str(name) for name in content[encoder]):
        raise UsageError(
            f"{path} is a V-JEPA 2.1 encoder (image patches, modality embeddings, several norms), which is "
            "another architecture: V-JEPA 2's are converted"
        )

    def select(content):
        state = dict(vjepa2.clean_meta_names(content[encoder]))
        predictor = content.get("predictor")
        if isinstance(predictor, dict):
            state |= {f"predictor:{k}": x for k, x in vjepa2.clean_meta_names(predictor).items()}
        return state

    return Source("vjepa2_meta", Pickled(path, select), {}, path.parent)


def _open_vljepa(path: pathlib.Path, key: str | None, saved: Mapping, x_encoder: str | None) -> Source:
    def select(content):
        state = content if key is None else content[key]
        return {str(name).removeprefix("module."): x for name, x in state.items()}

    tensors: Tensors = Pickled(path, select)
    if not any(name.startswith("x_encoder.") for name in tensors.info):
        if x_encoder is None:
            raise UsageError(
                f"{path} was saved without its frozen X-Encoder: add "
                "--x_encoder=facebook/vjepa2-vitl-fpc64-256 or the folder it is in"
            )
        other = open_source(x_encoder)
        if other.kind != "vjepa2":
            raise UsageError(f"--x_encoder={x_encoder} is no Hugging Face V-JEPA 2 but {other.kind}")
        tensors = Joined([("", tensors), ("x_encoder.model.", other.tensors)])
    return Source("open_vljepa", tensors, saved, path.parent)
