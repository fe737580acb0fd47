"""The GPU target behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.models import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.targets.tensorrt import preflight
from pipeline.targets.tensorrt.environment import engine_tools


class TensorRtTarget:
    """Compiles for an NVIDIA GPU with TensorRT-LLM."""

    name = "tensorrt"

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what ``trtllm-build`` or Triton's backend would refuse later.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        preflight.check(recipe, facts)

    def tools(self) -> Mapping[str, str]:
        """The GPU, its driver's branch, TensorRT-LLM, TensorRT and CUDA."""
        return engine_tools()

    def compile(
        self, checkpoint: Path, recipe: Recipe, output: Path, progress: Progress
    ) -> dict[str, Any]:
        """Writes ``rankN.engine``, ``config.json`` and the engine's own manifest.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: ``compile`` gives sizes and options.
            output: An empty directory.
            progress: Where the build reports.

        Returns:
            See :func:`pipeline.targets.tensorrt.build.build_engine`.

        Raises:
            CompileError: The build failed; its cause and its remedy are named.
            UnsupportedError: This machine cannot build the engine.
        """
        from pipeline.targets.tensorrt.build import build_engine

        return build_engine(checkpoint, recipe, output, progress)
