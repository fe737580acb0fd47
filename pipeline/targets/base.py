"""The protocol behind which a compile target lives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.models import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe import Recipe


class Target(Protocol):
    """Something that compiles a TensorRT-LLM checkpoint and says how Triton runs the result."""

    name: str

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what cannot work, from the recipe and config.json alone, in under a second.

        Raises:
            UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
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
