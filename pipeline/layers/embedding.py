"""What stands in front of the first layer, without the embedding in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.layers.weights import SnapshotWeights
from pipeline.source.snapshot import EMBEDDING, ROWS


def embedded(
    read: SnapshotWeights, batches: Sequence[Sequence[Sequence[int]]], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Looks up the rows of token ids.

    Args:
        read: The model's tensors.
        batches: Token ids [batch][row][position]; rows of one batch are equally long.
        dtype: What the embedding is turned to.

    Returns:
        Hidden states [row, position, hidden size] of each batch.
    """
    ids = [torch.tensor(batch, dtype=torch.long) for batch in batches]
    found: list[torch.Tensor] = []
    for start in range(0, read.rows(EMBEDDING), ROWS):
        piece = read(EMBEDDING, slice(start, start + ROWS)).to(dtype)
        if not found:
            found = [torch.empty(*one.shape, piece.shape[1], dtype=dtype) for one in ids]
        for one, states in zip(ids, found, strict=True):
            here = (one >= start) & (one < start + len(piece))
            states[here] = piece[one[here] - start]
    return found
