"""The ids that end a text of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_end_ids(tokenizer_dir: Path) -> tuple[int, ...]:
    """Every end id of a tokenizer directory; empty when the model names none.

    ``generation_config.json`` lists them; where it does not, ``tokenizer_config.json`` names one
    token.

    Raises:
        ValueError: A file is damaged.
    """
    ids = _read(tokenizer_dir / "generation_config.json").get("eos_token_id")
    if isinstance(ids, list):
        return tuple(int(token) for token in ids)
    if ids is not None:
        return (int(ids),)
    token = _read(tokenizer_dir / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    for added in _read(tokenizer_dir / "tokenizer.json").get("added_tokens", ()):
        if added["content"] == content:
            return (int(added["id"]),)
    return ()


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
