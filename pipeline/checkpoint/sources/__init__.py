"""Quantized Hugging Face folders: codes, scales, zero points and order of each linear, as stored.

One module for each library that writes them. Nothing is quantized again here, and nothing rounded.
"""

from pipeline.checkpoint.sources.folder import QuantizedFolder
from pipeline.checkpoint.sources.linear import SourceLinear

__all__ = ["QuantizedFolder", "SourceLinear"]
