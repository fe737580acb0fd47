"""The tensors of the next layer, read while this one is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.layers.weights import SnapshotWeights

Read = Callable[[str], torch.Tensor]


class ReadAhead:
    """A thread that reads layers, each before it is asked for.

    On CUDA it also copies them to the device, from pinned memory and beside the work that the
    device is given meanwhile, and begins as early as it can. Elsewhere it waits for :meth:`begin`,
    so that no layer lies in memory while the one before it needs most of it.

    Args:
        weights: The model's tensors.
        layers: How many layers it has.
        device: Where tensors go.
        pool: Of one thread.

    Attributes:
        device: Where tensors go.
    """

    def __init__(
        self,
        weights: SnapshotWeights,
        layers: int,
        device: torch.device,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._weights, self._layers, self._pool = weights, layers, pool
        self.device = device
        stream: Any = torch.cuda.Stream
        self._stream = stream(device) if device.type == "cuda" else None
        self._next: dict[int, Future[dict[str, torch.Tensor]]] = {}

    def layer(self, index: int) -> Read:
        """Returns what gives each tensor of a layer, once.

        Raises:
            SourceError: A file ended too soon.
        """
        waiting = self._next.pop(index, None)
        tensors = self._read(index) if waiting is None else waiting.result()
        if self._stream is not None:
            self.begin(index + 1)

        def give(name: str) -> torch.Tensor:
            # What the snapshot lacks is its own error.
            tensor = tensors.pop(name) if name in tensors else self._weights(name)
            if self._stream is not None:
                tensor.record_stream(torch.cuda.current_stream(self.device))
            return tensor

        return give

    def begin(self, index: int) -> None:
        """Begins to read a layer, if there is one of that number."""
        if index < self._layers and index not in self._next:
            self._next[index] = self._pool.submit(self._read, index)

    def _read(self, index: int) -> dict[str, torch.Tensor]:
        names = self._weights.names(f"model.layers.{index}.")
        if self._stream is None:
            return {name: self._weights(name) for name in names}
        with torch.cuda.stream(self._stream):
            found = {
                name: self._weights(name).pin_memory().to(self.device, non_blocking=True)
                for name in names
            }
        self._stream.synchronize()
        return found


@contextmanager
def read_ahead(weights: SnapshotWeights, layers: int, device: torch.device) -> Iterator[ReadAhead]:
    """Opens a :class:`ReadAhead`; its thread ends with the block."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        yield ReadAhead(weights, layers, device, pool)
