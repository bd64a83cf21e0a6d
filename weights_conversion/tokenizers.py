"""The tokenizer beside a source, written so that `transformers` opens the part's folder as one."""

import pathlib
import shutil
import sys
from collections.abc import Callable

from jepa_jax.data.tokenizer import no_sentencepiece
from jepa_jax.errors import first_line
from weights_conversion.sources import Source

# Llama 3's special tokens follow its 128,000 ordinary ones, 256 in all; those without a use are reserved.
_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    4: "finetune_right_pad_id",
    6: "start_header_id",
    7: "end_header_id",
    8: "eom_id",
    9: "eot_id",
    10: "python_tag",
}
_SPECIAL = 256


def write_tokenizer(source: Source, folder: pathlib.Path) -> None:
    """Write the source's tokenizer into a part's folder, where the source has one."""
    match source.kind:
        case "open_vljepa" | "vjepa2" | "vjepa2_meta":
            return
        case "llama_gguf" | "gemma3_gguf":
            if "tokenizer.ggml.model" in source.config:
                _write(lambda: _from_gguf(source), source.tensors.files[0], folder)
        case "llama_meta" if (source.root / "tokenizer.model").is_file():
            _from_meta(source.root / "tokenizer.model", folder)
        case _:
            for file in source.tokenizer_files():
                shutil.copyfile(file, folder / file.name)


def _write(read: Callable, file: pathlib.Path, folder: pathlib.Path) -> None:
    """The weights are of use without their tokenizer, for a run may name another."""
    try:
        tokenizer = read()
    except Exception as error:  # the library raises whatever an unknown tokenizer leads it to
        print(f"warning: {file}: its tokenizer was not read ({first_line(error)})", file=sys.stderr)
        return
    tokenizer.save_pretrained(folder)


def _from_gguf(source: Source):
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    file = source.tensors.files[0]
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    if source.config.get("tokenizer.ggml.pre") == "smollm":
        # The reader forgets that SmolLM2 takes digits one by one.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return tokenizer


def _from_sentencepiece(file: pathlib.Path):
    """Llama 2's. The model alone would be read without the token that begins a text, which Meta's code puts
    there."""
    if missing := no_sentencepiece():
        raise ImportError(missing)
    from tokenizers import processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False).backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _from_meta(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Llama 3's ranks of byte sequences, or an older SentencePiece model."""
    if b" " not in file.open("rb").readline():
        _write(lambda: _from_sentencepiece(file), file, folder)
        return
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    unused = iter(range(_SPECIAL))
    special = [
        f"<|{_NAMED[i]}|>" if i in _NAMED else f"<|reserved_special_token_{next(unused)}|>"
        for i in range(_SPECIAL)
    ]
    tokenizer = TikTokenConverter(str(file), extra_special_tokens=special).converted()
    begin = special[0]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{begin} $A",
                pair=f"{begin} $A {begin}:1 $B:1",
                special_tokens=[(begin, tokenizer.token_to_id(begin))],
            ),
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=special[1], clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
