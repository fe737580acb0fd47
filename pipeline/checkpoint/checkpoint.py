"""A TensorRT-LLM checkpoint on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import Weights
from pipeline.checkpoint.reader import TensorFile
from pipeline.checkpoint.shards import merge
from pipeline.checkpoint.validate import check_tensors
from pipeline.models.facts import ModelFacts


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint whose names, dtypes and shapes are as TensorRT-LLM requires them."""

    directory: Path
    config: CheckpointConfig
    files: tuple[TensorFile, ...]

    @property
    def facts(self) -> ModelFacts:
        """The model's facts, as the source's ``config.json`` would state them."""
        return self.config.facts

    def weights(self) -> Weights:
        """Merges all ranks bit-exactly into one decoder, each layer when it is asked for.

        Arrays of a checkpoint with one rank are views of the mapped file, not copies.

        Raises:
            CheckpointError: Ranks disagree about a tensor that they must share.
        """
        return merge(self.config, self.files)

    def release(self) -> None:
        """Lets go of the pages of its files that were read; arrays stay valid."""
        for file in self.files:
            file.release()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Opens a checkpoint and checks its headers; tensor values are left to :func:`validate`.

    Args:
        directory: Holds ``config.json`` and one ``rankN.safetensors`` per rank.

    Raises:
        CheckpointError: A file or tensor is missing, left over, damaged or of another shape.
        UnsupportedError: The architecture or format is not supported.
    """
    config = CheckpointConfig.from_directory(directory)
    files = check_tensors(directory, config)
    return Checkpoint(directory, config, files)
