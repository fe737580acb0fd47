"""What a stage is: a function from a recipe section and input artifacts to one output artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.dependencies import Requirements
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.verdict.failure import Failure


@dataclass(frozen=True)
class StageContext:
    """What a stage gets to work with.

    Attributes:
        recipe: The whole recipe; a stage reads only what its ``section`` declares.
        inputs: The artifacts of the stages it declared, by stage name.
        output: An empty directory to fill; it is published when the stage returns.
        progress: Where it reports.
        failure: Why the run ended early, for a stage that runs nevertheless.
        ancestors: Manifests of all that the inputs descend from, and of themselves, by stage. What
            is told of them must not matter to whoever reads the result: of equal bytes with
            different histories the store keeps one.
        section: What the stage's ``section`` says of the recipe, as it stands in the stage's key.
        unfinished: A directory of this key that outlives a failure and a kill, on the file system
            of ``output``: what a stage leaves in it, the next run of the same key finds. It goes
            when the artifact is published. None where there is no store.
        borrowed: To be filled with the names of files in ``output`` that are hard links of files
            which somebody else may write into.
    """

    recipe: Recipe
    inputs: Mapping[str, Artifact]
    output: Path
    progress: Progress
    failure: Failure | None = None
    ancestors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    section: Mapping[str, Any] = field(default_factory=dict)
    unfinished: Path | None = None
    borrowed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Journal:
    """A file with a line for every artifact of a stage that was ever deployed.

    Attributes:
        name: The file, below the recipe's output folder.
        line: Makes the line of an artifact, JSON values with its ``key``; None writes none.
    """

    name: str
    line: Callable[[Artifact], dict[str, Any] | None]


@dataclass(frozen=True)
class Deployment:
    """Where a stage's result goes, below the recipe's output folder.

    Attributes:
        folder: Becomes a copy of the whole artifact.
        files: Files of the artifact that are copied one by one; the last is the one to open.
        after: The stage that has to pass before; None is the stage itself.
        journal: Is told of the artifact, once.
        finish: Makes the contents of ``files`` from the artifact's folder and the output folder,
            by name, where they also tell what lies beside the latter; None copies them.
    """

    folder: str | None = None
    files: tuple[str, ...] = ()
    after: str | None = None
    journal: Journal | None = None
    finish: Callable[[Path, Path], Mapping[str, bytes]] | None = None


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Its name on the command line and in the store.
        version: Raised when the code writes other bytes for the same inputs.
        title: What it does, in a few words, for ``plan``.
        inputs: Names of the stages whose artifacts it reads.
        run: Fills ``context.output`` and returns facts (JSON values).
        section: The part of the recipe that decides its bytes.
        material: Digests of files outside the store, and versions of tools, that decide its bytes.
        check: Runs after publication; raises when the artifact must stop the run (a gate).
        needs: What ``run`` imports of optional packages.
        deployment: Where its result goes; None leaves it in the store.
        always: It also runs when a stage before it failed, on the artifacts that there are.
    """

    name: str
    version: int
    title: str
    inputs: tuple[str, ...]
    run: Callable[[StageContext], dict[str, Any]]
    section: Callable[[Recipe], dict[str, Any]]
    material: Callable[[Recipe], dict[str, Any]] = lambda _recipe: {}
    check: Callable[[Recipe, Artifact], None] = lambda _recipe, _artifact: None
    needs: Callable[[Recipe], Requirements] = lambda _recipe: ()
    deployment: Deployment | None = None
    always: bool = False
