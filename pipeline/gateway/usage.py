"""How many tokens an answer took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.gateway.engine import Input
    from pipeline.gateway.schema import Sampling

COUNTS_REUSE = "return_perf_metrics"
"""The input of ``tensorrt_llm`` with which it says how many KV blocks of a prompt it had."""


def counting_inputs(body: Sampling, block: int | None) -> dict[str, Input]:
    """Returns what the engine is asked to count for a request's usage.

    Args:
        body: A stream that says no usage needs no count, which comes with each of its responses.
        block: Tokens of a KV block; None where no prompt finds any, or that is not known.
    """
    said = not body.stream or body.counts_tokens
    return {COUNTS_REUSE: True} if said and block else {}


def usage(
    prompt: int, generated: int, reused_blocks: int | None = None, block: int | None = None
) -> dict[str, Any]:
    """Returns OpenAI's ``CompletionUsage``.

    Args:
        prompt: Tokens of the prompts, with those that a chat template adds.
        generated: Tokens of the answers, without the one that ends them.
        reused_blocks: KV blocks of the prompts that the engine had; None where it does not say.
        block: Tokens of such a block.
    """
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }
    if reused_blocks is not None and block:
        counted["prompt_tokens_details"] = {"cached_tokens": min(reused_blocks * block, prompt)}
    return counted
