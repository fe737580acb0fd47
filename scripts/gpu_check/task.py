"""What every part is given and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLE = PROJECT / "examples" / "tiny_llama"
MODEL = EXAMPLE / "model"

# passed and failed hold a rule; measured has figures and no rule; skipped says why.
STATUSES = ("passed", "failed", "measured", "skipped")
Case = dict[str, Any]
Cases = Iterator[Case]


@dataclass(frozen=True)
class Task:
    """One part's work.

    Attributes:
        device: ``cuda`` or ``cpu``.
        work: A folder for files, removed afterwards.
        formats: Names of formats to take; empty takes all.
    """

    device: str
    work: Path
    formats: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        """Whether a format is to be taken."""
        return not self.formats or name in self.formats


def case(name: str, status: str, **details: Any) -> Case:
    """One result.

    Args:
        name: What was looked at.
        status: One of :data:`STATUSES`.
        details: Figures, and ``reason`` where it was skipped or failed.
    """
    assert status in STATUSES, status
    return {"case": name, "status": status, **details}


def verdict(name: str, problems: Sequence[str], **details: Any) -> Case:
    """A result that has a rule: failed where there are problems."""
    if problems:
        return case(name, "failed", reason="; ".join(problems), **details)
    return case(name, "passed", **details)


def recipe(
    name: str,
    device: str,
    *,
    kv_cache: str | None = None,
    samples: int = 8,
    length: int = 128,
    at_once: str = "layer",
) -> Any:
    """A recipe for the demo model.

    Args:
        name: The format.
        device: Where it is calibrated.
        kv_cache: The format of the KV cache.
        samples: Calibration texts.
        length: Tokens of each.
        at_once: What is in memory: one ``layer``, or the ``model``.
    """
    from pipeline.recipe.schema import Recipe

    calibration: Mapping[str, Any] = {
        "text": str(EXAMPLE / "data" / "calibration.jsonl"),
        "samples": samples,
        "sequence_length": length,
        "batch_size": 8,
    }
    return Recipe.model_validate(
        {
            "name": "gpu-check",
            "model": {"source": str(MODEL), "at_once": at_once},
            "quantize": {
                "format": name,
                "kv_cache": kv_cache,
                "device": device,
                "calibration": dict(calibration),
            },
        }
    )


def quantize(wanted: Any, output: Path) -> Path:
    """Runs the quantize stage of a recipe for the demo model."""
    from pipeline.progress import Silent
    from pipeline.stages.base import StageContext
    from pipeline.stages.quantize import STAGE
    from pipeline.store.artifact import Artifact

    output.mkdir(parents=True)
    source = Artifact("source", "", "", MODEL, {})
    STAGE.run(StageContext(wanted, {"source": source}, output, Silent()))
    return output
