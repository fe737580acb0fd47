"""The calibration text on its way through a model whose layers are in memory one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from pipeline.errors import StageError


class Walk:
    """Hidden states in front of a layer, which passes over it turn into those behind it.

    They are on the CPU; a batch at a time is on the device.

    Args:
        states: In front of the first layer, of each batch: [row, position, hidden size].
        sets: Of each pass, see :func:`pipeline.quantize.formats.sets_of`.
        device: Where the layers are.
    """

    def __init__(
        self,
        states: Sequence[torch.Tensor],
        sets: Sequence[int],
        device: torch.device,
    ) -> None:
        self._sets, self._of_pass, self._device = [list(states) for _ in set(sets)], sets, device
        self._done = 0

    @property
    def tokens(self) -> int:
        """Counts the tokens of the text."""
        return sum(batch.shape[0] * batch.shape[1] for batch in self._sets[0])

    def states(self) -> list[torch.Tensor]:
        """Returns the states of all sets, one set behind the other."""
        return [states for one in self._sets for states in one]

    def go_on(self, states: list[torch.Tensor]) -> None:
        """Takes what :meth:`states` returned behind another layer."""
        each = len(states) // len(self._sets)
        self._sets = [states[n * each : (n + 1) * each] for n in range(len(self._sets))]

    def run(self, model: Any, cost: float) -> None:  # noqa: ARG002
        """Runs a layer over every batch: one pass."""
        states, last = self._next()
        for number, batch in enumerate(states):
            behind = self._forward(model, batch)
            if last:
                states[number] = self._kept(behind, batch)

    def look(self, model: Any) -> None:
        """Runs a layer over every batch of the next pass, and is no pass."""
        for batch in self._sets[self._of_pass[self._done]]:
            self._forward(model, batch)

    def skip(self, cost: float) -> None:  # noqa: ARG002
        """Leaves a pass out of which everything is known, and its states as they are."""
        self._next()

    def rounded(
        self, rounding: Callable[[Iterable[torch.Tensor]], tuple[Any, list[torch.Tensor]]]
    ) -> Any:
        """Gives a pass to a function that returns its result and the states behind the layer.

        Where no later pass sees the states, the function is the only one that has them, so that it
        can let go of each when it has made the next.
        """
        states, last = self._next()
        result, behind = rounding(self._given_away(states) if last else map(self._moved, states))
        if last:
            states[:] = [self._kept(*both) for both in zip(behind, states, strict=True)]
        return result

    def leave(self) -> None:
        """Ends a layer.

        Raises:
            StageError: Fewer passes were made than the next layer's states would need.
        """
        if self._done != len(self._of_pass):
            raise StageError(
                f"{self._done} passes were made over a layer, and not {len(self._of_pass)}",
                why="The states of the next layer are those of each pass",
            )
        self._done = 0

    def _forward(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        given = model.model(inputs_embeds=self._moved(batch), use_cache=False)
        behind: torch.Tensor = given.last_hidden_state
        return behind

    def _next(self) -> tuple[list[torch.Tensor], bool]:
        """The states of the next pass, and whether it is the last one that sees them."""
        own = self._of_pass[self._done]
        self._done += 1
        return self._sets[own], own not in self._of_pass[self._done :]

    def _given_away(self, states: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        for number, batch in enumerate(states):
            if self._device.type != "cuda":  # there it is a copy, for which this has the memory
                states[number] = batch.new_empty(0, 0)
            yield self._moved(batch)

    def _moved(self, states: torch.Tensor) -> torch.Tensor:
        # Whatever is put into pinned memory later comes behind it on the same stream.
        return states.to(self._device, non_blocking=True)

    def _kept(self, states: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Copies states to the CPU, into the pinned memory of those before the layer if it fits."""
        if self._device.type != "cuda":
            return states
        if not before.is_pinned() or (before.shape, before.dtype) != (states.shape, states.dtype):
            before = torch.empty(states.shape, dtype=states.dtype, pin_memory=True)
        return before.copy_(states)
