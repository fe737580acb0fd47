"""Snapshots whose tokenizer.json alone is not the tokenizer that transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
SAMPLE = ["Hello there, world! This is a small text that is here to be merged. it's don't 123 "] * 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> Tokenizer:
    """Byte-level BPE, as Llama 3, Qwen and DeepSeek have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.add_special_tokens([BOS, EOS, "<|user|>", "<|assistant|>"])
    return tokenizer


def metaspace(*, legacy: bool) -> Tokenizer:
    """Llama 2's kind: a mark for each space, one in front, other characters as bytes.

    Args:
        legacy: The mark in front by a normalizer, as old conversions have it; by a pre-tokenizer,
            in front of the first piece only, as newer ones do.
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += ["t", "h", "e", "a", "b", "l", "o", "H", "\u2581t", "th", "\u2581th", "\u2581the"]
    merges = [("\u2581", "t"), ("t", "h"), ("\u2581t", "h"), ("\u2581th", "e")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **files: Any) -> None:
    """Writes tokenizer.json, and JSON files by their names without the suffix."""
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _config(**values: Any) -> dict[str, Any]:
    named = {"bos_token": BOS, "eos_token": EOS}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, **values}


def bos_of_the_class(folder: Path) -> None:
    """DeepSeek-R1-Distill-Qwen: the file adds nothing, the class puts bos in front."""
    token = {"__type": "AddedToken", "content": BOS, "normalized": True}
    token |= {"lstrip": False, "rstrip": False, "single_word": False}
    config = _config(tokenizer_class="LlamaTokenizerFast", bos_token=token, legacy=True)
    config |= {"add_bos_token": True, "add_eos_token": False, "unk_token": None}
    save(folder, byte_level(), tokenizer_config=config)


def bos_of_the_template(folder: Path) -> None:
    """The reverse: the file adds bos, the class does not, because the chat template does."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    config = _config(tokenizer_class="LlamaTokenizerFast", unk_token=None)
    config |= {"add_bos_token": False, "chat_template": CHAT_TEMPLATE, "legacy": True}
    save(folder, tokenizer, tokenizer_config=config)


def bos_of_the_map(folder: Path) -> None:
    """special_tokens_map.json names another bos than the files beside it."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    config = _config(tokenizer_class="LlamaTokenizerFast", legacy=True, unk_token=None)
    token = {"content": "<|user|>", "lstrip": False, "normalized": False, "rstrip": False}
    special = {"bos_token": {**token, "single_word": False}, "pad_token": "<|assistant|>"}
    save(folder, tokenizer, tokenizer_config=config, special_tokens_map=special)


def flags_of_the_config(folder: Path) -> None:
    """tokenizer_config.json changes what tokenizer.json says of its added tokens."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(f"<{name}>", normalized=True) for name in "abcdef"])
    tokenizer.add_special_tokens(["<once>"])
    tokenizer.normalizer = normalizers.Lowercase()
    plain = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
    changes: dict[str, dict[str, bool]] = {
        "<a>": {"special": True},
        "<b>": {"lstrip": True},
        "<c>": {"rstrip": True},
        "<d>": {"single_word": True},
        "<e>": {"normalized": False},
        "<f>": {"special": True, "normalized": False, "lstrip": True, "rstrip": True},
        "<once>": {"special": False, "normalized": False},
    }
    decoder = {
        str(tokenizer.token_to_id(name)): {"content": name, **plain, "special": False, **change}
        for name, change in changes.items()
    }
    for name in (BOS, EOS, "<|user|>", "<|assistant|>"):
        entry = {"content": name, **plain, "normalized": False, "special": True}
        decoder[str(tokenizer.token_to_id(name))] = entry
    save(folder, tokenizer, tokenizer_config=_config(added_tokens_decoder=decoder))


def tokens_beside_the_file(folder: Path) -> None:
    """Tokens that a fine-tune added without writing them into tokenizer.json."""
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    save(
        folder,
        tokenizer,
        tokenizer_config=_config(additional_special_tokens=["<call>"]),
        added_tokens={"<call>": size, "<plain>": size + 1},
    )


def llama_2(folder: Path) -> None:
    """The file adds no bos, the class of the config does."""
    _llama_2(folder, legacy=True)


def llama_2_not_legacy(folder: Path) -> None:
    """Likewise, with the mark in front of the first piece only."""
    _llama_2(folder, legacy=False)


def _llama_2(folder: Path, *, legacy: bool) -> None:
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "unk_token": "<unk>"}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": False}
    save(folder, metaspace(legacy=legacy), tokenizer_config=config)


def llama_2_normalized(folder: Path) -> None:
    """Mistral's and Vicuna's kind: the config says of special tokens that they are normalized.

    A mark is put in front of each then, and ``</s>`` within a text would no longer be found.
    """
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {
        str(index): {"content": token, "normalized": True, **plain}
        for index, token in enumerate(("<unk>", "<s>", "</s>"))
    }
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": tokens}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = metaspace(legacy=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    save(folder, tokenizer, tokenizer_config=config)


def special_tokens_as_text(folder: Path) -> None:
    """``split_special_tokens``, for which tokenizer.json has no place."""
    save(folder, byte_level(), tokenizer_config=_config(split_special_tokens=True))


def space_in_front(folder: Path) -> None:
    """``add_prefix_space`` of a class that changes its file's pre-tokenizer."""
    save(folder, byte_level(), tokenizer_config=_config(add_prefix_space=True))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    layout.__name__: layout
    for layout in (
        bos_of_the_class,
        bos_of_the_template,
        bos_of_the_map,
        flags_of_the_config,
        tokens_beside_the_file,
        llama_2,
        llama_2_not_legacy,
        special_tokens_as_text,
        space_in_front,
    )
}
