"""A measured number with its confidence interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CONFIDENCE = 0.95
"""The share of repetitions in which an interval holds the true number."""


@dataclass(frozen=True)
class Estimate:
    """A number and where it may lie.

    Attributes:
        value: What was measured; None is a number that was not finite.
        low: The lower end of its :data:`CONFIDENCE` interval; None where there is none to tell.
        high: The upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Returns the same as JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, values: Mapping[str, float | None]) -> Estimate:
        """Makes an estimate of what :meth:`as_dict` returned."""
        return cls(values["value"], values["low"], values["high"])
