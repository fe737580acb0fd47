"""Measures a folder with the vLLM of another environment, against the checkpoint's reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError
from pipeline.models.facts import ModelFacts
from pipeline.processor import processor_name
from pipeline.progress import Progress
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import EngineEvaluation, KvCache, NotMeasured
from pipeline.targets.vllm.commands import FOLDER, Served
from pipeline.targets.vllm.elsewhere import find_vllm, kv_cache_bytes, run_vllm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.scoring import Scorer

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 24, 16
"""Texts that are continued greedily, their lengths, and how far."""


def evaluation(recipe: Recipe) -> EngineEvaluation | NotMeasured:
    """Says how the folder of a recipe is measured.

    Raises:
        UsageError: ``compile.vllm.python`` is no Python that can be run.
        MissingDependencyError: It has no vLLM.
    """
    python = recipe.compile.vllm.python
    if python is None:
        return NotMeasured(
            "vLLM needs an environment of its own, and the recipe names none",
            "Name its Python in compile.vllm.python; docs/vllm.md says how to make one",
        )
    version, served = find_vllm(python), Served.of(recipe)
    # One token is generated behind each window.
    longest = recipe.compile.max_seq_len - 1
    decided = {"vllm": version, "processor": processor_name(), "longest_window": longest}
    return MeasuredElsewhere(python, version, served, decided, longest)


@dataclass(frozen=True)
class MeasuredElsewhere:
    """Measures folders with vLLM, in a process of another environment.

    Attributes:
        python: That environment's.
        version: vLLM's.
        served: The engine's arguments.
        material: What decides the measurement besides engine, checkpoint and windows.
        longest_window: Tokens of the longest window.
        rounded_to: None: the folder has the checkpoint's own weights.
        in_float32: False: another process has them.
        gives_logits: False: it gives the likelihoods of tokens alone.
    """

    python: str
    version: str
    served: Served
    material: Mapping[str, Any]
    longest_window: int
    rounded_to: int | None = None
    in_float32: bool = False
    gives_logits: bool = False

    @property
    def method(self) -> str:
        """What is run."""
        return (
            f"the folder in vLLM {self.version}, in {self.served.dtype}: the log probabilities "
            "that it gives to the tokens of a prompt"
        )

    def kv_cache(self, facts: ModelFacts) -> KvCache:  # noqa: ARG002
        """Returns what vLLM sets aside where a processor computes, whatever the model is."""
        return KvCache(reserved=kv_cache_bytes())

    @contextmanager
    def logits(self, engine: Path) -> Iterator[Scorer | None]:  # noqa: ARG002
        """Yields None: vLLM gives the likelihoods of tokens alone."""
        yield None

    def losses(
        self,
        engine: Path,
        checkpoint: Path,
        windows: Sequence[Sequence[int]],
        workspace: Path,  # noqa: ARG002  it has one of its own, which is gone afterwards
        progress: Progress,
    ) -> list[NDArray[np.float32]]:
        """Sends every window as a prompt to vLLM, and has the first ones continued greedily.

        How its greedy tokens and their log probabilities compare with those of the checkpoint's
        reference is told as a note.

        Raises:
            StageError: vLLM failed, or does not give back what was asked.
        """
        import numpy as np

        prompts = [list(window[:PROMPT_TOKENS]) for window in windows[:PROMPTS]]
        arguments = {"model": str((engine / FOLDER).resolve()), **self.served.arguments()}
        new_tokens = min(NEW_TOKENS, self.longest_window + 1 - PROMPT_TOKENS)
        if new_tokens < 1:
            prompts = []
        job = {
            "windows": [list(window) for window in windows],
            "prompts": prompts,
            "new_tokens": new_tokens,
        }
        total = sum(len(window) - 1 for window in windows)
        with progress.task(f"scoring {total:,} tokens in vLLM {self.version}", total) as task:
            found = run_vllm(self.python, arguments, job)
            task.advance(total)
        losses = [np.array(row, np.float32) for row in found["losses"]]
        wanted = [len(window) - 1 for window in windows]
        if [len(row) for row in losses] != wanted or not all(np.isfinite(r).all() for r in losses):
            raise StageError(
                "vLLM gave no likelihood to some tokens of its prompts",
                where=self.python,
                why=f"{sum(wanted)} were asked for, {sum(map(len, losses))} came",
                fix="Measure with another version of vLLM",
            )
        if prompts:
            progress.note(_compared(self.version, checkpoint, prompts, found["greedy"]))
        return losses


def _compared(
    version: str,
    checkpoint: Path,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Mapping[str, Any]],
) -> str:
    """Says how greedy answers compare with what the checkpoint's reference says of them."""
    from contextlib import closing

    import torch

    from pipeline.layers.walk import Walker
    from pipeline.reference.by_layer import checkpoint_by_layer

    equal, tokens, furthest = 0, 0, 0.0
    texts = [
        torch.tensor([[*prompt, *answer["ids"]]])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    with closing(checkpoint_by_layer(checkpoint, torch.device("cpu"))) as parts:
        found = list(Walker(parts, "checkpoint").logits(texts))
    for prompt, answer, (logits,) in zip(prompts, answers, found, strict=True):
        told = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)
        chosen = torch.tensor(answer["ids"])
        equal += int((told.argmax(-1) == chosen).sum())
        tokens += len(chosen)
        own = told.gather(-1, chosen[:, None])[:, 0]
        furthest = max(furthest, float((own - torch.tensor(answer["log_probs"])).abs().max()))
    return (
        f"vLLM {version}: {equal} of {tokens} greedy tokens are those that the checkpoint's "
        f"reference would choose; log probabilities differ by {furthest:.4f} at most"
    )
