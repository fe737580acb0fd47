"""The GPU target behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import toolchain
from pipeline.models import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.targets.base import EngineEvaluation
from pipeline.targets.tensorrt import preflight
from pipeline.targets.tensorrt.build_config import build_section
from pipeline.targets.tensorrt.environment import engine_tools


class TensorRtTarget:
    """Compiles for an NVIDIA GPU with TensorRT-LLM."""

    name = "tensorrt"
    # It builds and serves in place or in a container, and says itself what is missing for either.
    needs = ()

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses what ``trtllm-build`` or Triton's backend would refuse later.

        Raises:
            RecipeError: ``compile.gpu`` is not in the table.
            UnsupportedError: Naming the recipe's key, the reason and the remedy; or the
                TensorRT-LLM that is installed here is not the pinned one.
        """
        if (installed := toolchain.installed("tensorrt-llm")) is not None:
            toolchain.check_tensorrt_llm(installed)
        preflight.check(recipe, facts)

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """``compile`` without the CPU's options and ``workers``; and what decides FP8 attention."""
        return build_section(recipe)

    def tools(self) -> Mapping[str, str]:
        """The GPU, its driver's branch, TensorRT-LLM, TensorRT and CUDA."""
        return engine_tools()

    def compile(
        self, checkpoint: Path, recipe: Recipe, output: Path, progress: Progress
    ) -> dict[str, Any]:
        """Writes ``rankN.engine``, ``config.json`` and the engine's own manifest, and tries them.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: ``compile`` gives sizes and options.
            output: An empty directory.
            progress: Where the build reports.

        Returns:
            See :func:`pipeline.targets.tensorrt.build.build_engine`; and ``smoke``, the tokens
            generated for a few prompts, where the engine could be tried.

        Raises:
            CompileError: The build failed, or the engine generates nonsense; the cause and the
                remedy are named.
            StageError: The engine does not run.
            UnsupportedError: This machine cannot build the engine.
        """
        from pipeline.targets.tensorrt.build import build_engine
        from pipeline.targets.tensorrt.trial import try_engine

        facts = build_engine(checkpoint, recipe, output, progress)
        generated = try_engine(output, progress)
        return facts if generated is None else {**facts, "smoke": generated}

    def engine_evaluation(
        self, recipe: Recipe, progress: Progress | None = None
    ) -> EngineEvaluation | None:
        """On a machine that has a GPU for every rank, and TensorRT-LLM or Docker."""
        from pipeline.targets.tensorrt.quality import engine_evaluation

        return engine_evaluation(recipe, progress)

    def engine_perplexity(
        self,
        checkpoint: Path,
        recipe: Recipe,
        windows: Sequence[Sequence[int]],
        workspace: Path,
        progress: Progress,
    ) -> float:
        """Perplexity of an engine with context logits, which is removed afterwards.

        Args:
            checkpoint: A validated TensorRT-LLM checkpoint directory.
            recipe: ``compile`` gives sizes and options.
            windows: Token ids; the first of each window is context only.
            workspace: Where the engine lies meanwhile.
            progress: Where the build reports.

        Raises:
            UnsupportedError: This machine cannot build the engine.
            CompileError: The build failed.
            StageError: The engine could not be measured.
        """
        from pipeline.targets.tensorrt.quality import engine_perplexity

        return engine_perplexity(checkpoint, recipe, windows, workspace, progress)
