"""Likelihoods of what TensorRT-LLM makes of a checkpoint, from an engine built only for them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import EngineEvaluation, KvCache, NotMeasured
from pipeline.targets.tensorrt.environment import engine_tools, inspect_machine, toolkit
from pipeline.targets.tensorrt.plan.build_config import build_section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METHOD = (
    "an engine of the same checkpoint and build options that also gathers context logits, built "
    "only for this: the engine that is served does not give them. It tells the likelihood of each "
    "token, and so perplexity alone"
)


@dataclass(frozen=True)
class MeasuredHere:
    """Measures engines of a recipe on this machine's GPUs.

    Attributes:
        recipe: ``compile`` gives sizes and options.
        method: What is run.
    """

    recipe: Recipe
    method: str = METHOD
    rounded_to: int | None = None
    in_float32: bool = False
    gives_logits: bool = False

    @property
    def material(self) -> Mapping[str, Any]:
        """What decides the measurement besides engine, checkpoint and windows."""
        return {"tools": engine_tools(), **build_section(self.recipe)}

    @property
    def longest_window(self) -> int:
        """Tokens of the longest window that the engine takes, with one new token behind it."""
        sizes = self.recipe.compile
        return min(sizes.max_seq_len - 1, sizes.max_num_tokens)

    def kv_cache(self, facts: ModelFacts) -> KvCache:  # noqa: ARG002
        """Returns nothing: the GPU has it."""
        return KvCache()

    @contextmanager
    def logits(self, engine: Path) -> Iterator[None]:  # noqa: ARG002
        """Gives none: whole vocabularies of every token are not sent out of the container."""
        yield None

    def losses(
        self,
        engine: Path,  # noqa: ARG002
        checkpoint: Path,
        windows: Sequence[Sequence[int]],
        workspace: Path,
        progress: Progress,
    ) -> list[NDArray[np.float32]]:
        """Builds an engine that gathers context logits; see :func:`engine_losses`."""
        import numpy as np

        found = engine_losses(checkpoint, self.recipe, windows, workspace, progress)
        return [np.array(losses, np.float32) for losses in found]


def engine_evaluation(recipe: Recipe) -> EngineEvaluation | NotMeasured:
    """Says how engines are measured on this machine.

    Args:
        recipe: ``compile`` gives sizes and options.

    Returns:
        What measures them. That is not done without a GPU for every rank, with neither TensorRT-LLM
        nor Docker, and with pipeline parallelism: ``ModelRunnerCpp`` then has rank 0 wait for the
        context logits of the last pipeline rank, which returned without sending any.
    """
    sizes = recipe.compile
    if sizes.pipeline_parallel > 1:
        return NotMeasured(
            "TensorRT-LLM returns no context logits with pipeline_parallel "
            f"{sizes.pipeline_parallel}",
            "Compare the written files' numbers, or split the model by tensor_parallel alone",
        )
    ranks, here = sizes.tensor_parallel * sizes.pipeline_parallel, len(inspect_machine().gpus)
    if here < ranks:
        wanted = "a GPU" if ranks == 1 else f"{ranks} GPUs"
        return NotMeasured(
            f"It takes {wanted}, and this machine has {here or 'none'}",
            "Run the recipe where the engine is served to measure it too",
        )
    if toolkit().image is not None and shutil.which("docker") is None:
        return NotMeasured(
            "Neither TensorRT-LLM nor Docker is installed here",
            "Install Docker, or run inside the container",
        )
    return MeasuredHere(recipe)


def engine_losses(
    checkpoint: Path,
    recipe: Recipe,
    windows: Sequence[Sequence[int]],
    workspace: Path,
    progress: Progress,
) -> list[list[float]]:
    """Builds an engine that gathers context logits, measures it and removes it.

    Args:
        checkpoint: A validated TensorRT-LLM checkpoint directory.
        recipe: ``compile`` gives sizes and options.
        windows: Token ids; the first of each window is context only.
        workspace: A directory of the store, where the engine lies meanwhile.
        progress: Where the build reports.

    Returns:
        For each window the negative log-likelihoods, in nats, of its tokens but the first.

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
        with progress.task(f"scoring {total:,} tokens on the engine", total) as task:
            result = run_evaluation(engine, rows, timing, end_id=NO_END, pad_id=PAD)
            task.advance(total)
    found = [list(window["losses"]) for window in result["by_window"]]
    if [len(losses) for losses in found] != [len(row) - 1 for row in rows]:
        raise StageError(
            f"the engine scored {sum(map(len, found))} of {total} tokens in {len(found)} of "
            f"{len(rows)} windows"
        )
    return found
