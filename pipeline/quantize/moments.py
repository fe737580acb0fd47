"""Second moments of a linear's inputs: what its error on a text depends on, and nothing else."""

from __future__ import annotations

import torch

# Rows of inputs that are turned to float64 at a time.
_CHUNK = 4096


def new_moments(columns: int, device: torch.device) -> torch.Tensor:
    """Returns moments of no inputs, float64 [columns, columns]."""
    return torch.zeros(columns, columns, dtype=torch.float64, device=device)


def add_moments(moments: torch.Tensor, inputs: torch.Tensor, weight: float = 1.0) -> None:
    """Adds the second moments of inputs.

    Args:
        moments: float64 [columns, columns]; changed in place.
        inputs: [..., columns].
        weight: What each row counts.
    """
    rows = inputs.reshape(-1, len(moments))
    for start in range(0, len(rows), _CHUNK):
        values = rows[start : start + _CHUNK].double()
        moments.addmm_(values.T, values, alpha=weight)
