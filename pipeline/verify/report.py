"""What a conformance run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from pipeline.errors import VerificationError

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: The check.
        proves: What holds when it passes, as a sentence.
        status: How it ended.
        seconds: How long it took.
        reason: Why it failed or was skipped.
        details: What it saw: JSON values.
    """

    name: str
    proves: str
    status: Status
    seconds: float
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A conformance run.

    Attributes:
        url: The server's address.
        model: The Triton model that took the requests.
        server: Name and version of the server.
        results: One per check, in the order they ran.
        tolerance: How much a log probability might differ where texts did; None where texts had to
            be equal.
        started: When the run began.
        prompts: What was asked, in words; empty where nothing was.
    """

    url: str
    model: str
    server: str
    results: tuple[CheckResult, ...]
    tolerance: float | None = None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    prompts: str = ""

    def count(self, status: Status) -> int:
        """How many checks ended this way."""
        return sum(result.status == status for result in self.results)

    @property
    def seconds(self) -> float:
        """The duration of all checks."""
        return sum(result.seconds for result in self.results)

    def raise_for_failures(self) -> None:
        """Raises when a check failed.

        Raises:
            VerificationError: Naming the checks that failed and why.
        """
        raise_for_failures(
            self.url, [(r.name, r.reason) for r in self.results if r.status == "failed"]
        )


def raise_for_failures(where: str, failures: list[tuple[str, str | None]]) -> None:
    """Raises when there are failures.

    Args:
        where: The server, or the file that records them.
        failures: Name and reason of each failed check.

    Raises:
        VerificationError: Naming all of them.
    """
    if not failures:
        return
    noun = "check" if len(failures) == 1 else "checks"
    raise VerificationError(
        f"{len(failures)} conformance {noun} failed",
        where=where,
        why="; ".join(
            f"{name}: {(reason or 'no reason').rstrip('.')}" for name, reason in failures
        ),
        fix="See the JSON or JUnit output for details and the server's log for its side",
    )
