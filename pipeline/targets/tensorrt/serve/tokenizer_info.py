"""``xgrammar_tokenizer_info.json``: what the C++ backend's guided decoding knows of the tokenizer.

The keys are those of upstream's ``examples/generate_xgrammar_tokenizer_info.py``, and the backend
fails to load without one of them (``getGuidedDecodingConfigFromParams`` in
inflight_batcher_llm/src/model_instance_state.cc). Three things differ from the script's on purpose:

* ``encoded_vocab`` has a place for every id. The backend takes the place for the id, and the script
  closes gaps.
* A special token has no text there. xgrammar would take ``<|im_start|>`` for ten characters that a
  string may hold, and the answer, which has no special tokens, would lack them.
* ``stop_token_ids`` are all ids that end a text, not the tokenizer's eos alone, which need not be
  the one that ends a turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.reading.files import read_utf8
from pipeline.reading.json_text import read_json

FILE_NAME = "xgrammar_tokenizer_info.json"
# Of a decoder, one of which xgrammar knows the bytes of a token by
# (HFTokenizerAnalyzer::DetectVocabType in cpp/tokenizer_info.cc of xgrammar).
KNOWN_DECODERS = ("ByteLevel", "ByteFallback")


def tokenizer_info(tokenizer_dir: Path, *, vocab_size: int, where: str) -> bytes:
    """Makes the file's content, JSON in UTF-8, from the tokenizer that is served.

    Args:
        tokenizer_dir: Holds ``tokenizer.json`` and ``generation_config.json``.
        vocab_size: Tokens of the engine; those that only the tokenizer has are left out.
        where: The recipe's place that asks for guided decoding.

    Raises:
        UnsupportedError: No token ends a text, or xgrammar cannot tell the bytes of a token.
    """
    from tokenizers import Tokenizer

    text = read_utf8(tokenizer_dir / "tokenizer.json")
    ends = [id_ for id_ in _end_ids(tokenizer_dir) if id_ < vocab_size]
    if not ends:
        raise UnsupportedError(
            "guided decoding needs a token that ends a text",
            where=where,
            why="The model names none that the engine has, so a complete text could not end",
            fix="Set serve.guided_decoding to null, or name eos_token_id in generation_config.json",
        )
    kinds = set(_kinds(json.loads(text).get("decoder")))
    if kinds.isdisjoint(KNOWN_DECODERS):
        raise UnsupportedError(
            "guided decoding does not know this tokenizer",
            where=where,
            why="xgrammar takes a token's bytes from a decoder with "
            f"{' or '.join(KNOWN_DECODERS)}; that of tokenizer.json has "
            f"{', '.join(sorted(kinds)) or 'none'}",
            fix="Set serve.guided_decoding to null",
        )
    tokenizer = Tokenizer.from_str(text)
    special = {id_ for id_, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    tokens = {id_: token for token, id_ in tokenizer.get_vocab().items() if id_ not in special}
    size = min(max(tokenizer.get_vocab().values()) + 1, vocab_size)
    content = {
        "encoded_vocab": [tokens.get(id_, "") for id_ in range(size)],
        "tokenizer_str": text,
        "stop_token_ids": ends,
    }
    return f"{json.dumps(content, ensure_ascii=False)}\n".encode()


def _end_ids(tokenizer_dir: Path) -> list[int]:
    """Those that the other models of the repository read, in their order."""
    content = read_json(tokenizer_dir / "generation_config.json")
    return [int(id_) for id_ in content.get("eos_token_id", [])]


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    if decoder is None:
        return
    if decoder.get("type") != "Sequence":
        yield str(decoder.get("type"))
    for part in decoder.get("decoders", []):
        yield from _kinds(part)
