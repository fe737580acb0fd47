"""What each stage writes to the disk of the build directory, and what is free there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.effort.memory import STATES
from pipeline.effort.work import Shape, Texts, sets, states_bytes
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import weight_files
from pipeline.stages.source import LINKED_FROM, WORTH_TELLING
from pipeline.store.build_dir import BuildDir
from pipeline.store.sharing import Obstacle, obstacle

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


@dataclass(frozen=True)
class Snapshot:
    """What taking a model into the store writes.

    Attributes:
        directory: Where the model is; None while it is on the Hub.
        build: The build directory, which need not be there.
    """

    directory: Path | None
    build: Path

    def disk(self, size: int) -> Disk:
        """Returns what is written.

        Args:
            size: Bytes of the model.
        """
        if self.directory is None or size < WORTH_TELLING:
            # Fetched into the Hub's cache, if it is not there yet, and linked from there, if that
            # is possible; a small model of one's own shares its blocks, or is copied.
            return Disk(size)
        return Disk(size, least=size) if self.obstacle else Disk(0)

    @cached_property
    def obstacle(self) -> Obstacle | None:
        """Says why a large model has to be copied; None where it is linked or shares its blocks."""
        if self.directory is None:
            return None
        weights = {path: path.stat().st_size for path in weight_files(self.directory)}
        if sum(weights.values()) < WORTH_TELLING:
            return None
        large = [path for path, size in weights.items() if size >= LINKED_FROM]
        try:
            store = _existing(BuildDir(self.build).store_root)
            return obstacle(self.directory / "config.json", large, store)
        except OSError:
            # It cannot be read, or nothing written: the run has to say that, and copies nothing.
            return None


def quantizing(
    recipe: Recipe, shape: Shape, texts: Texts, checkpoint: int, scored: Texts | None = None
) -> Disk:
    """Returns what quantizing writes: the checkpoint, and how far it has come.

    Args:
        recipe: The recipe.
        shape: The model's sizes.
        texts: What is calibrated on.
        checkpoint: Bytes of the checkpoint.
        scored: What a search scores its candidates on; None where there is none.
    """
    state = STATE_FILES * sets(recipe) * texts.tokens * shape.hidden * shape.item
    found = Disk(checkpoint, state if recipe.model.by_layer else 0, checkpoint)
    if scored is None:
        return found
    # The best checkpoint so far lies beside the one that is tried, whose state goes before it is
    # scored.
    states = max(found.scratch, scoring(recipe, shape, [scored]).scratch)
    return replace(found, scratch=checkpoint + states)


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


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    here = folder.absolute()
    return next(path for path in (here, *here.parents) if path.exists())
