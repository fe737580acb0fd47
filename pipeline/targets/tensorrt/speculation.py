"""How TensorRT-LLM names the kinds of speculative decoding. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

SpeculationName = Literal["draft_tokens_external", "lookahead_decoding"]

SPECULATION: Mapping[SpeculationName | None, int] = {
    None: 1,
    "draft_tokens_external": 2,
    "lookahead_decoding": 8,
}
"""The number in an engine's config.json, of ``SpeculativeDecodingMode`` in
tensorrt_llm/models/modeling_utils.py, for a value of ``--speculative_decoding_mode``."""
