"""Trains the tokenizer of emoji in motion and writes it beside this file.

    python -m jepa_jax.data.emoji_motion.tokenizer.build_tokenizer [--out=DIR]

It is a byte-level BPE, so it takes any text; every word of the data's own texts is one token. The
result is always the same, and `transformers.AutoTokenizer.from_pretrained(DIR)` opens it offline.
"""

import argparse
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jepa_jax.data.emoji_motion import texts

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
VOCAB_SIZE = 1024
MAX_LENGTH = 512


def train() -> tokenizers.Tokenizer:
    """Returns the tokenizer: ids 0, 1, 2 are pad, bos, eos; texts are wrapped in the last two."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # The added space makes a word the same token at the start of a text as inside it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Each word once: common words would otherwise take the merges that rare names need.
    words = sorted({word for text in texts.vocabulary() for word in text.split()})
    tokenizer.train_from_iterator(words, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", pair=f"{BOS} $A $B {EOS}", special_tokens=ends
    )
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    out = parser.parse_args().out
    tokenizer = train()
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "padding_side": "right",
        "truncation_side": "right",
        "model_max_length": MAX_LENGTH,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
