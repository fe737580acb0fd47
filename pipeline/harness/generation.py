"""What a task of lm-eval wants generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

DEFAULT_TOKENS = 256
"""New tokens where a task does not say, as lm-eval's Hugging Face model has it."""


@dataclass(frozen=True)
class Wanted:
    """One text.

    Attributes:
        context: What it goes on with.
        until: Texts that end it, and are no part of it.
        tokens: New tokens, at most.
        samples: Whether tokens are drawn rather than the most likely ones.
        temperature: Of the drawing.
        top_p: Likewise; None does not limit it.
        top_k: Likewise.
    """

    context: str
    until: list[str]
    tokens: int
    samples: bool
    temperature: float
    top_p: float | None
    top_k: int | None


def wanted(arguments: tuple[str, dict[str, Any]]) -> Wanted:
    """Reads a request's context and its ``generation_kwargs``, by lm-eval's own functions."""
    context, options = arguments
    read = normalize_gen_kwargs(options, DEFAULT_TOKENS)
    temperature = float(read.get("temperature") or 0.0)
    return Wanted(
        context=context,
        until=[word for word in handle_stop_sequences(read.get("until"), eos=None) if word],
        tokens=int(read["max_gen_toks"]),
        samples=bool(read.get("do_sample")) and temperature > 0,
        temperature=temperature,
        top_p=read.get("top_p"),
        top_k=read.get("top_k"),
    )
