"""What a build says of itself: its repository, and the report beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import RepositoryError, StoreError, UsageError, cause
from pipeline.reading.files import is_folder, shortened
from pipeline.reading.json_text import read_json
from pipeline.serving import REPORT, target_of
from pipeline.store.artifact import MANIFEST, read_manifest
from pipeline.triton.compose import project_name


@dataclass(frozen=True)
class Build:
    """A repository and what was measured of it.

    Attributes:
        name: Of the build's folder, as a name of objects.
        repository: Where the repository lies.
        digest: Of its contents, 64 hexadecimal digits.
        bytes: Of its files.
        target: Its compile target.
        report: ``report.json`` beside it; empty where there is none, as for a repository that was
            moved.
    """

    name: str
    repository: Path
    digest: str
    bytes: int
    target: str
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe, as the report has it; empty without one."""
        return self.section("recipe")

    def section(self, *names: str) -> Mapping[str, Any]:
        """Returns a part of the report by its keys; empty where it is missing or null."""
        found: Any = self.report
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}


def read_build(repository: Path) -> Build:
    """Reads what a build says of itself; no file of the repository but its manifest is read.

    Args:
        repository: A repository, with ``report.json`` of its build beside it or without.

    Raises:
        UsageError: It does not exist.
        RepositoryError: It has no manifest, or the report beside it cannot be read.
    """
    if not is_folder(repository):
        raise UsageError(
            "there is no such repository",
            where=shortened(repository),
            fix="Name build/<name>, which trtllm-pipeline run RECIPE makes",
        )
    target = target_of(repository)
    try:
        manifest = read_manifest(repository)
        digest, size = str(manifest["digest"]), int(manifest["facts"]["bytes"])
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise RepositoryError(
            f"{MANIFEST} does not say the digest and the size of the repository",
            where=str(repository),
            why=cause(error),
            fix="Run its recipe again, which deploys it afresh",
        ) from error
    name = project_name(repository).removeprefix("triton-")
    return Build(name, repository, digest, size, target, _report(repository, digest))


def _report(repository: Path, digest: str) -> Mapping[str, Any]:
    """The report beside a repository, where it is that repository's."""
    path = repository.resolve().parent / REPORT
    if not path.is_file():
        return {}
    try:
        report = read_json(path, finite=False)
    except (OSError, ValueError) as error:
        raise RepositoryError(
            "the report beside the repository cannot be read",
            where=str(path),
            why=str(error),
            fix="Run the recipe again, which writes it anew",
        ) from error
    if not isinstance(report, Mapping):
        return {}
    stages = report.get("stages")
    built = {
        stage.get("name"): stage.get("digest")
        for stage in (stages if isinstance(stages, list) else ())
        if isinstance(stage, Mapping)
    }
    # A later run that failed leaves its report beside the repository of an earlier one.
    return report if built.get("repository") == digest else {}
