"""What a shell offers behind an option, once completion is installed (``--install-completion``)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STAGES = (
    "source",
    "quantize",
    "evaluate",
    "compile",
    "fidelity",
    "repository",
    "verify",
    "bench",
    "report",
)
"""Those of the planner, written out: importing it takes as long as all else that a help does."""
RECIPES = ("*.y*ml", "*/*.y*ml")
"""Where recipes are looked for, below the folder that was typed."""


def stages(incomplete: str) -> list[str]:
    """Lists the stages of a run that begin like this."""
    return _beginning(STAGES, incomplete)


def checks(incomplete: str) -> list[str]:
    """Lists conformance checks behind those that are typed already, with commas between them."""
    from pipeline.verify.catalogue import CHECKS

    return _listed(CHECKS, incomplete)


def formats(incomplete: str) -> list[str]:
    """Lists the formats that begin like this."""
    from pipeline.formats import FORMATS

    return _beginning(FORMATS, incomplete)


def several_formats(incomplete: str) -> list[str]:
    """Lists formats behind those that are typed already, with commas between them."""
    from pipeline.formats import FORMATS

    return _listed(FORMATS, incomplete)


def targets(incomplete: str) -> list[str]:
    """Lists the compile targets that begin like this."""
    from pipeline.targets import TARGETS

    return _beginning(TARGETS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Lists recipes here and one folder below; without any, the shell offers every file."""
    folder = incomplete.rpartition("/")[0]
    base = Path(folder or ("/" if incomplete.startswith("/") else "."))
    found = sorted({str(path) for pattern in RECIPES for path in base.glob(pattern)})
    return _beginning(found, incomplete.removeprefix("./"))


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _listed(names: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    left = (name for name in names if name not in given)
    return [f"{before}{comma}{name}" for name in _beginning(left, last)]
