"""Perplexity of what TensorRT-LLM makes of a checkpoint, on an engine built only for that."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import EngineEvaluation
from pipeline.targets.tensorrt.environment import engine_tools, inspect_machine, toolkit
from pipeline.targets.tensorrt.plan.build_config import build_section


@dataclass(frozen=True)
class MeasuredHere:
    """Measures engines of a recipe on this machine's GPUs.

    Attributes:
        material: What decides the measurement besides checkpoint and windows.
        longest_window: Tokens of the longest window that the engine takes.
        recipe: ``compile`` gives sizes and options.
    """

    material: Mapping[str, Any]
    longest_window: int
    recipe: Recipe

    def perplexity(
        self,
        checkpoint: Path,
        windows: Sequence[Sequence[int]],
        workspace: Path,
        progress: Progress,
    ) -> float:
        """Builds an engine that gathers context logits; see :func:`engine_perplexity`."""
        return engine_perplexity(checkpoint, self.recipe, windows, workspace, progress)


def engine_evaluation(recipe: Recipe, progress: Progress | None = None) -> EngineEvaluation | None:
    """Says how engines are measured on this machine.

    Args:
        recipe: ``compile`` gives sizes and options.
        progress: Is told why an engine that could run here is not measured.

    Returns:
        What measures them; None without a GPU for every rank, with neither TensorRT-LLM nor Docker,
        and with pipeline parallelism: ``ModelRunnerCpp`` then has rank 0 wait for the context
        logits of the last pipeline rank, which returned without sending any.
    """
    sizes = recipe.compile
    ranks = sizes.tensor_parallel * sizes.pipeline_parallel
    if len(inspect_machine().gpus) < ranks:
        return None
    if toolkit().image is not None and shutil.which("docker") is None:
        return None
    if sizes.pipeline_parallel > 1:
        if progress:
            progress.note(
                "the engine's perplexity is not measured: TensorRT-LLM returns no context logits "
                f"with pipeline_parallel {sizes.pipeline_parallel}; the written files are measured"
            )
        return None
    # One new token is generated behind each window.
    longest = min(sizes.max_seq_len - 1, sizes.max_num_tokens)
    return MeasuredHere({"tools": engine_tools(), **build_section(recipe)}, longest, recipe)


def engine_perplexity(
    checkpoint: Path,
    recipe: Recipe,
    windows: Sequence[Sequence[int]],
    workspace: Path,
    progress: Progress,
) -> float:
    """Builds an engine that gathers context logits, measures it and removes it.

    Args:
        checkpoint: A validated TensorRT-LLM checkpoint directory.
        recipe: ``compile`` gives sizes and options.
        windows: Token ids; the first of each window is context only.
        workspace: A directory of the store, where the engine lies meanwhile.
        progress: Where the build reports.

    Returns:
        e to the mean negative log-likelihood of a scored token.

    Raises:
        UnsupportedError: This machine cannot build the engine.
        MissingDependencyError: Neither TensorRT-LLM nor Docker is installed.
        CompileError: The build failed.
        StageError: The engine could not be measured.
    """
    from pipeline.targets.tensorrt.build.build import build_engine
    from pipeline.targets.tensorrt.build.timing_cache import timing_folder
    from pipeline.targets.tensorrt.trial.run_script import NO_END, PAD, run_evaluation

    total = sum(len(window) - 1 for window in windows)
    with tempfile.TemporaryDirectory(dir=workspace, prefix="engine-") as name:
        engine, timing = Path(name), timing_folder(workspace)
        rows = [list(window) for window in windows]
        longest = max(map(len, rows))
        build_engine(checkpoint, recipe, engine, progress, timing=timing, longest_window=longest)
        with progress.task(f"scoring {total} tokens on the engine", total) as task:
            result = run_evaluation(engine, rows, timing, end_id=NO_END, pad_id=PAD)
            task.advance(total)
    if result["tokens"] != total:
        raise StageError(f"the engine scored {result['tokens']} of {total} tokens")
    return float(result["perplexity"])
