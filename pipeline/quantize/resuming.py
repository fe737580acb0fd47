"""What a run that ends early leaves of a checkpoint, and how the next one goes on with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.validate import rank_path
from pipeline.reading.json_text import read_json
from pipeline.store.digests import file_digest
from pipeline.store.files import fsync

if TYPE_CHECKING:
    import torch

    from pipeline.layers.state import State

CONFIG = "config.json"
_STATE = "layers.state"
_READABLE = 0o444


@dataclass(frozen=True)
class Resume:
    """A walk over the layers that leaves what it has.

    Attributes:
        state: How many layers the files of ranks hold, and the hidden states behind the last one.
        states: Returns what the next layer depends on.
        go_on: Takes what ``states`` returned in an earlier run.
    """

    state: State
    states: Callable[[], list[torch.Tensor]] = list
    go_on: Callable[[list[torch.Tensor]], None] = lambda _states: None


def state_in(unfinished: Path, device: torch.device | None = None, **ours: Any) -> State:
    """Opens the state of a directory.

    Args:
        unfinished: It outlives a failure and belongs to what is made.
        device: What is computed on; None is the CPU.
        ours: What else the states depend on, as JSON values.
    """
    from pipeline.layers.state import State, computing

    # Whoever computes or counts otherwise does not go on with these states.
    return State(unfinished / _STATE, computing(device) | ours)


def is_whole(folder: Path) -> bool:
    """Says whether a folder has a whole checkpoint: ``config.json`` is written last."""
    try:
        return isinstance(read_json(folder / CONFIG), dict)
    except (OSError, ValueError):
        return False


@contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Empties the folder where the block fails and no other run could go on with what it left.

    So that nobody is told that it is kept.
    """
    try:
        yield
    except BaseException:
        if not is_whole(folder) and not (folder / _STATE).is_file():
            with suppress(OSError):  # what went wrong is told, and not this
                forget(folder)
        raise


def digests(folder: Path) -> dict[str, str]:
    """Computes the SHA-256 of each file of a whole checkpoint, once all of them are on the disk.

    Raises:
        OSError: A file cannot be read.
    """
    found = {}
    for file in _files(folder):
        fsync(file)
        found[file.name] = file_digest(file)
    fsync(folder)
    return found


def strip(folder: Path) -> None:
    """Removes whatever lies beside a whole checkpoint.

    Raises:
        OSError: The disk refuses.
    """
    forget(folder, keep=_files(folder))


def hand_over(folder: Path, output: Path) -> None:
    """Gives a whole checkpoint to another folder and keeps it, in links that take no room.

    So it survives whatever happens to the other folder. Where there are no links it is moved.

    Raises:
        OSError: The folders are on two file systems, say.
    """
    for file in _files(folder):
        target = output / file.name
        try:
            os.link(file, target)
        except OSError:
            file.replace(target)
        else:
            # Nobody writes into it any more; and who publishes leaves modes of links alone.
            target.chmod(_READABLE)


def forget(folder: Path, *, keep: Collection[Path] = ()) -> None:
    """Empties a folder, but for what is to be kept.

    Raises:
        OSError: The disk refuses.
    """
    for left in set(folder.iterdir()).difference(keep):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, first that which says that it is whole."""
    ranks = takewhile(Path.is_file, (rank_path(folder, rank) for rank in count()))
    return [folder / CONFIG, *ranks]
