"""One quality gate and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.verdict.estimate import Estimate

Verdict = Literal["ACCEPT", "REGRESSION", "ANOMALOUS", "INCONCLUSIVE"]


@dataclass(frozen=True)
class GateResult:
    """What was measured against one limit.

    Attributes:
        name: What is limited: a key of ``evaluate.gates``, or what is always looked at.
        subject: What was measured: ``checkpoint`` or ``engine``.
        estimate: The measured number with its interval.
        limit: What it is held against; None where no number is, as with text that is empty.
        verdict: ACCEPT, or what is wrong.
        evidence: The same in words, as a sentence without its full stop.
        more_tokens: How many more scored tokens would probably settle an INCONCLUSIVE gate.
    """

    name: str
    subject: str
    estimate: Estimate
    limit: float | None
    verdict: Verdict
    evidence: str
    more_tokens: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return {
            "name": self.name,
            "subject": self.subject,
            "measured": self.estimate.value,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "limit": self.limit,
            "verdict": self.verdict,
            "evidence": self.evidence,
            "more_tokens": self.more_tokens,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GateResult:
        """Makes a result of what :meth:`as_dict` returned."""
        return cls(
            name=values["name"],
            subject=values["subject"],
            estimate=Estimate(values["measured"], values["low"], values["high"]),
            limit=values["limit"],
            verdict=values["verdict"],
            evidence=values["evidence"],
            more_tokens=values["more_tokens"],
        )
