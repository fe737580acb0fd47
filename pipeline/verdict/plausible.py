"""Gates on what no working chain measures: a source that knows nothing, a linear that is another.

Neither compares the two models' texts. A source that reads its text through a wrong tokenizer is
followed by its checkpoint as well as any, so nothing between the two can tell; and one damaged
linear of many may cost a large model no more than rounding does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.recipe.evaluate import Gates
from pipeline.verdict.defaults import row_of
from pipeline.verdict.estimate import Estimate
from pipeline.verdict.gate import GateResult, Verdict
from pipeline.verdict.words import limit_decibel, measured_words

CHECKPOINT = "checkpoint"
ENGINE = "engine"
GUESSING = 2.0
"""How many times the size of its vocabulary a source's perplexity may be. Guessing blindly makes it
1.0. Models of random weights have 0.8 to 1.5 (``tests/integration/random_models.py``, held-out text
and words); trained ones whose tokens have each other's ids 26 and more, and mostly above 1000."""


def source_gate(gates: Gates, measured: Mapping[str, Any]) -> GateResult | None:
    """Asks whether the source model predicts its text at all; None where that is not checked.

    Args:
        gates: The recipe's limits.
        measured: ``evaluation.json``, or the facts of its stage.
    """
    limit = gates.source_perplexity
    if limit is None or "source_perplexity" not in measured:
        return None
    own = limit != "auto"
    most = float(limit) if own else GUESSING * measured["vocabulary"]
    estimate = Estimate(measured["source_perplexity"])
    words = measured_words("source_perplexity", CHECKPOINT, estimate, most)

    def result(verdict: Verdict, why: str = "") -> GateResult:
        return GateResult("source_perplexity", CHECKPOINT, estimate, most, verdict, f"{words}{why}")

    if estimate.value is None:
        return result("ANOMALOUS")
    if estimate.value <= most:
        return result("ACCEPT")
    if own:
        why = ": no quantized model says anything about a source that is not as it should be"
    else:
        why = (
            f": it knows its text worse than a guess among all {measured['vocabulary']:,} tokens, "
            "so tokenizer, text and model do not belong together"
        )
    return result("ANOMALOUS", why)


def format_gate(measured: Mapping[str, Any]) -> GateResult | None:
    """Asks whether an engine was compiled from a checkpoint of this format at all.

    One of more bits has all the quality, so that no measurement tells it from the right one.

    Args:
        measured: ``fidelity.json``, or the facts of its stage.

    Returns:
        A result where the two formats differ; None where they do not, or one of them is not known.
    """
    said = measured.get("quant_algo") or {}
    engine, checkpoint = said.get("engine"), said.get("checkpoint")
    if engine is None or checkpoint is None or engine == checkpoint:
        return None
    words = f"the engine was compiled from a checkpoint in {engine}, and this one is {checkpoint}"
    return GateResult("engine_format", ENGINE, Estimate(None), None, "ANOMALOUS", words)


def linears_gate(
    gates: Gates, measured: Mapping[str, Any], parameters: int, bits: int
) -> GateResult | None:
    """Asks whether every written linear is a rounding of the source's, and every norm the same.

    Args:
        gates: The recipe's limits.
        measured: ``evaluation.json``, or the facts of its stage.
        parameters: Of the source model.
        bits: Of a weight in the checkpoint, without its scales.

    Returns:
        What came of the part that is farthest below its limit; None where that is not checked.
    """
    if gates.signal_to_noise is None:
        return None
    parts = [
        *_parts(measured.get("signal_to_noise"), "linear", gates, parameters, bits),
        *_parts(measured.get("signal_to_noise_of_others"), "part", gates, parameters, _WHOLE),
    ]
    if not parts:
        return None
    broken = [part for part in parts if part.margin < 0]
    worst = min(parts, key=lambda part: part.margin)
    estimate = Estimate(worst.db)
    words = measured_words("signal_to_noise", CHECKPOINT, estimate, worst.least)
    evidence = f"{words}, in {worst.name}"
    verdict: Verdict = "REGRESSION" if broken else "ACCEPT"
    if len(broken) > 1:
        evidence = f"{evidence} and {len(broken) - 1} more"
    if broken and (worst.db is None or worst.db < worst.rounding):
        verdict = "ANOMALOUS"
        evidence = (
            f"{evidence}: rounding to {worst.bits} bits leaves {limit_decibel(worst.rounding)} and "
            "more, so what was written is not that part of the source"
        )
    return GateResult("signal_to_noise", CHECKPOINT, estimate, worst.least, verdict, evidence)


@dataclass(frozen=True)
class _Part:
    """A part of the model and what it keeps.

    Attributes:
        name: In the source model.
        db: Signal to noise; None where it is no finite number.
        bits: Of its weights.
        rounding: What rounding to these bits leaves at least.
        least: What the recipe asks for.
    """

    name: str
    db: float | None
    bits: int
    rounding: float
    least: float

    @property
    def margin(self) -> float:
        return -math.inf if self.db is None else self.db - self.least


# Bits of what no format rounds.
_WHOLE = 16


def _parts(
    found: Sequence[Mapping[str, Any]] | None, name: str, gates: Gates, parameters: int, bits: int
) -> list[_Part]:
    rounding = row_of("signal_to_noise", parameters, bits).limits["signal_to_noise"]
    asked = gates.signal_to_noise
    # A limit of the recipe is about what a format costs, which is nothing elsewhere.
    own = isinstance(asked, float) and name == "linear"
    least = asked if own and isinstance(asked, float) else rounding
    return [
        _Part(part[name], part["db"], bits, rounding, least)
        for part in found or ()
        if not part["exact"]
    ]
