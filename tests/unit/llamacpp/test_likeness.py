"""Tokenizers that llama.cpp has none of, or one that makes other ids of rare texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
import gguf

from pipeline.errors import CompileError
from pipeline.targets.llamacpp.likeness import differences
from pipeline.targets.llamacpp.vocabulary import PATTERNS, Tokens, add_vocabulary
from tests.conftest import DEMO_MODEL

METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def bytes_like(name: str = "llama-bpe", **changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer of one of llama.cpp's patterns."""
    (pattern,) = (text for text, known in PATTERNS.items() if known == name)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    whole = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return {
        "model": model | changes.pop("model", {}),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, whole]},
        "added_tokens": [],
        **changes,
    }


def pieces_like(**changes: Any) -> dict[str, Any]:
    """A tokenizer with byte fallback."""
    found = bytes_like(pre_tokenizer=METASPACE, **changes)
    found["model"]["byte_fallback"] = True
    return found


def add(tokenizer: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(None, "llama")  # type: ignore[arg-type]
    add_vocabulary(writer, Tokens(tokenizer, None, [0], None), 3)


WHOLE = {"vocab": {"a": 0, "b": 1, "ab": 2, "whole": 3}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "lower case": (bytes_like(normalizer={"type": "Lowercase"}), "normalizer is .*Lowercase"),
    "another step": (
        bytes_like(
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "NFC"}, {"type": "StripAccents"}],
            }
        ),
        "normalizer is .*StripAccents",
    ),
    "space in front": (
        bytes_like(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        "puts a space in front",
    ),
    "words by merges": (bytes_like(model=WHOLE), "only by merges, and no merge makes whole"),
    "words whole": (
        bytes_like("qwen2", model=WHOLE | {"ignore_merges": True}),
        "takes words whole, and no merge makes whole",
    ),
    "ends of words": (
        bytes_like(model={"end_of_word_suffix": "</w>"}),
        'its model has end_of_word_suffix "</w>"',
    ),
    "pieces in lower case": (pieces_like(normalizer={"type": "Lowercase"}), "normalizer is"),
    "digits": (
        pieces_like() | {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
        "pre-tokenizer is .*Digits",
    ),
    "split at spaces": (
        pieces_like() | {"pre_tokenizer": METASPACE | {"split": True}},
        "pre-tokenizer is .*Metaspace",
    ),
    "spaces as they are": (pieces_like() | {"pre_tokenizer": None}, "has no ▁ for spaces"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_tokenize_otherwise_is_refused(name: str) -> None:
    tokenizer, said = REFUSED[name]
    with pytest.raises(CompileError, match=rf"(?s)no tokenizer like this model's.*{said}"):
        add(tokenizer)


def test_what_it_tokenizes_alike_is_taken() -> None:
    add(bytes_like())
    add(bytes_like(model=WHOLE | {"ignore_merges": True}))
    add(bytes_like("qwen2", model=WHOLE))
    add(pieces_like())
    add(pieces_like(normalizer=REPLACE) | {"pre_tokenizer": None})


def test_rare_texts_that_get_other_ids_are_said() -> None:
    tokens = [
        {"content": "<|r|>", "id": 3, "special": True, "lstrip": False, "rstrip": True},
        {"content": "<|n|>", "id": 4, "special": True, "lstrip": False, "rstrip": False},
    ]
    assert differences(bytes_like()) == []
    (composed,) = differences(bytes_like(normalizer={"type": "NFC"}))
    assert "decomposed characters get other ids" in composed
    (spaces,) = differences(pieces_like())
    assert "texts that begin with a space get another" in spaces
    (marks,) = differences(bytes_like("tekken"))
    assert "ends a word at a combining mark" in marks
    (beside,) = differences(bytes_like(added_tokens=tokens))
    assert "keeps the spaces beside <|r|>, which" in beside
    assert differences(json.loads((DEMO_MODEL / "tokenizer.json").read_text())) == []
