"""A model as parts that are loaded one at a time: embedding, decoder layers, norm and head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from pipeline.layers.blocks import BLOCK_ROWS

# A head whose float32 is larger is never in memory as a whole, but in blocks of about this size.
# They are far from small: blocks of a few rows would be multiplied by another kernel, and rounded
# in another order.
HEAD_BYTES = 256 << 20


@dataclass(frozen=True)
class Part:
    """What is loaded at once.

    Attributes:
        number: 0 is the embedding, the layers count from 1, behind them come norm and head.
        modules: Of the part, by their names in the whole model and in its order.
        run: Maps token ids [batch, length] to hidden states [batch, length, hidden size], those to
            the next ones, and the last ones to logits.
    """

    number: int
    modules: Mapping[str, torch.nn.Module]
    run: Callable[[torch.Tensor], torch.Tensor]


class Parts(Protocol):
    """A model that gives its parts.

    Attributes:
        layers: How many decoder layers there are.
        hidden_size: Of a hidden state.
        vocabulary: Logits of a token.
        device: Where the parts compute.
    """

    layers: int
    hidden_size: int
    vocabulary: int
    device: torch.device

    def part(self, number: int) -> Part:
        """Loads a part; that of another number may be gone then."""

    def often(self) -> AbstractContextManager[None]:
        """Returns a context manager in which parts are run again and again for a few tokens.

        All linears are computed as in :class:`.blocks.InBlocks`.
        """


def whole(model: torch.nn.Module) -> Part:
    """Takes a model in memory as one part.

    Args:
        model: A ``*ForCausalLM`` of transformers.
    """
    anything: Any = model
    return Part(0, dict(model.named_modules()), lambda ids: anything(input_ids=ids).logits)


class EmbeddingByRows(torch.nn.Module):
    """An embedding of which only the rows that are asked for are read.

    Args:
        rows: Maps sorted token ids [n] to their rows, float32 [n, hidden size].
    """

    def __init__(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._rows = rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps int64 [batch, length] to [batch, length, hidden size]."""
        found, places = torch.unique(ids.cpu(), return_inverse=True)
        return self._rows(found)[places]


class HeadInBlocks(torch.nn.Module):
    """A head without a bias, which is kept where it is small and read block by block otherwise.

    Args:
        rows: Returns consecutive rows of the weight, float32 [n, hidden size].
        vocabulary: How many rows there are.
        hidden_size: Their length.
    """

    def __init__(
        self, rows: Callable[[slice], torch.Tensor], vocabulary: int, hidden_size: int
    ) -> None:
        super().__init__()
        self._rows, self._vocabulary = rows, vocabulary
        self._kept: torch.Tensor | None = None
        blocks = -(-vocabulary * hidden_size * 4 // HEAD_BYTES)
        self._block = -(-vocabulary // blocks // BLOCK_ROWS) * BLOCK_ROWS

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Maps float32 [batch, length, hidden size] to logits, [batch, length, vocabulary]."""
        if self._block >= self._vocabulary:
            if self._kept is None:
                self._kept = self._read(slice(0, self._vocabulary), hidden.device)
            return functional.linear(hidden, self._kept)
        if hidden.shape[:-1].numel() == 1:
            # A vector is multiplied by another kernel, whose sums depend on the matrix's height.
            return functional.linear(hidden, self._read(slice(0, self._vocabulary), hidden.device))
        logits = hidden.new_empty(*hidden.shape[:-1], self._vocabulary)
        for start in range(0, self._vocabulary, self._block):
            rows = slice(start, min(start + self._block, self._vocabulary))
            logits[..., rows] = functional.linear(hidden, self._read(rows, hidden.device))
        return logits

    def _read(self, rows: slice, device: torch.device) -> torch.Tensor:
        return self._rows(rows).to(device)
