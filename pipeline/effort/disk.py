"""What each stage writes to the disk of the build directory, and what is free there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.effort.memory import STATES
from pipeline.effort.work import Shape, Texts, sets, states_bytes
from pipeline.recipe.schema import Recipe
from pipeline.stages.source import WORTH_TELLING

# A state of hidden states is written beside the one before it, and then takes its place.
STATE_FILES = 2


@dataclass(frozen=True)
class Disk:
    """What a stage writes, in bytes.

    Attributes:
        kept: What stays in the store.
        scratch: What there is beside it while the stage runs.
        least: What of ``kept`` is written for certain; the rest may be linked, or turn out smaller.
    """

    kept: int
    scratch: int = 0
    least: int = 0

    def without(self, left: int) -> Disk:
        """Returns what is still to be written where an earlier run left so many bytes of it."""
        beside = max(left - self.kept, 0)
        return Disk(
            max(self.kept - left, 0), max(self.scratch - beside, 0), max(self.least - left, 0)
        )


def snapshot(size: int, directory: Path | None, build: Path) -> Disk:
    """Returns what taking a snapshot in writes.

    Args:
        size: Bytes of the model.
        directory: Where it is; None while it is on the Hub.
        build: The build directory, which need not be there.
    """
    if directory is None:
        # Fetched into the Hub's cache, if it is not there yet, and linked from there, if that is on
        # the same disk.
        return Disk(size)
    if _device(directory) != _device(build):
        return Disk(size, least=size)
    # On the same file system a large model is linked, or shares its blocks, and a small one may.
    return Disk(0 if size >= WORTH_TELLING else size)


def quantizing(recipe: Recipe, shape: Shape, texts: Texts, checkpoint: int) -> Disk:
    """Returns what quantizing writes: the checkpoint, and how far it has come.

    Args:
        recipe: The recipe.
        shape: The model's sizes.
        texts: What is calibrated on.
        checkpoint: Bytes of the checkpoint.
    """
    section = recipe.quantize
    state = STATE_FILES * sets(recipe) * texts.tokens * shape.hidden * shape.item
    # A search keeps the best checkpoint so far beside the one that is tried.
    beside = checkpoint if section.search else 0
    return Disk(checkpoint, beside + (state if recipe.model.by_layer else 0), checkpoint)


def scoring(recipe: Recipe, shape: Shape, texts: Sequence[Texts]) -> Disk:
    """Returns what scoring writes beside its few numbers: how far it has come.

    Args:
        recipe: The recipe.
        shape: The model's sizes.
        texts: All that is scored: windows, and what is computed of tasks.
    """
    # Each walk leaves a file, of a group of batches and a model; they go with the end of the stage,
    # which alone writes the scores down.
    states = sum(states_bytes(shape, some) for some in texts)
    return Disk(0, 2 * states + min(states, STATES) if recipe.model.by_layer else 0)


def free(build: Path) -> int | None:
    """Returns the bytes that are free where a build directory is, or would be."""
    try:
        return shutil.disk_usage(_existing(build)).free
    except OSError:
        return None


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    here = folder.absolute()
    return next(path for path in (here, *here.parents) if path.exists())
