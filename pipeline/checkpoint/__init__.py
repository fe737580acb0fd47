"""The TensorRT-LLM checkpoint format: read, validate, merge ranks, dequantize.

Importing this package needs NumPy; nothing in it needs torch.
"""

from pipeline.checkpoint.checkpoint import Checkpoint, open_checkpoint
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.dequantize import dequantize, unpack_int4
from pipeline.checkpoint.layout import Layer, Linear, Weights
from pipeline.checkpoint.validate import validate

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "Layer",
    "Linear",
    "Weights",
    "dequantize",
    "open_checkpoint",
    "unpack_int4",
    "validate",
]
