"""Measures the numbers of a GGUF file that was written, by reading it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.reading.json_text import read_json
from pipeline.targets.base import KvCache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.scoring import Scorer

FILE = "model.gguf"
METHOD = (
    "the GGUF file, every tensor of it read back and dequantized to float32; llama.cpp itself also "
    "rounds what goes into a quantized matrix to 8 bits, which is not in these numbers"
)


@dataclass(frozen=True)
class ReadBack:
    """Measures the file in torch.

    Attributes:
        material: What decides the measurement besides engine, checkpoint and windows.
        longest_window: Tokens of the longest window that the model takes.
        method: What is run.
        rounded_to: Bits of a weight of a type that rounds; None of one that does not.
        in_float32: True: the file is read back as a model.
        gives_logits: True: likewise.
    """

    material: Mapping[str, Any]
    longest_window: int
    rounded_to: int | None
    method: str = METHOD
    in_float32: bool = True
    gives_logits: bool = True

    def kv_cache(self, facts: ModelFacts) -> KvCache:  # noqa: ARG002
        """Returns nothing: each window is computed at once."""
        return KvCache()

    @contextmanager
    def logits(self, engine: Path) -> Iterator[Scorer]:
        """Opens the file as a model of transformers.

        Raises:
            StageError: The file cannot be read.
        """
        yield _scorer(engine)[0]

    def losses(
        self,
        engine: Path,
        checkpoint: Path,  # noqa: ARG002  the file has all of it
        windows: Sequence[Sequence[int]],
        workspace: Path,  # noqa: ARG002
        progress: Progress,
    ) -> list[NDArray[np.float32]]:
        """Computes the likelihood of every token of the windows, but for their first.

        Raises:
            StageError: The file cannot be read.
        """
        import torch

        from pipeline.evaluation.scoring import batches, padded

        scorer, vocabulary = _scorer(engine)
        total = sum(len(window) - 1 for window in windows)
        found: dict[int, NDArray[np.float32]] = {}
        with progress.task(f"scoring {total:,} tokens on the file", total) as task:
            for batch in batches(windows, vocabulary):
                ids = padded([windows[index] for index in batch])
                likely = torch.log_softmax(scorer(ids)[:, :-1], dim=-1)
                losses = -likely.gather(-1, ids[:, 1:, None])[..., 0]
                for row, index in enumerate(batch):
                    found[index] = losses[row, : len(windows[index]) - 1].numpy()
                    task.advance(len(found[index]))
        return [found[index] for index in range(len(windows))]


def _scorer(engine: Path) -> tuple[Scorer, int]:
    import torch

    from pipeline.checkpoint.config import CheckpointConfig
    from pipeline.evaluation.scoring import scorer_of
    from pipeline.reference import reference_model
    from pipeline.targets.llamacpp.read_back import read_gguf

    config = read_json(engine / "config.json")["pretrained_config"]
    facts = CheckpointConfig.from_dict(config, str(engine / "config.json")).facts
    model = reference_model(*read_gguf(engine / FILE, facts))
    return scorer_of(model, torch.device("cpu")), facts.vocab_size
