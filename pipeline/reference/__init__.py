"""The numbers a TensorRT-LLM checkpoint stands for, computed by torch in float32.

It shares only :mod:`pipeline.checkpoint` with the compile targets, so that either checks the other.
"""

from pipeline.reference.model import load_reference, reference_model

__all__ = ["load_reference", "reference_model"]
