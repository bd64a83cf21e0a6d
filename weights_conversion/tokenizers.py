"""The tokenizer beside a source, written so that `transformers` opens the part's folder as one."""

import pathlib
import shutil
import sys

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
                _write_from_gguf(source, folder)
        case "llama_meta" if (source.root / "tokenizer.model").is_file():
            _from_meta(source.root / "tokenizer.model", folder)
        case _:
            for file in source.tokenizer_files():
                shutil.copyfile(file, folder / file.name)


def _write_from_gguf(source: Source, folder: pathlib.Path) -> None:
    """The weights are of use without their tokenizer, for a run may name another."""
    try:
        tokenizer = _from_gguf(source)
    except Exception as error:  # the library raises whatever an unknown tokenizer leads it to
        reason = first_line(error)
        print(f"warning: {source.tensors.files[0]}: its tokenizer was not read ({reason})", file=sys.stderr)
        return
    tokenizer.save_pretrained(folder)


def _from_gguf(source: Source):
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    file = source.tensors.files[0]
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if source.config.get("tokenizer.ggml.pre") == "smollm":
        # The reader forgets that SmolLM2 takes digits one by one.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return tokenizer


def _from_meta(file: pathlib.Path, folder: pathlib.Path) -> None:
    """Llama 3's ranks of byte sequences; an older SentencePiece model is copied as it is."""
    if b" " not in file.open("rb").readline():
        shutil.copyfile(file, folder / file.name)
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
