"""What is installed on this machine, and what each compile target can do here."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.dependencies import MODELOPT, TRANSFORMERS, install, installed, missing
from pipeline.effort.example import example_peak
from pipeline.errors import UsageError
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import STAGES
from pipeline.targets import TARGETS, get_target
from pipeline.targets import machine as look
from pipeline.targets.base import Diagnosis, look_for

SCHEMA = 1
BASE, EVERY = "base", "every target"
"""Groups of findings beside those of the targets, which have the targets' names."""

# Wheels of the server, and NVIDIA's images.
_PLATFORMS = {"Linux x86_64"}


@dataclass(frozen=True)
class Examination:
    """What ``doctor`` found.

    Attributes:
        target: The target that was asked for; None for all of them.
        groups: Findings by group: :data:`BASE`, :data:`EVERY`, and the targets.
    """

    target: str | None
    groups: Mapping[str, Sequence[Diagnosis]]

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that were looked at."""
        return tuple(name for name in self.groups if name in TARGETS)

    @property
    def ok(self) -> bool:
        """Whether the whole chain of the target can run here; without one, whether the base can."""
        return not self.lacking(self.target)

    def lacking(self, target: str | None) -> list[str]:
        """Names what keeps a target from running here; None is the base alone."""
        groups = [BASE] if target is None else [BASE, EVERY, target]
        return [
            finding.name
            for group in groups
            for finding in self.groups[group]
            if finding.needed and not finding.ok
        ]

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values; what is ok has no advice."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "ok": self.ok,
            "targets": {name: {"missing": self.lacking(name)} for name in self.targets},
            "findings": [
                {"group": group, **asdict(finding), "advice": "" if finding.ok else finding.advice}
                for group, findings in self.groups.items()
                for finding in findings
            ],
        }


def diagnose(
    target: str | None = None, build_dir: Path = Path("build"), ports: Iterable[int] = ()
) -> Examination:
    """Looks at this tool, at what every target needs, and at what each one does.

    Args:
        target: The target to look at; None is all.
        build_dir: Where a run would write.
        ports: Ports that have to be free; none looks at the usual ones.

    Raises:
        UsageError: There is no such target.
    """
    if target is not None and target not in TARGETS:
        raise UsageError(f"there is no target {target}", fix=f"Targets: {', '.join(TARGETS)}")
    own = {
        name: get_target(name).findings() for name in TARGETS if target is None or name == target
    }
    base, packages = _base(), list(_packages())
    told = [*base, *packages, *(finding for findings in own.values() for finding in findings)]
    every = [*packages, _others(own, told), *_machine(build_dir, ports)]
    return Examination(target, {BASE: base, EVERY: every, **own})


def _base() -> list[Diagnosis]:
    return [
        Diagnosis(
            "Python",
            platform.python_version(),
            (3, 10) <= sys.version_info[:2] <= (3, 12),
            "Use Python 3.10 to 3.12: ModelOpt 0.37 supports no other",
        ),
        look_for("tritonclient", "client", "the gRPC client"),
        look.temporary_folder(),
    ]


def _packages() -> Iterator[Diagnosis]:
    shown = {"nvidia-modelopt": MODELOPT, "transformers": TRANSFORMERS}
    reasons = (
        "it writes the pinned checkpoint format",
        "with transformers 5 ModelOpt silently drops the rope base from the checkpoint",
    )
    for (package, wanted), reason in zip(shown.items(), reasons, strict=True):
        found = installed(package)
        advice = f"{wanted} is needed: {reason}. {install('quantize')}"
        yield Diagnosis(package, found or "absent", found == wanted, advice)
    yield look_for("torch", "quantize", "quantizing and evaluating")


def _others(targets: Iterable[str], told: Iterable[Diagnosis]) -> Diagnosis:
    """The packages without which run would refuse to begin, but for those that have a line."""
    needs = [need for name in targets for stage in STAGES for need in stage.needs(_recipe(name))]
    names = tuple(finding.name.replace("-", "_") for finding in told)
    # The distribution of the module pytriton is nvidia-pytriton, and so on.
    absent = [
        (module, extra)
        for module, extra in missing(needs)
        if not any(name.endswith(module) for name in names)
    ]
    extras = ",".join(dict.fromkeys(extra for _, extra in absent))
    modules = ", ".join(module for module, _ in absent)
    value = f"absent: {modules}" if absent else "there"
    return Diagnosis("other packages", value, not absent, install(extras))


def _machine(build_dir: Path, ports: Iterable[int]) -> Iterator[Diagnosis]:
    here = f"{platform.system()} {platform.machine()}"
    advice = "Stages run on Linux x86-64 alone; plan, init and the client run anywhere"
    yield Diagnosis("platform", here, here in _PLATFORMS, advice)
    yield look.memory(look.whole_memory(), example_peak(build_dir))
    yield look.disk(build_dir)
    yield from look.ports(ports)
    yield look.open_files()


def _recipe(target: str) -> Recipe:
    """A recipe of the target, for what does not depend on the rest of it."""
    return Recipe.model_validate(
        {
            "name": "new",
            "model": {"source": "org/name"},
            "quantize": {"format": "float16"},
            "compile": {"target": target},
        }
    )
