"""The ids that end a text of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GENERATION = "generation_config.json"


def read_end_ids(tokenizer_dir: Path, vocab_size: int | None = None) -> tuple[int, ...]:
    """Every end id of a tokenizer directory; empty when the model names none.

    ``generation_config.json`` of a repository that the pipeline assembled lists all of them, the
    one that ends a chat turn first. A directory as Hugging Face has it may lack the list, and then
    ``tokenizer_config.json`` names one token.

    Args:
        tokenizer_dir: The directory.
        vocab_size: Tokens of the engine; an id beyond them would only show in its answers.

    Raises:
        ValueError: A file is damaged, or an id is not one.
    """
    named = _read(tokenizer_dir / GENERATION).get("eos_token_id")
    if named is None:
        return _eos_token(tokenizer_dir)
    ids = named if isinstance(named, list) else [named]
    for id_ in ids:
        if type(id_) is not int or id_ < 0 or (vocab_size is not None and id_ >= vocab_size):
            known = f"; this model has the tokens 0 to {vocab_size - 1}" if vocab_size else ""
            raise ValueError(
                f"{tokenizer_dir / GENERATION}: eos_token_id has {json.dumps(id_)}, which is no "
                f"token id{known}"
            )
    return tuple(ids)


def _eos_token(tokenizer_dir: Path) -> tuple[int, ...]:
    token = _read(tokenizer_dir / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    for added in _read(tokenizer_dir / "tokenizer.json").get("added_tokens", ()):
        if added["content"] == content:
            return (int(added["id"]),)
    return ()


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
