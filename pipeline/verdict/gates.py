"""The quality gates: what was measured against what the recipe and the dtype allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.recipe.schema import Gates


def broken_gates(gates: Gates, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Finds the gates that the written files break.

    Args:
        gates: The recipe's limits.
        facts: What was measured; None is a number that was not finite.

    Yields:
        The gate's key below ``evaluate.gates``, and what is wrong in words.
    """
    limit, measured = gates.perplexity_increase, facts["perplexity_increase"]
    if limit is not None and not _at_most(measured, limit):
        rise = f"{_shown(measured, '.2%')} ({_change(facts, facts['perplexity'])})"
        yield "perplexity_increase", f"perplexity rose by {rise}, allowed is {limit:.2%}"
    limit, measured = gates.top1_agreement, facts["top1_agreement"]
    if limit is not None and (measured is None or not measured >= limit):
        share = _shown(measured, ".4f")
        yield (
            "top1_agreement",
            f"top-1 agreement is {share}, required is at least {limit:.4f}",
        )
    limit, measured = gates.kl_divergence, facts["kl_divergence"]
    if limit is not None and not _at_most(measured, limit):
        divergence = f"{_shown(measured, '.4g')} nats per token"
        yield "kl_divergence", f"KL divergence is {divergence}, allowed is {limit:.4g}"


def broken_by_engine(gates: Gates, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Finds the gates that an engine of the written files breaks; none where none was measured.

    Args:
        gates: The recipe's limits.
        facts: See :func:`broken_gates`.

    Yields:
        See :func:`broken_gates`.
    """
    limit, source = gates.perplexity_increase, facts["source_perplexity"]
    if limit is None or "engine_perplexity" not in facts:
        return
    perplexity = facts["engine_perplexity"]
    measured = None if None in (perplexity, source) else perplexity / source - 1.0
    if not _at_most(measured, limit):
        rise = f"{_shown(measured, '.2%')} ({_change(facts, perplexity)})"
        yield (
            "perplexity_increase",
            f"the engine's perplexity rose by {rise}, allowed is {limit:.2%}",
        )


def beyond_range(activations: Mapping[str, Any]) -> str | None:
    """Describes activations that the checkpoint's dtype does not hold; None if there are none.

    Args:
        activations: See :meth:`pipeline.reference.activations.Activations.as_dict`.
    """
    if not activations["beyond"]:
        return None
    largest, dtype = activations["largest"], activations["dtype"]
    return (
        f"{activations['beyond']:,} activations are beyond {activations['limit']:.5g}, the range "
        f"of {dtype}; the largest is {'infinite' if largest is None else f'{largest:.4g}'}, at "
        f"{activations['where']}. On a GPU they are infinite, and the text is nonsense from there "
        "on. "
        + (
            "Set model.dtype to bfloat16 (without quantization, quantize.format), whose range is "
            "that of float32"
            if dtype == "float16"
            else "Look at the source model, which is broken"
        )
    )


def _at_most(measured: float | None, limit: float) -> bool:
    # None is a number that was not finite; NaN is neither above nor below a limit.
    return measured is not None and measured <= limit


def _change(facts: Mapping[str, Any], perplexity: float | None) -> str:
    return f"{_shown(facts['source_perplexity'], '.4g')} to {_shown(perplexity, '.4g')}"


def _shown(number: float | None, how: str) -> str:
    return "no finite number" if number is None else format(number, how)
