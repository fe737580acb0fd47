"""How many tokens an answer took."""

from __future__ import annotations

from typing import Any


def usage(prompt: int, generated: int) -> dict[str, Any]:
    """Returns OpenAI's ``CompletionUsage``.

    Args:
        prompt: Tokens of the prompts, with those that a chat template adds.
        generated: Tokens of the answers, without the one that ends them.
    """
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
