"""What a fault did: what was injected, what must hold, what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tables import number, print_table

VERDICTS = {"passed": "holds", "failed": "DOES NOT HOLD", "skipped": "not run"}


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        what: What was measured.
        value: In ``unit``.
        at_most: The bound that is aimed at, on a machine that does nothing else; None for none.
            What a test asserts is wider.
    """

    what: str
    value: float
    unit: str = "s"
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound was kept; None without one."""
        return None if self.at_most is None else self.value <= self.at_most

    def __str__(self) -> str:
        text = f"{self.what} {number(self.value, 3)}{f' {self.unit}' if self.unit else ''}"
        if self.at_most is None:
            return text
        return f"{text} ({'of' if self.met else 'ABOVE'} {number(self.at_most, 3)})"


@dataclass
class Fault:
    """A row of the table.

    Attributes:
        name: The fault.
        injected: What was done to bring it about.
        holds: What must hold.
        measures: In the order in which they were taken.
        outcome: ``passed``, ``failed`` or ``skipped``.
        why: The reason, where it was skipped.
    """

    name: str
    injected: str
    holds: str
    measures: list[Measure] = field(default_factory=list)
    outcome: str = "failed"
    why: str = ""

    def measured(
        self, what: str, value: float, unit: str = "s", *, at_most: float | None = None
    ) -> float:
        """Notes a number and returns it."""
        self.measures.append(Measure(what, float(value), unit, at_most))
        return value

    @property
    def verdict(self) -> str:
        """In words, for the table."""
        words = VERDICTS[self.outcome]
        late = self.outcome == "passed" and any(m.met is False for m in self.measures)
        return f"{words}, slowly" if late else words


def as_json(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Returns the rows as JSON values."""
    return [
        {
            **asdict(fault),
            "measures": [{**asdict(m), "met": m.met} for m in fault.measures],
            "verdict": fault.verdict,
        }
        for fault in faults
    ]


def write(faults: Sequence[Fault], path: Path) -> None:
    """Writes the rows to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(faults), indent=1) + "\n", encoding="utf-8")


def show(faults: Sequence[Fault]) -> None:
    """Prints the table."""
    rows = []
    for fault in faults:
        measured = "\n".join(map(str, fault.measures)) or fault.why
        rows.append((f"{fault.name}\n{fault.injected}", fault.holds, measured, fault.verdict))
    styles = {"holds": "green", "DOES NOT HOLD": "red", "not run": "yellow"}
    columns = ("fault, and how it was injected", "what must hold", "measured", "verdict")
    print_table(columns, rows, styles=styles, lines=True)
    print(
        "\nA bound in brackets is meant for a machine that does nothing else; what the tests "
        "assert is wider."
    )
