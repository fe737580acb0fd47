"""What targets have in common whose engines are made wherever the recipe runs, and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.targets.base import GivenEngine

Refusal = tuple[str, str]
"""What is refused, and why; sentences without their full stop."""


class BuiltHere(ABC):
    """Refuses build scripts, and engines from elsewhere."""

    @property
    @abstractmethod
    def no_script(self) -> Refusal:
        """What :meth:`build_script` says."""

    @property
    @abstractmethod
    def not_taken_in(self) -> Refusal:
        """What :meth:`given_files` and :meth:`adopt` say."""

    def build_script(self, checkpoint: Artifact, recipe: Recipe) -> str:  # noqa: ARG002
        """Refuses: every machine that runs the recipe makes the engine.

        Raises:
            UnsupportedError: Always.
        """
        what, why = self.no_script
        raise UnsupportedError(
            what,
            where=recipe.place("compile.target"),
            why=why,
            fix="Leave --script out, or add --set compile.target=tensorrt",
        )

    def given_files(self, directory: Path) -> Sequence[str]:
        """Refuses: nothing of it is built elsewhere.

        Raises:
            UnsupportedError: Always.
        """
        raise self._not_from_elsewhere(directory)

    def adopt(
        self,
        given: GivenEngine,
        checkpoint: Path,  # noqa: ARG002
        recipe: Recipe,  # noqa: ARG002
        output: Path,  # noqa: ARG002
        progress: Progress,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Refuses, as :meth:`given_files` does.

        Raises:
            UnsupportedError: Always.
        """
        raise self._not_from_elsewhere(given.directory)

    def _not_from_elsewhere(self, directory: Path) -> UnsupportedError:
        what, why = self.not_taken_in
        return UnsupportedError(
            what,
            where=str(directory),
            why=why,
            fix="Leave --engine out, or set compile.target to the target that it was built for",
        )
