"""Tensors as NumPy's arrays, bfloat16 and float8 included."""

from __future__ import annotations

import torch

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.reader import numpy_dtype


def as_array(tensor: torch.Tensor) -> Array:
    """Returns a view of a tensor on the CPU; a copy of one that is not contiguous."""
    values = tensor.detach().contiguous()
    # NumPy has no such dtypes of its own, so the bytes are handed over.
    flat = values.reshape(-1).view(torch.uint8).numpy()
    name = str(values.dtype).removeprefix("torch.")
    return flat.view(numpy_dtype(name)).reshape(tuple(values.shape))
