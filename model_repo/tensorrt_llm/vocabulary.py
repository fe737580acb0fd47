"""What each token adds to a text, as bytes: what a grammar is matched against.

A grammar is followed token by token, so the bytes are those of a token in the middle of a text,
where a space in front of a word is kept. Special tokens add nothing, and no grammar allows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_texts(path: Path, vocab_size: int, end_ids: Iterable[int]) -> list[bytes]:
    """Returns the bytes of every token id of the engine, empty for those that have no text.

    Args:
        path: A ``tokenizer.json``.
        vocab_size: Tokens of the engine, which may be more than the tokenizer's.
        end_ids: Ids that end a text, special or not; they have none.

    Raises:
        ValueError: The tokenizer's decoder makes a token's text depend on its neighbours.
        OSError: The file cannot be read.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    to_bytes = _decoder(content, path)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    silent = {
        id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
    } | set(end_ids)
    tokens = ((id_, tokenizer.id_to_token(id_)) for id_ in range(vocab_size))
    return [b"" if token is None or id_ in silent else to_bytes(token) for id_, token in tokens]


def _decoder(content: dict[str, Any], path: Path) -> Callable[[str], bytes]:
    steps = _steps(content.get("decoder") or {})
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    if not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise ValueError(
            f"{path}: guided decoding knows byte-level and SentencePiece tokenizers; this one's "
            f"decoder is {', '.join(sorted(map(str, kinds)))}"
        )
    replaced = [
        (step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"
    ]
    replaced += [
        (step.get("replacement", "\u2581"), " ") for step in steps if step["type"] == "Metaspace"
    ]
    return lambda token: _pieces(token, replaced, "ByteFallback" in kinds)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder.get("type") == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _pieces(token: str, replaced: list[tuple[str, str]], byte_fallback: bool) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token) if byte_fallback else None
    if byte:
        return bytes((int(byte[1], 16),))
    for old, new in replaced:
        token = token.replace(old, new)
    return token.encode()


def _byte_level(token: str) -> bytes:
    # An added token is not spelt in byte characters; the decoder takes it as it is (byte_level.rs
    # of tokenizers).
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode()


def _byte_characters() -> dict[str, int]:
    """Returns GPT-2's characters for bytes: themselves if printable, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


_BYTES = _byte_characters()
