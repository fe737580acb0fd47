"""How a run ended that did not get to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Failure:
    """Why a run ended early.

    Attributes:
        stage: The stage that failed, or whose artifact was refused.
        verdict: True when what was built is not good enough; False when the run could not go on.
        error: The error as :meth:`pipeline.errors.PipelineError.as_dict` gives it.
        unreached: Names of the stages that did not run.
        kept: Names of the folders with artifacts that were not deployed, by stage.
    """

    stage: str
    verdict: bool
    error: Mapping[str, Any]
    unreached: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return {**asdict(self), "unreached": list(self.unreached)}
