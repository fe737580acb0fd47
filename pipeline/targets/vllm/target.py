"""The vLLM target: what it refuses, writes, is run with, and is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import Requirements, require, versions
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import Diagnosis, EngineEvaluation, Explanation, NotMeasured, Target
from pipeline.targets.exported import ExportedTarget
from pipeline.targets.vllm.refusals import refuse_unsupported

# Raised when the same checkpoint gives other files; part of the cache key.
FOLDER_VERSION = "1"
PACKAGES = ("numpy", "ml_dtypes", "safetensors")


class VllmTarget(ExportedTarget):
    """Writes a Hugging Face folder that vLLM reads, and what serves it."""

    name = "vllm"
    program = "vLLM"
    takes_zero_points = True
    takes_input_order = True

    def needs(self, recipe: Recipe) -> Requirements:  # noqa: ARG002
        """Lists what the folder is written with; vLLM is not among it."""
        return [(name, "quantize") for name in PACKAGES]

    def check(self, recipe: Recipe, facts: ModelFacts) -> None:
        """Refuses formats, layouts and lengths that vLLM cannot run exactly.

        Raises:
            UnsupportedError: Naming the recipe's key, the reason and the remedy.
        """
        refuse_unsupported(recipe, facts)

    def explain(self, recipe: Recipe, facts: ModelFacts) -> Explanation:  # noqa: ARG002
        """Says how the folder is stored and served."""
        from pipeline.targets.vllm.explain import explain

        return explain(recipe)

    def section(self, recipe: Recipe) -> dict[str, Any]:
        """Returns ``compile`` and the dtype; what measures the folder does not decide it."""
        section = recipe.compile.read_by(self.name)
        del section[self.name]["python"]
        return {"compile": section, "dtype": recipe.dtype}

    def tools(self) -> Mapping[str, str]:
        """Returns the versions of what writes the files."""
        return {"folder": FOLDER_VERSION, **versions(PACKAGES)}

    def compile(
        self,
        checkpoint: Path,
        recipe: Recipe,
        output: Path,
        progress: Progress,
        source: Path | None = None,
    ) -> dict[str, Any]:
        """Writes the folder, Triton's repository, a compose file, a README and ``config.json``.

        Args:
            checkpoint: A TensorRT-LLM checkpoint of any tensor and pipeline parallelism.
            recipe: ``compile`` gives limits and the layout.
            output: An empty directory.
            progress: Where the layers are counted.
            source: The snapshot, for tokenizer, ``config.json``, chat template and licence.

        Returns:
            ``target``, ``quant_algo``, ``layout``, ``engine_bytes``, ``max_batch_size`` and
            ``max_seq_len``.

        Raises:
            CheckpointError: The checkpoint is not complete.
            CompileError: A linear cannot be written exactly, or the disk is full.
            MissingDependencyError: A package is not installed.
        """
        for name in PACKAGES:
            require(name, "quantize")
        from pipeline.targets.vllm.write import write_export

        assert source is not None, "an exporting target gets the source"
        return write_export(checkpoint, source, recipe, output, progress)

    def next_steps(self, recipe: Recipe, folder: Path) -> Sequence[str]:
        """Returns the command line of ``vllm serve``."""
        from pipeline.targets.vllm.commands import next_steps

        return next_steps(recipe, folder)

    def evaluation(self, recipe: Recipe) -> EngineEvaluation | NotMeasured:
        """Measures the folder with the vLLM of another environment, where the recipe names it."""
        from pipeline.targets.vllm.measure import evaluation

        return evaluation(recipe)

    def findings(self) -> list[Diagnosis]:
        """Says how an environment with vLLM is made."""
        from pipeline.targets.vllm.doctor import findings

        return findings()


if TYPE_CHECKING:
    _keeps_the_protocol: Target = VllmTarget()
