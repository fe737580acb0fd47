"""The CPU target behind the protocol of :mod:`pipeline.targets.base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.dependencies import require
from pipeline.errors import UnsupportedError
from pipeline.models import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe import Recipe
from pipeline.targets.base import EngineEvaluation
from pipeline.targets.openvino import preflight
from pipeline.toolchain import versions

# Raised when the same checkpoint gives another graph; part of the engine's cache key.
GRAPH_VERSION = "1"
PACKAGES = ("openvino", "openvino-genai", "numpy")


class OpenVinoTarget:
    """Compiles for the CPU with OpenVINO."""

    name = "openvino"
    needs = tuple((name, "cpu") for name in ("openvino", "openvino_genai", "ml_dtypes", "pytriton"))

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses formats, lengths and precisions that the CPU target cannot serve faithfully.

        Raises:
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        preflight.check(recipe, facts)

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """``compile`` without the options of GPUs; the ranks are the checkpoint's."""
        others = {"gpu", "tensorrt", "tensor_parallel", "pipeline_parallel"}
        return {"compile": recipe.compile.model_dump(mode="json", exclude=others)}

    def tools(self) -> Mapping[str, str]:
        """Versions of OpenVINO, OpenVINO GenAI and NumPy, and of the graph this package builds."""
        return {"graph": GRAPH_VERSION, **versions(PACKAGES)}

    def compile(
        self, checkpoint: Path, recipe: Recipe, output: Path, progress: Progress
    ) -> dict[str, Any]:
        """Writes ``openvino_model.xml``, ``openvino_model.bin`` and ``config.json``.

        The bytes depend only on the checkpoint, the recipe and :meth:`tools`.

        Args:
            checkpoint: A TensorRT-LLM checkpoint of any tensor and pipeline parallelism.
            recipe: ``compile`` gives limits and execution options.
            output: An empty directory.
            progress: Where the layers are counted.

        Returns:
            ``target``, ``quant_algo``, ``engine_bytes``, ``max_batch_size``, ``max_seq_len`` and
            ``runtime``, the properties that the CPU plugin is opened with.

        Raises:
            CheckpointError: The checkpoint is not complete.
            CompileError: The checkpoint holds a format that the CPU does not execute.
            MissingDependencyError: OpenVINO is not installed.
        """
        require("openvino", "cpu")
        from pipeline.targets.openvino.engine import write_engine

        return write_engine(checkpoint, recipe, output, progress)

    def engine_evaluation(
        self,
        recipe: Recipe,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> EngineEvaluation | None:
        """None: the engine executes the arithmetic of the reference, which is measured."""
        return None

    def engine_perplexity(
        self,
        checkpoint: Path,  # noqa: ARG002
        recipe: Recipe,
        windows: Sequence[Sequence[int]],  # noqa: ARG002
        workspace: Path,  # noqa: ARG002
        progress: Progress,  # noqa: ARG002
    ) -> float:
        """Refuses; see :meth:`engine_evaluation`.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "the CPU target measures no engine", where=recipe.place("compile.target")
        )
