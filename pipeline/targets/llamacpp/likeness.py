"""Where llama.cpp makes other ids of a text than the tokenizer that a GGUF file is written from.

A file has room for tokens, merges and the name of a splitting; everything else that a
``tokenizer.json`` may do is built into llama.cpp or missing there. What would change ordinary texts
is refused, and what changes rare ones is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import CompileError

SPACE = "▁"
_TAKES_WHOLE_WORDS = ("llama-bpe", "tekken")
"""Splittings whose words llama.cpp looks up whole before it merges: ``ignore_merges`` of its
``llama-vocab.cpp``."""
_NAMED = 3


def refused(why: str) -> CompileError:
    """Makes the error of a tokenizer that no GGUF file describes.

    Args:
        why: What is different, as the end of a sentence.
    """
    return CompileError(
        "llama.cpp has no tokenizer like this model's",
        where="tokenizer.json",
        why=f"A GGUF file names one of the tokenizers that are built into llama.cpp; {why}",
        fix="Use compile.target openvino or tensorrt, which run the tokenizer itself",
    )


def steps(spec: Mapping[str, Any] | None, plural: str) -> list[Mapping[str, Any]]:
    """Lists the steps of a normalizer, pre-tokenizer or post-processor.

    Args:
        spec: Its part of ``tokenizer.json``.
        plural: The key of a sequence's steps, such as ``normalizers``.
    """
    if not spec:
        return []
    return list(spec[plural]) if spec.get("type") == "Sequence" else [spec]


def refuse_other_bytes(tokenizer: Mapping[str, Any], splitting: str) -> None:
    """Refuses a byte-level tokenizer that does more to a text than split and merge it.

    Args:
        tokenizer: The content of ``tokenizer.json``.
        splitting: llama.cpp's name of its pattern.

    Raises:
        CompileError: Ordinary texts would get other ids.
    """
    _refuse_model(tokenizer["model"])
    for step in steps(tokenizer.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            raise refused(f"its normalizer is {_short(step)}")
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("add_prefix_space"):
            raise refused("its pre-tokenizer puts a space in front of a text")
    whole = bool(tokenizer["model"].get("ignore_merges"))
    if whole != (splitting in _TAKES_WHOLE_WORDS) and (alone := _without_merge(tokenizer)):
        how = "whole" if whole else "only by merges"
        raise refused(f"it takes words {how}, and no merge makes {_listed(alone)}")


def refuse_other_pieces(tokenizer: Mapping[str, Any]) -> None:
    """Refuses a tokenizer with byte fallback that is not SentencePiece's as Llama 2 has it.

    Raises:
        CompileError: Ordinary texts would get other ids.
    """
    _refuse_model(tokenizer["model"])
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = {"type": "Prepend", "prepend": SPACE}
    normalizers = steps(tokenizer.get("normalizer"), "normalizers")
    for step in normalizers:
        if step not in (replaced, prepended):
            raise refused(f"its normalizer is {_short(step)}")
    splits = steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    for step in splits:
        if step.get("type") != "Metaspace" or step.get("split", True):
            raise refused(f"its pre-tokenizer is {_short(step)}")
    if replaced not in normalizers and not splits:
        raise refused(f"it has no {SPACE} for spaces")


def differences(tokenizer: Mapping[str, Any]) -> list[str]:
    """Says which rare texts get other ids in llama.cpp, a sentence each without its full stop.

    Args:
        tokenizer: The content of ``tokenizer.json``, of a kind that is not refused.
    """
    return list(_differences(tokenizer))


def _differences(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    if any(step["type"] == "NFC" for step in steps(tokenizer.get("normalizer"), "normalizers")):
        yield "llama.cpp does not compose Unicode (NFC): decomposed characters get other ids"
    for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") in ("first", "always"):
            yield (
                "llama.cpp puts a space before every text and behind every special token, also "
                "where the tokenizer adds none: texts that begin with a space get another"
            )
        if r"\p{M}" in (step.get("pattern") or {}).get("Regex", ""):
            yield (
                "llama.cpp's Tekken knows capitals of ASCII alone and ends a word at a combining "
                "mark: such words get other ids"
            )
    stripping = [
        token["content"]
        for token in tokenizer.get("added_tokens", ())
        if token.get("lstrip") or token.get("rstrip")
    ]
    if stripping:
        yield f"llama.cpp keeps the spaces beside {_listed(stripping)}, which take them in"


def _refuse_model(model: Mapping[str, Any]) -> None:
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise refused(f"its model has {key} {json.dumps(model[key], ensure_ascii=False)}")


def _without_merge(tokenizer: Mapping[str, Any]) -> list[str]:
    """Tokens of more than a character that only a whole word can be."""
    model = tokenizer["model"]
    made = {(m if isinstance(m, str) else " ".join(m)).replace(" ", "", 1) for m in model["merges"]}
    added = {token["content"] for token in tokenizer.get("added_tokens", ())}
    known = made | added
    return [text for text in model["vocab"] if len(text) > 1 and text not in known]


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def _short(spec: Mapping[str, Any]) -> str:
    return json.dumps(spec, ensure_ascii=False)[:300]
