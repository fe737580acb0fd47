"""What a run that ends early leaves of a checkpoint, and how the next one goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pipeline.layers.state import State

STATE = "layers.state"


@dataclass(frozen=True)
class Resume:
    """A walk over the layers that leaves what it has.

    Attributes:
        folder: The rank files are in it until they are whole; on the file system of the output.
        state: How many layers they hold, and the hidden states behind the last one.
        states: Returns what the next layer depends on.
        go_on: Takes what ``states`` returned in an earlier run.
    """

    folder: Path
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
    from pipeline._version import __version__
    from pipeline.layers.state import State, computing

    # Whoever computes or counts otherwise does not go on with these states.
    return State(unfinished / STATE, computing(device) | ours | {"version": __version__})
