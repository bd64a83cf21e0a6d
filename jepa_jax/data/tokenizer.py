"""Tokenizers, loaded through `transformers`: the demo's own, Llama's, Gemma's."""

import functools
import pathlib
import threading

import numpy as np

from jepa_jax.config import Config

# Names that stand for files shipped with the package.
SHIPPED = {"emoji_motion": pathlib.Path(__file__).parent / "emoji_motion" / "tokenizer"}


class Tokenizer:
    """Texts to right-padded ids.

    Args:
      name: a shipped name, a local folder, or a name on the Hugging Face hub.
      prefix: put before every text.

    Raises:
      ValueError: there is no such tokenizer, or it cannot be had.
    """

    def __init__(self, name: str, prefix: str = ""):
        from transformers import AutoTokenizer  # slow to import, and only needed here

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED.get(name, name)))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer {name!r} cannot be loaded: give {', '.join(SHIPPED)}, a local folder, or "
                f"a hub name you have access to ({str(error).splitlines()[0]})"
            ) from error
        # Llama's tokenizer has no padding token. Padding is masked everywhere, so any id serves.
        self.pad_id = self._tokenizer.pad_token_id or 0
        self.prefix = prefix
        # A fast tokenizer keeps the length to cut at as a state of its own, which threads would share.
        self._lock = threading.Lock()
        # Texts repeat: most of them are looked up, not encoded again.
        self._row = functools.lru_cache(maxsize=2**16)(self._pad)

    def __len__(self) -> int:
        """Ids run from 0 to this, exclusive."""
        return len(self._tokenizer)

    def _encode(self, text: str, length: int | None) -> tuple[int, ...]:
        options = {} if length is None else {"truncation": True, "max_length": length}
        with self._lock:
            return tuple(self._tokenizer(self.prefix + text, **options)["input_ids"])

    def count(self, text: str) -> int:
        """Tokens of a text, special ones included."""
        return len(self._encode(text, None))

    def __call__(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [L] int32 and mask [L] bool, cut or right-padded to `length` positions."""
        ids, mask = self._row(text, length)
        return ids.copy(), mask.copy()

    def _pad(self, text: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._encode(text, length)
        ids = np.full(length, self.pad_id, np.int32)
        ids[: len(found)] = found
        return ids, np.arange(length) < len(found)

    def batch(self, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids [B, L] int32 and mask [B, L] bool."""
        rows = [self._row(text, length) for text in texts]
        return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def load_tokenizers(config: Config) -> tuple[Tokenizer, Tokenizer]:
    """The query's and the target's tokenizer.

    Raises:
      ValueError: a tokenizer has more ids than its model's table has rows.
    """
    data, model = config.data, config.model
    query = Tokenizer(data.query_tokenizer)
    target = Tokenizer(data.target_tokenizer, prefix=data.target_prefix)
    for tokenizer, name, part, vocab_size in (
        (query, data.query_tokenizer, "predictor", model.predictor.vocab_size),
        (target, data.target_tokenizer, "y_encoder", model.y_encoder.vocab_size),
    ):
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"tokenizer {name!r} has {len(tokenizer)} ids, but model.{part}.vocab_size="
                f"{vocab_size}: raise it"
            )
    return query, target
