"""Linears whose weights are read while they are multiplied, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Fill = Callable[[slice, torch.Tensor], object]
"""Writes rows of a weight, float32 [n, features], into memory that is there."""

# Of a weight, multiplied at a time: 16 MB in float32, so that it is still in a processor's cache
# when it is multiplied, and so many that what Python does for each block is nothing beside it.
BLOCK_WEIGHTS = 1 << 22
# A block's rows are a multiple of this, so that each begins where a kernel's panel does.
BLOCK_ROWS = 64


class Unread(torch.nn.Parameter):
    """A weight that takes no memory, and is multiplied within :class:`InBlocks` alone.

    Attributes:
        fill: What reads it.
    """

    fill: Fill

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuses products: torch would multiply by whatever is in memory.

        Raises:
            RuntimeError: It is multiplied.
        """
        if function is functional.linear:
            raise RuntimeError("a weight that is not in memory was multiplied outside of InBlocks")
        parent: Any = super()
        return parent.__torch_function__(function, types, args, kwargs or {})


def unread(shape: Sequence[int], fill: Fill) -> Unread:
    """Makes a weight that is read when it is multiplied.

    Args:
        shape: Of the weight, [N, K].
        fill: What reads it.
    """
    weight = Unread(torch.empty(*shape, device="meta"), requires_grad=False)
    weight.fill = fill
    return weight


class InBlocks(TorchFunctionMode):
    """A context manager in which every linear is computed in blocks of :func:`block_rows`.

    A kernel adds up in an order that depends on how many rows it is given. So models that are to
    agree to the last bit are both asked in such a context, also those that lie in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room = torch.empty(0)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Computes linears here, and leaves everything else as it is."""
        if function is functional.linear:
            return self._linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    # Named as torch's are.
    def _linear(
        self,
        input: torch.Tensor,  # noqa: A002
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        fill = weight.fill if isinstance(weight, Unread) else None
        count, size = len(weight), block_rows(weight.shape[1])
        if fill is None and count <= size:
            return functional.linear(input, weight, bias)
        found = input.new_empty(*input.shape[:-1], count)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            some = weight[rows] if fill is None else self._read(fill, rows, weight.shape[1])
            found[..., rows] = functional.linear(input, some, None if bias is None else bias[rows])
        return found

    def _read(self, fill: Fill, rows: slice, columns: int) -> torch.Tensor:
        shape = rows.stop - rows.start, columns
        if len(self._room) < shape[0] * columns:
            self._room = torch.empty(shape[0] * columns)
        room = self._room[: shape[0] * columns].view(shape)
        fill(rows, room)
        return room


def block_rows(columns: int) -> int:
    """Says how many rows of a weight with so many columns are multiplied at a time."""
    return max(1, BLOCK_WEIGHTS // columns // BLOCK_ROWS) * BLOCK_ROWS
