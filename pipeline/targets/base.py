"""The protocol behind which a compile target lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.dependencies import Requirements
from pipeline.models import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe import Recipe

LOG_NAME = "build.log"
"""What a build said, in an engine directory. It stays in the store, as it names places here."""


@dataclass(frozen=True)
class EngineEvaluation:
    """That a target can measure the quality of an engine on this machine.

    Attributes:
        material: What decides the measurement besides checkpoint and windows; part of a cache key.
        longest_window: Tokens of the longest window that the engine takes.
    """

    material: Mapping[str, Any]
    longest_window: int


class Target(Protocol):
    """Something that compiles a TensorRT-LLM checkpoint and says how Triton runs the result."""

    name: str

    @property
    def needs(self) -> Requirements:
        """What it compiles and serves with in this Python."""

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what cannot work, from the recipe and config.json alone, in under a second.

        Raises:
            UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
        """

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """The part of the recipe that :meth:`compile` reads, as JSON values under its own names.

        It is part of the engine's cache key, so it holds no option of another target and nothing
        that only decides how fast the engine is built.
        """

    def tools(self) -> Mapping[str, str]:
        """Versions of everything that decides the engine's bytes; part of the cache key."""

    def compile(
        self, checkpoint: Path, recipe: Recipe, output: Path, progress: Progress
    ) -> dict[str, Any]:
        """Writes an engine directory with ``config.json`` and returns facts about it.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: The recipe; ``compile`` is the section that counts.
            output: An empty directory.
            progress: Where it reports.

        Raises:
            CompileError: The engine could not be built.
        """

    def engine_evaluation(
        self, recipe: Recipe, progress: Progress | None = None
    ) -> EngineEvaluation | None:
        """How engines are measured on this machine; None where they are not.

        Args:
            recipe: The recipe; ``compile`` is the section that counts.
            progress: Is told why an engine that could run here is not measured.
        """

    def engine_perplexity(
        self,
        checkpoint: Path,
        recipe: Recipe,
        windows: Sequence[Sequence[int]],
        workspace: Path,
        progress: Progress,
    ) -> float:
        """Builds an engine that is only measured, and measures it.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: The recipe; ``compile`` is the section that counts.
            windows: Token ids, of :attr:`EngineEvaluation.longest_window` at most; the first of
                each is context only.
            workspace: Where the engine may lie meanwhile; nothing of it is left.
            progress: Where it reports.

        Raises:
            UnsupportedError: This target measures no engines, or not on this machine.
            StageError: The engine could not be built or measured.
        """
