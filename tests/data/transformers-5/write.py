"""Writes the files beside it: ``python write.py``, in an environment with transformers 5.

The tokenizers are read by transformers 4 in the tests, which hold the ids and texts recorded here
against what is served.
"""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).parent
TEXTS = [
    "Hello there",
    " two  spaces ",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a <|im_end|> b<|im_end|>c",
    "a <tool> b <TOOL>",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "<|begin|> x <|end|>",
]


def byte_level() -> Tokenizer:
    """Byte-level BPE with a bos in front, one special token for chats and one plain added token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = [("H", "e"), ("l", "l"), ("He", "ll"), ("t", "h"), ("\u0120", "th")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    bos = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[bos]
    )
    return tokenizer


def write(name: str, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Saves a tokenizer, opens what was saved, and records what that gives."""
    folder = HERE / name
    tokenizer.save_pretrained(folder)
    opened = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [
        {"text": text, "ids": ids, "decoded": opened.decode(ids, skip_special_tokens=True)}
        for text in TEXTS
        for ids in [opened.encode(text)]
    ]
    record = {
        "transformers": transformers.__version__,
        "class": type(opened).__name__,
        "rows": rows,
    }
    (folder / "expected.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Two layouts: the general class, and a model's own class with a list of further tokens."""
    named = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    chat = ["<|im_start|>", "<|im_end|>"]
    general = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), extra_special_tokens=chat, **named
    )
    write("general", general)
    assert isinstance(byte_level().model, models.BPE)
    state = json.loads(byte_level().to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    qwen = transformers.Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=merges,
        unk_token=None,
        pad_token="<|end|>",
        extra_special_tokens=chat,
        bos_token=None,
        eos_token="<|im_end|>",
    )
    write("qwen2", qwen)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("\u2581", "a", "b", "H", "i", "\u2581a", "Hi"):
        words[piece] = len(words)
    llama = transformers.LlamaTokenizer(
        vocab=words,
        merges=[("\u2581", "a"), ("H", "i")],
        extra_special_tokens=chat,
        add_bos_token=False,
    )
    write("llama", llama)


if __name__ == "__main__":
    main()
