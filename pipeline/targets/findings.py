"""One thing the pre-flight has to say about a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """A consequence of the recipe that no tool behind it would explain.

    Attributes:
        severity: ``error`` cannot work; ``warning`` works otherwise than asked; ``note`` is good
            to know.
        key: The recipe's key it is about, dotted.
        what: What happens, as a sentence without its full stop.
        why: The cause.
        remedy: What to do about it.
    """

    severity: Severity
    key: str
    what: str
    why: str
    remedy: str


def finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yields findings as lines for a terminal, each behind an empty one."""
    for finding in findings:
        yield ""
        yield f"{finding.severity}: {finding.what} ({finding.key})"
        yield f"  {finding.why}."
        yield f"  {finding.remedy}."
