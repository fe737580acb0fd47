"""The effort of one recipe on this machine, and what does not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.effort.disk import Snapshot, free
from pipeline.effort.fitting import refusal, warnings
from pipeline.effort.questions import TaskTexts
from pipeline.effort.rates import Rates, known_rates
from pipeline.effort.stages import Earlier, Machine, StageEffort, efforts
from pipeline.effort.work import TextLengths
from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.targets.findings import Finding
from pipeline.targets.machine import may_have_gpu, whole_memory


@dataclass(frozen=True)
class Effort:
    """What a run takes, and whether this machine has it.

    Attributes:
        machine: What there is.
        stages: An estimate of each stage that is to run.
        warnings: What may not fit.
        refusal: What cannot; None where a run may try.
    """

    machine: Machine
    stages: tuple[StageEffort, ...]
    warnings: tuple[Finding, ...]
    refusal: UnsupportedError | None

    def as_dict(self) -> dict[str, Any]:
        """Returns machine and stages as JSON values; what is wrong is told beside them."""
        return {
            "machine": asdict(self.machine),
            "stages": [stage.as_dict() for stage in self.stages],
        }


def effort_of(
    recipe: Recipe,
    facts: ModelFacts,
    stages: Collection[str],
    *,
    directory: Path | None,
    build: Path,
    remembered: Path | None,
    left: Mapping[str, Earlier],
) -> Effort:
    """Estimates the stages that are to run on this machine.

    Args:
        recipe: A recipe that fits the model.
        facts: The model's facts.
        stages: Names of those that are to run.
        directory: The model's; None while it is on the Hub.
        build: The build directory.
        remembered: Where rates are kept; None does without them.
        left: What earlier runs left of a stage, by its name.
    """
    rates: Rates | None = None if remembered is None else known_rates(remembered)
    machine = Machine(whole_memory(), free(build), rates)
    # One for all recipes that are tried: where the model lies is the same in each.
    snapshot = Snapshot(directory, build)
    lengths, asking, gpu = TextLengths(), TaskTexts(), may_have_gpu()

    def estimate(other: Recipe) -> Sequence[StageEffort]:
        return efforts(
            other,
            facts,
            stages,
            snapshot=snapshot,
            rates=rates,
            lengths=lengths,
            asking=asking,
            gpu=gpu,
            left=left,
        )

    found = tuple(estimate(recipe))
    return Effort(
        machine,
        found,
        (*_copied(snapshot, stages), *warnings(recipe, found, machine, estimate)),
        refusal(recipe, found, machine, estimate),
    )


def _copied(snapshot: Snapshot, stages: Collection[str]) -> Iterator[Finding]:
    """Yields why a large model will be copied, which somebody may be able to change."""
    if "source" in stages and (found := snapshot.obstacle):
        yield Finding(
            "warning",
            "model.source",
            "the model is copied into the store, and takes its disk twice",
            found.why[:1].upper() + found.why[1:],
            found.fix,
        )
