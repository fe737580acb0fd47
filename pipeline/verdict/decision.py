"""What becomes of a run, in one word, one line and its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.tables import number
from pipeline.verdict.failure import Failure
from pipeline.verdict.gate import GateResult
from pipeline.verdict.words import measured_words, size_words

Outcome = Literal["ACCEPT", "REGRESSION", "ANOMALOUS", "INCONCLUSIVE", "FAILED", "UNFINISHED"]
Status = Literal["passed", "failed", "unfinished"]
Tone = Literal["good", "bad", "open"]

TONES: Mapping[str, Tone] = {
    "ACCEPT": "good",
    **dict.fromkeys(("REGRESSION", "ANOMALOUS", "FAILED"), "bad"),
    **dict.fromkeys(("INCONCLUSIVE", "UNFINISHED"), "open"),
}
"""How each outcome looks, on every page and terminal alike."""

# What a reader has to know first: that a measurement cannot be, then that quality was lost, then
# that nobody can say.
_WORST_FIRST: tuple[Outcome, ...] = ("ANOMALOUS", "REGRESSION", "INCONCLUSIVE")
_SAYS = {
    "ANOMALOUS": "does not ship, because something is wrong",
    "REGRESSION": "does not ship",
    "INCONCLUSIVE": "undecided",
}


@dataclass(frozen=True)
class Decision:
    """Whether what was built may ship.

    Attributes:
        verdict: ACCEPT; what the worst gate says; FAILED where conformance or a stage's own verdict
            does; UNFINISHED where the run could not go on.
        headline: The same with its numbers, in one line for people who did not see the run.
        reasons: Everything that speaks against it, in words; empty when accepted.
    """

    verdict: Outcome
    headline: str
    reasons: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        """What a page or a pipeline does with it."""
        if self.verdict == "ACCEPT":
            return "passed"
        return "unfinished" if self.verdict == "UNFINISHED" else "failed"


def decide(
    gates: Sequence[GateResult],
    conformance: Mapping[str, Any] | None,
    failure: Failure | None,
    *,
    title: str = "",
    share: float | None = None,
    tokens_per_second: float | None = None,
) -> Decision:
    """Decides whether what was built may ship.

    Args:
        gates: What came of every gate.
        conformance: ``verify.json``; None where no server was tried.
        failure: Why the run ended early.
        title: What was built, in a few words such as ``INT4 AWQ``.
        share: Bytes of the checkpoint over those of the model in 16 bit.
        tokens_per_second: The highest throughput that was measured.
    """
    start = f"{title}: " if title else ""
    against = [gate for gate in gates if gate.verdict != "ACCEPT"]
    against.sort(key=lambda gate: _WORST_FIRST.index(gate.verdict))
    failed = [
        f"{check['name']}: {check['reason'] or 'no reason was given'}"
        for check in (conformance or {}).get("checks", ())
        if check["status"] == "failed"
    ]
    reasons = [*(gate.evidence for gate in against), *failed]
    told = [text for text in _told(failure) if not reasons]
    if against:
        verdict: Outcome = against[0].verdict
        line = f"{_SAYS[verdict]}. {_capitalized(against[0].evidence)}"
        if len(against) > 1:
            line += f", and {len(against) - 1} more"
    elif failed:
        verdict = "FAILED"
        checks = "check" if len(failed) == 1 else "checks"
        line = f"does not ship. {len(failed)} conformance {checks} failed: {failed[0]}"
    elif failure:
        verdict = "FAILED" if failure.verdict else "UNFINISHED"
        what = str(failure.error["what"])
        line = f"{'does not ship' if failure.verdict else 'not finished'}. {failure.stage}: {what}"
    else:
        verdict = "ACCEPT"
        facts = _facts(gates, conformance, share, tokens_per_second)
        line = f"ships. {_capitalized(', '.join(facts))}"
    headline = f"{start}{line}" if start else f"{line[:1].upper()}{line[1:]}"
    return Decision(verdict, headline.rstrip("."), (*reasons, *told))


def title_of(format_name: str) -> str:
    """Writes the name of a format as people do: ``INT4 AWQ`` for ``int4_awq``."""
    return format_name.replace("_", " ").upper() if "_" in format_name else format_name


def _facts(
    gates: Sequence[GateResult],
    conformance: Mapping[str, Any] | None,
    share: float | None,
    tokens_per_second: float | None,
) -> list[str]:
    facts = [size_words(share)] if share else []
    first = next((gate for gate in gates if gate.name == "perplexity_increase"), None)
    if first:
        facts.append(measured_words(first.name, first.subject, first.estimate, first.limit))
    elif not gates:
        facts.append("no gate was asked about its quality")
    facts.append(
        f"{conformance['passed']} of {conformance['passed'] + conformance['failed']} checks"
        if conformance
        else "not served here"
    )
    if tokens_per_second is not None:
        facts.append(f"{number(float(tokens_per_second))} tokens/s")
    return facts


def _told(failure: Failure | None) -> list[str]:
    if failure is None:
        return []
    return [str(text) for text in (failure.error["what"], failure.error["why"]) if text]


def _capitalized(text: str) -> str:
    # Names such as kl_divergence stay as they are.
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text
