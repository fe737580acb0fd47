"""Stops a run at a gate that is not open, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from pipeline.errors import QualityGateError
from pipeline.formats import FORMATS
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.verdict.decision import decide
from pipeline.verdict.defaults import row_of
from pipeline.verdict.gate import GateResult
from pipeline.verdict.gates import checkpoint_gates, engine_gates, rounded_up
from pipeline.verdict.plausible import ENGINE
from pipeline.verdict.words import MEASURES

EVALUATION, FIDELITY = "evaluation.json", "fidelity.json"
_SAYS = {
    "REGRESSION": "the {} is worse than the recipe allows",
    "INCONCLUSIVE": "whether the {} is as good as the recipe asks cannot be told yet",
    "ANOMALOUS": "what was measured of the {} cannot be right",
}


def check_checkpoint(recipe: Recipe, artifact: Artifact) -> None:
    """Holds the measured numbers of the written checkpoint against the recipe's gates.

    Args:
        recipe: With a section ``evaluate``.
        artifact: Of the stage that measured; its facts are ``evaluation.json``.

    Raises:
        QualityGateError: At least one gate is not open; the artifact stays in the store.
    """
    _stop_unless_open(recipe, artifact, gates_of(recipe, artifact.facts), EVALUATION)


def check_engine(recipe: Recipe, artifact: Artifact) -> None:
    """Holds the measured numbers of the compiled engine against the recipe's gates.

    Args:
        recipe: With a section ``evaluate``.
        artifact: Of the stage that measured; its facts are ``fidelity.json``.

    Raises:
        QualityGateError: At least one gate is not open; the artifact stays in the store.
    """
    _stop_unless_open(recipe, artifact, gates_of(recipe, artifact.facts), FIDELITY)


def gates_of(recipe: Recipe, measured: Mapping[str, Any]) -> list[GateResult]:
    """Asks every gate about what a stage measured.

    Args:
        recipe: With a section ``evaluate``.
        measured: ``evaluation.json`` or ``fidelity.json``, with the source's ``parameters``.
    """
    assert recipe.evaluate is not None
    bits = FORMATS[recipe.quantize.format].weight_bits
    ask = engine_gates if "against_checkpoint" in measured else checkpoint_gates
    return ask(recipe.evaluate.gates, measured, measured["parameters"], bits)


def _stop_unless_open(
    recipe: Recipe, artifact: Artifact, gates: Sequence[GateResult], file: str
) -> None:
    decision = decide(gates, None, None)
    if decision.verdict == "ACCEPT":
        return
    # The worst verdict names the error and its remedy; the others are told beside it.
    first = next(gate for gate in gates if gate.verdict == decision.verdict)
    key = f"evaluate.gates.{first.name if first.name in MEASURES else 'completions'}"
    if first.name == "engine_format":
        key = "quantize.format"
    raise QualityGateError(
        f"{_SAYS[decision.verdict].format(first.subject)}: {_once(decision.reasons)}",
        where=recipe.place(key),
        why=f"Every number is in {artifact.path / file}{_origin(recipe, first, artifact.facts)}",
        fix=_remedy(recipe, first, artifact.facts),
        found={"verdict": decision.verdict, "gates": [gate.as_dict() for gate in gates]},
    )


def _once(reasons: Sequence[str]) -> str:
    """Joins reasons; what several of them say alike is said behind the last."""
    clauses = [clause for reason in reasons for clause in reason.split("; ")]
    last = {clause: index for index, clause in enumerate(clauses)}
    return "; ".join(clause for index, clause in enumerate(clauses) if last[clause] == index)


def _origin(recipe: Recipe, gate: GateResult, measured: Mapping[str, Any]) -> str:
    """Where a limit comes from that the recipe leaves to us."""
    assert recipe.evaluate is not None
    if gate.limit is None or getattr(recipe.evaluate.gates, gate.name) != "auto":
        return ""
    if gate.name == "source_perplexity":
        size = measured["vocabulary"]
        return f". The recipe leaves this limit to the vocabulary, of {size:,} tokens"
    name, bits = gate.name, FORMATS[recipe.quantize.format].weight_bits
    if rounded := measured.get("rounded_to"):
        name, bits = name.removeprefix("engine_"), rounded
    row = row_of(name, measured["parameters"], bits)
    if gate.limit != row.limits[name]:
        # Of a part that no format rounds.
        bits, row = 16, row_of(name, measured["parameters"], 16)
    return (
        f". The recipe leaves this limit to the size of the model and its {bits} bits: {row.source}"
    )


def _remedy(recipe: Recipe, gate: GateResult, measured: Mapping[str, Any]) -> str:
    if gate.verdict == "ANOMALOUS":
        return _look_at(recipe, gate)
    if gate.verdict == "INCONCLUSIVE":
        more = _measure_more(recipe, gate, measured)
        kept = _kept_limit(gate) if gate.more_tokens is not None else None
        return more + (
            f". If it is good enough as it is, set evaluate.gates.{gate.name} to {kept}, which the "
            "whole interval keeps"
            if kept is not None
            else ""
        )
    if gate.name.startswith("engine_"):
        return (
            "Look at how the engine executes the written files: leave the options of "
            f"compile.{recipe.compile.target} at their defaults, or loosen the gate"
        )
    has = {f"quantize.group_size: {recipe.quantize.group_size}"}
    if recipe.quantize.search is not None:
        has.add("quantize.search: {}")
    if recipe.quantize.act_order:
        has.add("quantize.act_order: true")
    first = FORMATS[recipe.quantize.format].remedy(without=has)
    return f"{first}, calibrate on more text, or loosen the gate"


def _measure_more(recipe: Recipe, gate: GateResult, measured: Mapping[str, Any]) -> str:
    assert recipe.evaluate is not None
    if gate.name == "accuracy_loss":
        return (
            "Ask more questions of the task (rows in evaluate.tasks), or set another limit; null "
            "reports the accuracy and decides nothing"
        )
    if gate.more_tokens is None:
        return "Set a limit that is clear of what was measured, on the side that you want to be on"
    total = rounded_up(measured["tokens"] + gate.more_tokens)
    text = recipe.evaluate.text
    if gate.subject == ENGINE:
        more = f" and evaluate.tokens to {total}" if total > recipe.evaluate.tokens else ""
        return (
            f"Set evaluate.engine_tokens to {total}{more}; where {text} is shorter, add text to it"
        )
    if measured["tokens"] < recipe.evaluate.tokens:
        return (
            f"Add text to {text}, of which every token was scored, and set evaluate.tokens to "
            f"{total}"
        )
    return f"Set evaluate.tokens to {total}; where {text} is shorter, add text to it"


def _kept_limit(gate: GateResult) -> Decimal | None:
    """The strictest limit of three digits that all of an interval keeps; None without one."""
    least = MEASURES[gate.name].least
    end = gate.estimate.low if least else gate.estimate.high
    if not end or end < 0:
        return None
    exact = Decimal(str(end))
    step = Decimal(1).scaleb(exact.adjusted() - 2)
    rounding = ROUND_FLOOR if least else ROUND_CEILING
    return Decimal(f"{exact.quantize(step, rounding).normalize():f}")


def _look_at(recipe: Recipe, gate: GateResult) -> str:
    if gate.name == "engine_format":
        return "Compile the checkpoint again: add --force compile"
    if gate.name not in MEASURES:
        return (
            "Look at completions and signal_to_noise in that file, which have the texts and the "
            "linears that suffer most, and try another quantize.format; set "
            "evaluate.gates.completions to false for a model whose own texts mean nothing"
        )
    assert recipe.evaluate is not None
    if gate.name == "source_perplexity":
        return (
            f"Look whether the tokenizer in {recipe.model.source} is the model's own and "
            f"{recipe.evaluate.text} is text of the kind that it was trained on; set "
            "evaluate.gates.source_perplexity to null for a model with random weights"
        )
    if gate.estimate.value is not None:
        if gate.name == "signal_to_noise":
            return (
                "Look at signal_to_noise in that file, which names every linear; write them again "
                "with --force quantize, and try another quantize.format where the same stay so low"
            )
        if gate.name.startswith("engine_"):
            return "Look whether the engine was compiled from this very checkpoint"
        return (
            f"Look whether {recipe.evaluate.text} has texts that the scales were calibrated on, "
            f"and whether {recipe.model.source} is the model that it should be"
        )
    return (
        "Look at activations and signal_to_noise in the evaluation's file: what overflows needs "
        "model.dtype bfloat16, or another quantize.format"
    )
