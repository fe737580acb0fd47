"""What the engine behind this repository takes, read from its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineLimits:
    """Limits of an engine; None is not known.

    Attributes:
        vocab_size: Its tokens. A tokenizer may have fewer (Qwen2.5: 151665 of 152064) or more.
        max_input_len: Tokens of the longest prompt it was compiled for.
        max_seq_len: Prompt plus generated tokens, at most.
        max_beam_width: Beams of one request, at most.
    """

    vocab_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_beam_width: int | None = None

    @classmethod
    def read(cls, path: Path) -> EngineLimits:
        """From an engine's config.json; nothing is known where the engine is kept elsewhere."""
        if not path.is_file():
            return cls()
        engine = json.loads(path.read_text(encoding="utf-8"))
        model, build = engine.get("pretrained_config", {}), engine.get("build_config", {})
        length = _number(build, "max_seq_len")
        # Each step of a drafting engine needs room for its draft (llmRequest.cpp, validate).
        draft = _number(build, "max_draft_len") or 0
        return cls(
            vocab_size=_number(model, "vocab_size"),
            max_input_len=_number(build, "max_input_len"),
            max_seq_len=None if length is None else length - draft,
            max_beam_width=_number(build, "max_beam_width"),
        )


def _number(section: dict[str, object], name: str) -> int | None:
    value = section.get(name)
    return int(value) if isinstance(value, int) else None
