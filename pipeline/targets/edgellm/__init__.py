"""TensorRT Edge-LLM: the engine compiler of NVIDIA's that goes on, for Jetson, DRIVE and DGX Spark.

Importing this package is cheap; NumPy and safetensors are imported when a folder is written.
"""

from pipeline.targets.edgellm.target import EdgeLlmTarget

__all__ = ["EdgeLlmTarget"]
