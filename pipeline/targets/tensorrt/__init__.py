"""The GPU target: a checkpoint as TensorRT-LLM engines for Triton's C++ backend.

Importing this package is cheap and needs no GPU; the pre-flight works on any machine.
"""

from pipeline.targets.tensorrt.target import TensorRtTarget

__all__ = ["TensorRtTarget"]
