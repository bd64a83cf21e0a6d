"""Tokenizers, loaded through `transformers`: the demo's own, Llama's, Gemma's."""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import logging
import pathlib
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from jepa_jax.config import Config, DecoderConfig
from jepa_jax.errors import first_line
from jepa_jax.places import is_local, place

# Names that stand for files shipped with the package.
SHIPPED = {"emoji_motion": pathlib.Path(__file__).parent / "emoji_motion" / "tokenizer"}
# One of them holds the words of a tokenizer.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Of the files of a tokenizer; beside them there may be gigabytes of weights.
_FILES = (".json", ".txt", ".model", ".jinja")

# The class that takes all from tokenizer.json, by its names in transformers 4 and 5.
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")


# Texts that are encoded together: what the library makes of one takes some 8 kB until all are done.
_AT_ONCE = 1024


class UnknownTokenError(ValueError):
    """A text has a token that the model's table has no row for."""


def _is_no_advice(record: logging.LogRecord) -> bool:
    """For the log of `transformers`: that it misses PyTorch, which no tokenizer needs, is nobody's worry."""
    return not record.getMessage().startswith("PyTorch was not found")


def has_vocabulary(folder: epath.PathLike) -> bool:
    """Whether a folder holds a tokenizer. Of one that does not, `transformers` may make one that knows no
    word."""
    return any((epath.Path(folder) / name).is_file() for name in _VOCABULARIES)


@contextlib.contextmanager
def _on_disk(name: str):
    """A hub's name or a folder of this machine; what is in a bucket is copied to one."""
    if is_local(name):
        yield name
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in place(name).iterdir():
            if file.suffix in _FILES:
                pathlib.Path(copy, file.name).write_bytes(file.read_bytes())
        yield copy


def _class_of(source: str):
    """The class of `transformers` that reads a tokenizer. `AutoTokenizer` finds it by itself, but imports
    PyTorch, where that is installed, to do so: seconds of every start. A folder of a tokenizer alone that
    names the general class needs no finding."""
    import transformers  # slow to import, and only needed here

    folder = pathlib.Path(source)
    known = (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what is wrong, AutoTokenizer says
        about = json.loads((folder / "tokenizer_config.json").read_bytes())
        if known and about.get("tokenizer_class") in _GENERAL and "auto_map" not in about:
            return transformers.PreTrainedTokenizerFast
    return transformers.AutoTokenizer


def no_sentencepiece() -> str:
    """Why SentencePiece models cannot be read here; "" where they can. `transformers` only tells of what it
    tries next."""
    if importlib.util.find_spec("sentencepiece") is None:
        return "a SentencePiece model takes sentencepiece: pip install 'sentencepiece<0.2.3'"
    try:
        importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except Exception as error:  # 0.2.3 wants protobuf 7, which Beam does not go with
        return f"pip install 'sentencepiece<0.2.3': this one does not go with protobuf ({first_line(error)})"
    return ""


def _is_sentencepiece(folder: str) -> bool:
    """Whether a tokenizer's words are a SentencePiece model's alone."""
    if pathlib.Path(folder, "tokenizer.json").exists():
        return False
    for path in pathlib.Path(folder).glob("*.model"):
        with path.open("rb") as file:  # Llama 3's ranks, which are called so too, are lines of two words
            if b" " not in file.readline():
                return True
    return False


def _whole(text: str) -> str:
    """A text with "?" for half a surrogate pair, which JSON and command lines can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


class Tokenizer:
    """Texts to right-padded ids.

    Args:
      name: a shipped name, a folder here or in a bucket, or a name on the Hugging Face hub.
      prefix: put before every text.
      vocab_size: rows of the model's token table; without it, the tokenizer's number of ids.

    Raises:
      ValueError: there is no such tokenizer, or it cannot be had.
    """

    def __init__(self, name: str, prefix: str = "", vocab_size: int | None = None):
        logging.getLogger("transformers").addFilter(_is_no_advice)
        missing = ""
        try:
            with _on_disk(str(SHIPPED.get(name, name))) as source:
                missing = no_sentencepiece() if _is_sentencepiece(source) else ""
                # Left out, the library asks at the terminal whether to run the code that a folder brings.
                self._tokenizer = _class_of(source).from_pretrained(source, trust_remote_code=False)
        except Exception as error:  # the library raises whatever a damaged file leads it to
            raise ValueError(
                f"tokenizer {name!r} cannot be loaded: give {', '.join(SHIPPED)}, a folder, or "
                f"a hub name you have access to ({missing or first_line(error)})"
            ) from error
        # Llama's tokenizer has no padding token. Padding is masked everywhere, so any id serves.
        self.pad_id = self._tokenizer.pad_token_id or 0
        self.name = name
        self.prefix = prefix
        self._vocab_size = len(self._tokenizer) if vocab_size is None else vocab_size
        self._start()

    def _start(self) -> None:
        # A fast tokenizer keeps the length to cut at as a state of its own, which threads would share.
        self._lock = threading.Lock()
        # Texts repeat: most of them are looked up, not encoded again.
        self._row = functools.lru_cache(maxsize=2**16)(self._pad)
        self._row_to_write = functools.lru_cache(maxsize=2**16)(self._pad_to_write)

    def __getstate__(self) -> dict:
        """For worker processes, each of which has a lock and a memory of its own."""
        own = ("_lock", "_row", "_row_to_write")
        return {name: x for name, x in vars(self).items() if name not in own}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        """Rows that a token table must have for ordinary text, padding and special tokens included.

        A token added to the vocabulary counts only if every text has it. Gemma 3's tokenizer ends in
        one that stands for a piece of an image, and the tables of its text models have no row for it.
        """
        always = (self.pad_id, *self._encode("", None))
        return max(self._tokenizer.vocab_size, max(always) + 1)

    def _encode(self, text: str, length: int | None) -> tuple[int, ...]:
        options = {} if length is None else {"truncation": True, "max_length": length}
        with self._lock:
            return tuple(self._tokenizer(self.prefix + _whole(text), **options)["input_ids"])

    @functools.cached_property
    def identity(self) -> str:
        """A hash of all that tells how it splits a text."""
        rust = getattr(self._tokenizer, "backend_tokenizer", None)
        if rust:
            with self._lock:
                rust.no_truncation()  # the length of the last text that was cut; each call sets its own
                rules = rust.to_str()
        else:  # the vocabulary and the class are all there is to see
            rules = f"{type(self._tokenizer)} {sorted(self._tokenizer.get_vocab())}"
        return hashlib.sha256(f"{self.prefix}\n{rules}".encode()).hexdigest()

    def save(self, folder: epath.PathLike, length: int) -> None:
        """Write it into a folder, for `transformers` to pad texts as here and to cut them to `length` tokens.
        The prefix is none of its files'."""
        with self._lock:
            found = self._tokenizer
            found.padding_side, found.model_max_length = "right", length
            if found.pad_token is None:  # the library pads by no other; what is padded is masked
                found.pad_token = found.eos_token
            if getattr(found, "backend_tokenizer", None):
                found.backend_tokenizer.no_truncation()  # as in `identity`
            found.save_pretrained(folder)

    def _encode_many(self, texts: Sequence[str], **options) -> Iterator[list[list[int]]]:
        """Ids of some texts at a time."""
        for begin in range(0, len(texts), _AT_ONCE):
            whole = [self.prefix + _whole(text) for text in texts[begin : begin + _AT_ONCE]]
            with self._lock:
                # Not verbose: it warns of a text that is longer than a model takes, which is cut later.
                ids = self._tokenizer(whole, verbose=False, **options)["input_ids"]
            yield ids

    def counts(self, texts: list[str]) -> list[int]:
        """Tokens of each text, special ones included."""
        return [len(ids) for some in self._encode_many(texts) for ids in some]

    def count(self, text: str) -> int:
        """Tokens of one text, special ones included."""
        return self.counts([text])[0]

    def before_text(self) -> int:
        """Tokens that every text has, of the prefix and special ones. A space that ends the prefix may become
        part of the text's first token, and does not count."""
        with self._lock:
            return len(self._tokenizer(self.prefix.rstrip(), verbose=False)["input_ids"])

    def __call__(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [L] int32 and mask [L] bool, cut or right-padded to `length` positions.

        A cut takes from the text: the special tokens around it stay.

        Raises:
          ValueError: `length` is too short for the special tokens.
          UnknownTokenError: the text has a token that the model's table has no row for.
        """
        ids, mask = self._row(text, length)
        return ids.copy(), mask.copy()

    @property
    def end_id(self) -> int:
        """The token that ends a text.

        Raises:
          ValueError: the tokenizer has none.
        """
        for found in (self._tokenizer.eos_token_id, self._tokenizer.sep_token_id):
            if found is not None:
                return found
        raise ValueError(f"tokenizer {self.name!r} has no token that ends a text: a decoder needs one")

    def batch_to_write(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """What a decoder writes: ids [B, L] int32 and mask [B, L] bool, without special tokens but the
        one that ends a text; a text that is cut does not end."""
        rows = [self._row_to_write(text, length) for text in texts]
        return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])

    def _pad_to_write(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            found = self._tokenizer(_whole(text), add_special_tokens=False)["input_ids"]
        return self._padded(text, [*found, self.end_id][:length], length)

    def text(self, ids: np.ndarray) -> str:
        """A text from what a decoder wrote: ids [L] up to the one that ends it."""
        end = np.flatnonzero(ids == self.end_id)
        return self._tokenizer.decode(ids[: end[0]] if len(end) else ids, skip_special_tokens=True).strip()

    def _pad(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        return self._fitted(text, self._encode(text, length), length)

    def _fitted(self, text: str, found: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        if len(found) > length:
            raise ValueError(
                f"a length of {length} in data.length_buckets is too short for the tokenizer's special "
                f"tokens alone: give at least {self._tokenizer.num_special_tokens_to_add()}"
            )
        return self._padded(text, found, length)

    def _padded(self, text: str, found, length: int) -> tuple[np.ndarray, np.ndarray]:
        highest = max(found, default=0)
        if highest >= self._vocab_size:
            token = self._tokenizer.convert_ids_to_tokens(highest)
            raise UnknownTokenError(
                f"{text!r} has the token {token!r}, but the model's table of {self._vocab_size} rows has "
                f"none for it (id {highest}): take it out of the text"
            )
        ids = np.full(length, self.pad_id, np.int32)
        ids[: len(found)] = found
        return ids, np.arange(length) < len(found)

    def batch(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [B, L] int32 and mask [B, L] bool."""
        if len(texts) <= _AT_ONCE:
            rows = [self._row(text, length) for text in texts]
            return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
        # So many are a bank, of which few were encoded before: one by one they take half as long again.
        ids, mask = np.empty((len(texts), length), np.int32), np.empty((len(texts), length), bool)
        many = self._encode_many(texts, truncation=True, max_length=length)
        for row, (text, found) in enumerate(zip(texts, itertools.chain.from_iterable(many), strict=True)):
            ids[row], mask[row] = self._fitted(text, found, length)
        return ids, mask


def identity_of(tokenizers: Iterable[Tokenizer]) -> str:
    """A text that is another where one of them splits texts otherwise."""
    return " ".join(tokenizer.identity[:16] for tokenizer in tokenizers)


def load_query_tokenizer(config: Config) -> Tokenizer:
    """The query's tokenizer.

    Raises:
      ValueError: as `load_tokenizers`.
    """
    vocab_size = config.model.predictor.vocab_size
    found = Tokenizer(config.data.query_tokenizer, vocab_size=vocab_size)
    _check(found, "model.predictor", vocab_size, config.data.length_buckets[-1][0])
    return found


def load_target_tokenizer(config: Config) -> Tokenizer:
    """The target's tokenizer, with its prefix.

    Raises:
      ValueError: as `load_tokenizers`.
    """
    data, vocab_size = config.data, config.model.y_encoder.vocab_size
    length = data.length_buckets[-1][1]
    found = Tokenizer(data.target_tokenizer, data.target_prefix, vocab_size)
    _check(found, "model.y_encoder", vocab_size, length)
    # Cut behind it, all targets would be one, and a run would learn nothing of them.
    if (before := found.before_text()) >= length:
        raise ValueError(
            f"data.target_prefix={data.target_prefix!r} and special tokens take {before} of the {length} "
            "tokens that a target has in data.length_buckets and leave none for the text: raise that length"
        )
    return found


def load_tokenizers(config: Config) -> tuple[Tokenizer, Tokenizer]:
    """The query's and the target's tokenizer.

    Raises:
      ValueError: a tokenizer cannot be had, needs more rows than its model's table has, or its special tokens
        more positions than the last of `data.length_buckets`; or these and the prefix leave none to a target.
    """
    return load_query_tokenizer(config), load_target_tokenizer(config)


def load_decoder_tokenizer(config: DecoderConfig) -> Tokenizer:
    """A decoder's tokenizer.

    Raises:
      ValueError: it needs more rows than the decoder's table has, or has no token that ends a text.
    """
    tokenizer = Tokenizer(config.tokenizer, vocab_size=config.llama.vocab_size)
    _check_rows(tokenizer, "llama", config.llama.vocab_size)
    if tokenizer.end_id >= config.llama.vocab_size:
        raise ValueError(
            f"tokenizer {config.tokenizer!r} ends a text with id {tokenizer.end_id}, but "
            f"llama.vocab_size={config.llama.vocab_size}: raise it"
        )
    return tokenizer


def _check(tokenizer: Tokenizer, part: str, vocab_size: int, length: int) -> None:
    _check_rows(tokenizer, part, vocab_size)
    # Now, not in a thread: texts that fit no other bucket, and all that are embedded, come in this one.
    tokenizer("", length)


def _check_rows(tokenizer: Tokenizer, part: str, vocab_size: int) -> None:
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer.name!r} needs {len(tokenizer)} rows, but {part}.vocab_size="
            f"{vocab_size}: raise it"
        )
