"""The quality gates: what was measured against what the recipe and the dtype allow.

The whole interval of what was measured decides. Where all of it keeps the limit the gate is open,
where all of it breaks the limit quality was lost, and where the limit lies inside nobody can say,
so the gate says how much more text could. Numbers that no working model gives are anomalies,
whatever the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.recipe.evaluate import Gates
from pipeline.verdict.collapse import repeats_itself
from pipeline.verdict.defaults import limit_of
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.gate import GateResult, Verdict
from pipeline.verdict.plausible import (
    CHECKPOINT,
    ENGINE,
    format_gate,
    linears_gate,
    source_gate,
)
from pipeline.verdict.words import MEASURES, measured_words

MOST_MORE = 100
"""More text than this many times what was scored is no advice."""
POWER_MARGIN = 0.8416 / 1.9600
"""What a half-width is lengthened by, so that text settles a gate four times of five: the normal
quantiles of 0.8 and 0.975. TensorRT-LLM's accuracy suite takes the same chance (beta = 0.2)."""
_CHANGED = "compilation changed the model"
_BY_TOKENS = ("perplexity_increase", "top1_agreement", "kl_divergence")
_OF_LOGITS = ("top1_agreement", "kl_divergence")


def checkpoint_gates(
    gates: Gates, measured: Mapping[str, Any], parameters: int, bits: int
) -> list[GateResult]:
    """Holds what was measured of the written checkpoint against the recipe.

    Args:
        gates: The recipe's limits.
        measured: ``evaluation.json``, or the facts of its stage.
        parameters: Of the source model.
        bits: Of a weight in the checkpoint, without its scales.
    """
    found = list(_against_source(CHECKPOINT, gates, measured, parameters, bits))
    plausible = source_gate(gates, measured), linears_gate(gates, measured, parameters, bits)
    found += [result for result in plausible if result]
    if gates.completions:
        found += _completions(measured.get("completions") or ())
    return found


def engine_gates(
    gates: Gates, measured: Mapping[str, Any], parameters: int, bits: int
) -> list[GateResult]:
    """Holds what was measured of the compiled engine against the recipe.

    Those whose names begin with ``engine_`` compare with the checkpoint and say whether compilation
    broke something; the others compare with the source, as the checkpoint's do.

    Args:
        gates: The recipe's limits.
        measured: ``fidelity.json``, or the facts of its stage.
        parameters: See :func:`checkpoint_gates`.
        bits: See there.
    """
    against = measured.get("against_checkpoint") or {}
    # Such an engine is held to what a checkpoint of as many bits would be.
    rounded = measured.get("rounded_to")
    bits = rounded or bits
    compiled = []
    for name in _BY_TOKENS:
        limit = limit_of(gates, f"engine_{name}", parameters, bits, rounds=rounded is not None)
        result = _judge(
            f"engine_{name}", ENGINE, against.get(name), limit=limit, count=measured["tokens"]
        )
        if result:
            compiled.append(result)
    changed = f"compiling rounds its weights to {rounded} bits" if rounded else _CHANGED
    broke = [result for result in compiled if result.verdict != "ACCEPT"]
    follows = not broke and {f"engine_{name}" for name in _OF_LOGITS} <= {
        result.name for result in compiled
    }
    compiled = [
        replace(result, evidence=f"{result.evidence}; {changed}")
        if result.verdict in ("REGRESSION", "ANOMALOUS")
        else result
        for result in compiled
    ]
    if broke:
        cause = "the engine does not follow the checkpoint, so compilation has a part in it"
    elif compiled:
        cause = "the engine follows the checkpoint, so quantization lost it and not compilation"
    else:
        cause = "nothing tells whether quantization or compilation lost it"
    lost = list(_against_source(ENGINE, gates, measured, parameters, bits))
    for index, result in enumerate(lost):
        if result.verdict == "INCONCLUSIVE" and follows:
            # An engine is scored on fewer tokens than its checkpoint, which is held to the same.
            lost[index] = replace(
                result,
                verdict="ACCEPT",
                more_tokens=None,
                evidence=f"{result.evidence}; the engine follows the checkpoint, which is held to "
                "the same limit on more of them",
            )
        elif result.verdict != "ACCEPT":
            lost[index] = replace(result, evidence=f"{result.evidence}; {cause}")
    other = format_gate(measured)
    return [*([other] if other else []), *compiled, *lost]


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


def _against_source(
    subject: str, gates: Gates, measured: Mapping[str, Any], parameters: int, bits: int
) -> Iterator[GateResult]:
    for name in _BY_TOKENS:
        limit = limit_of(gates, name, parameters, bits)
        count = measured["tokens"]
        result = _judge(name, subject, measured.get(name), limit=limit, count=count)
        if result:
            yield result
    limit = limit_of(gates, "accuracy_loss", parameters, bits)
    for task in measured.get("tasks") or ():
        loss = Estimate.from_dict(task["accuracy_change"]).negated().as_dict()
        count = task["rows"]
        result = _judge("accuracy_loss", subject, loss, limit=limit, count=count, unit="rows")
        if result:
            # Rows are no tokens of the evaluation text.
            evidence = f"{task['name']}: {result.evidence}"
            yield replace(result, evidence=evidence, more_tokens=None)


def _judge(
    name: str,
    subject: str,
    measured: Mapping[str, float | None] | None,
    *,
    limit: float | None,
    count: int,
    unit: str = "tokens",
) -> GateResult | None:
    """The result of one gate; None where nothing was measured, or nothing is checked or odd.

    Args:
        name: The gate.
        subject: What was measured.
        measured: The estimate as JSON values; None where there is none.
        limit: None does not check.
        count: What the interval was measured on.
        unit: What that counts.
    """
    if measured is None:
        return None
    estimate = _finite(Estimate.from_dict(measured))
    measure = MEASURES[name]
    words = measured_words(name, subject, estimate, limit)

    def result(verdict: Verdict, why: str = "", more: int | None = None) -> GateResult:
        evidence = f"{words}{why}"
        return GateResult(
            name, subject, estimate, limit, verdict, evidence, more if unit == "tokens" else None
        )

    if estimate.value is None:
        return result("ANOMALOUS")
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        low = high = estimate.value
        alone = ": one number without an interval, which alone decides"
    else:
        alone = ""
    if measure.gain is not None and high < -measure.gain:
        return result(
            "ANOMALOUS",
            f": a gain of more than {measure.show_limit(measure.gain)} is implausible, so one of "
            "the two was not measured as it should be, or is not the model that it seems",
        )
    if limit is None:
        return None
    kept, broken = (low >= limit, high < limit) if measure.least else (high <= limit, low > limit)
    if kept:
        return result("ACCEPT", alone)
    if broken:
        return result("REGRESSION", alone)
    more = more_to_settle(estimate, limit, count)
    if more is None:
        return result(
            "INCONCLUSIVE",
            ": the limit lies inside the interval, and so near to what was measured that more "
            f"{unit} would hardly settle it",
        )
    return result(
        "INCONCLUSIVE",
        f": the limit lies inside the interval; about {rounded_up(more):,} more {unit} would "
        "probably settle it",
        more,
    )


def more_to_settle(estimate: Estimate, limit: float, count: int) -> int | None:
    """Estimates how many more samples bring the limit out of an interval.

    The half-width of an interval shrinks with the square root of the samples, so the end that
    crosses the limit reaches it with ``count * (half / distance) ** 2`` of them, if the measured
    number stays where it is. It will not: it comes out a little nearer or farther, and half of all
    such intervals would still cross. :data:`POWER_MARGIN` makes that one of five.

    Args:
        estimate: With an interval around the limit.
        limit: The limit.
        count: How many samples the estimate comes from.

    Returns:
        Samples beside those there are; None where it would take more than :data:`MOST_MORE` times
        as many.
    """
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    below = estimate.value < limit
    half = estimate.high - estimate.value if below else estimate.value - estimate.low
    reach, distance = half * (1 + POWER_MARGIN), abs(estimate.value - limit)
    if reach**2 > (MOST_MORE + 1) * distance**2:
        return None
    return max(1, math.ceil(count * ((reach / distance) ** 2 - 1)))


def _completions(completions: Sequence[Mapping[str, Any]]) -> Iterator[GateResult]:
    """Looks for texts that broke down, where the source model's did not."""
    for name, broke, words, not_so in (
        ("empty_completions", _is_empty, "are empty", "are not"),
        ("repeated_tokens", repeats_itself, "repeat one token or a few", "do not"),
    ):
        sound = [pair for pair in completions if not broke(pair["source"])]
        if not sound:
            continue
        lost = [pair for pair in sound if broke(pair["written"])]
        evidence = (
            f"{len(lost)} of {len(sound)} greedy completions {words}, where the source model's "
            f"{not_so}"
        )
        # One of several may be chance: where two tokens are nearly as likely, rounding decides
        # which way a small model goes.
        anomalous = 2 * len(lost) > len(sound)
        if anomalous:
            evidence += f": {lost[0]['prompt'][-40:]!r} goes on as {lost[0]['written'][:40]!r}"
        yield GateResult(
            name,
            CHECKPOINT,
            Estimate(len(lost) / len(sound)),
            None,
            "ANOMALOUS" if anomalous else "ACCEPT",
            evidence,
        )


def _is_empty(text: str) -> bool:
    return not text.strip()


def _finite(estimate: Estimate) -> Estimate:
    return Estimate(*(_or_none(end) for end in (estimate.value, estimate.low, estimate.high)))


def _or_none(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number


def rounded_up(count: int) -> int:
    """Rounds a guess up to two digits, which is all that it is worth."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return math.ceil(count / unit) * unit
