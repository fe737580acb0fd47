"""The tokenizer of a GGUF file, from the one that the pipeline uses.

llama.cpp splits texts with expressions that are written into it, under a name. A wrong name loads
and gives other ids, so a pattern that is none of those known here is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from pipeline.targets.llamacpp.likeness import (
    SPACE,
    refuse_other_bytes,
    refuse_other_pieces,
    refused,
    steps,
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}\p{{N}}{_REST}": "qwen2",
    _TEKKEN: "tekken",
}
"""What a byte-level BPE tokenizer splits with, and ``tokenizer.ggml.pre`` of the same."""
GPT_2 = "gpt-2"
_NO_MERGE = -1e6


@dataclass(frozen=True)
class Tokens:
    """What a file says of texts.

    Attributes:
        tokenizer: The content of ``tokenizer.json``.
        bos: The token that begins a text.
        ends: The tokens that end one; llama.cpp stops at the first two.
        template: The chat template.
    """

    tokenizer: dict[str, Any]
    bos: int | None
    ends: list[int]
    template: str | None


def add_vocabulary(writer: Any, given: Tokens, vocab_size: int) -> None:
    """Adds the tokenizer's keys to a file.

    Args:
        writer: A ``gguf.GGUFWriter``.
        given: What the file says of texts.
        vocab_size: Rows of the embedding.

    Raises:
        CompileError: llama.cpp has no tokenizer like it.
    """
    tokenizer, bos, ends = given.tokenizer, given.bos, given.ends
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise refused(f"its model is {model.get('type')}, and only BPE is written")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    tokens, kinds = _tokens(tokenizer, vocab_size)
    if model.get("byte_fallback"):
        refuse_other_pieces(tokenizer)
        _add_sentencepiece(writer, tokenizer, tokens, kinds, merges)
    else:
        splitting = pre_tokenizer(tokenizer)
        refuse_other_bytes(tokenizer, splitting)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting)
        writer.add_token_merges(merges)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    writer.add_add_bos_token(bos is not None and _begins_with(tokenizer, tokens[bos]))
    writer.add_add_eos_token(False)
    if given.template:
        writer.add_chat_template(given.template)


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """Finds llama.cpp's name of how a byte-level tokenizer splits a text.

    Raises:
        CompileError: There is none.
    """
    spec = tokenizer.get("pre_tokenizer") or {}
    found = steps(spec, "pretokenizers")
    kinds = [step.get("type") for step in found]
    if kinds == ["ByteLevel"] and found[0].get("use_regex", True):
        return GPT_2
    splits = [step for step in found if step.get("type") == "Split"]
    if kinds == ["Split", "ByteLevel"] and not found[1].get("use_regex", True):
        pattern = splits[0]["pattern"].get("Regex")
        isolated = splits[0].get("behavior") == "Isolated" and not splits[0].get("invert")
        if isolated and pattern in PATTERNS:
            return PATTERNS[pattern]
    raise refused(f"its pre-tokenizer is {json.dumps(spec, ensure_ascii=False)[:300]}")


def _tokens(tokenizer: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[TokenType]]:
    """Texts and kinds of all ids, also of those that no token has, as behind Qwen's last one."""
    model = tokenizer["model"]
    added = {token["id"]: token for token in tokenizer.get("added_tokens", ())}
    texts = {number: text for text, number in model["vocab"].items()}
    tokens, kinds = [], []
    for number in range(vocab_size):
        if number in added:
            tokens.append(added[number]["content"])
            special = added[number]["special"]
            kinds.append(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        elif number in texts:
            text = texts[number]
            is_byte = model.get("byte_fallback") and text.startswith("<0x") and len(text) == 6
            tokens.append(text)
            kinds.append(TokenType.BYTE if is_byte else TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{number}]")
            kinds.append(TokenType.UNUSED)
    return tokens, kinds


def _add_sentencepiece(
    writer: Any,
    tokenizer: Mapping[str, Any],
    tokens: list[str],
    kinds: list[TokenType],
    merges: list[str],
) -> None:
    """SentencePiece's BPE: llama.cpp merges by scores, which are the ranks of our merges."""
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), -float(rank))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([ranks.get(text, _NO_MERGE) for text in tokens])
    model = tokenizer["model"]
    if model.get("unk_token") is not None:
        unknown = model["vocab"][model["unk_token"]]
        kinds[unknown] = TokenType.UNKNOWN
        writer.add_unk_token_id(unknown)
    writer.add_add_space_prefix(_prepends(tokenizer))


def _prepends(tokenizer: Mapping[str, Any]) -> bool:
    normalizers = steps(tokenizer.get("normalizer"), "normalizers")
    if any(step == {"type": "Prepend", "prepend": SPACE} for step in normalizers):
        return True
    return any(
        step.get("prepend_scheme") in ("first", "always")
        for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    )


def _begins_with(tokenizer: Mapping[str, Any], token: str) -> bool:
    """Whether the post-processor puts a token in front of every text."""
    for step in steps(tokenizer.get("post_processor"), "processors"):
        if step.get("type") == "TemplateProcessing":
            single = step.get("single") or [{}]
            return bool(single[0].get("SpecialToken", {}).get("id") == token)
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            return bool(step.get("cls", [None])[0] == token)
    return False
